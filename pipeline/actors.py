"""The stages that hold a model, as actors of Ray Data."""

from dataclasses import dataclass

import numpy as np
import torch

from cluster.resources import Share
from pipeline import checkpoints
from pipeline.calibration import Calibration
from pipeline.config import Config
from pipeline.isolation import Isolation
from stages.prompt_settings import PromptSettings
from stages.segment import Segment
from stages.weights import load_clip, load_sam2, load_tokenizer


@dataclass(frozen=True)
class Prompts:
    """The learned part of a model, as it travels to actors."""

    settings: PromptSettings
    state: dict[str, np.ndarray]
    calibration: Calibration


class SegmentActor:
    """SAM2 in an actor."""

    def __init__(self, config: Config, share: Share, device: str, isolation: Isolation):
        torch.set_num_threads(share.threads)
        source = checkpoints.resolve_sam2(config.segment, config.storage)
        sam2 = load_sam2(source.model, source.checkpoint, device=device)
        self.stage = Segment(sam2, **config.segment.options)
        self.isolation = isolation

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.isolation(self.stage, batch)


class EmbedActor:
    """CLIP in an actor; with prompts it classifies too, so that tokens never leave it."""

    def __init__(self, config: Config, share: Share, device: str, isolation: Isolation, prompts: Prompts | None):
        # Here, not above: open_clip takes seconds to import, and the SAM2 actor does without.
        from stages.classify import Classify
        from stages.embed import Embed
        from stages.prompted_clip import PromptedCLIP
        from stages.tower import ImageTower

        torch.set_num_threads(share.threads)
        source = checkpoints.resolve_clip(config.clip, config.storage)
        clip = load_clip(source.model, source.checkpoint, source.preprocess, device=device)
        region = config.model.focus in ("masked_image", "both")
        views = config.clip.views if prompts is None else 1
        tower = ImageTower(clip, config.clip.cut)
        self.embed = Embed(tower, region=region, batch_size=config.clip.batch_size, views=views)
        self.isolation = isolation
        self.classify = None
        if prompts is not None:
            model = PromptedCLIP(clip, load_tokenizer(source.model), prompts.settings).to(device)
            model.load_learned({name: torch.tensor(value) for name, value in prompts.state.items()})
            self.classify = Classify(model, **vars(prompts.calibration), batch_size=config.clip.batch_size)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.isolation(self._stages, batch)

    def _stages(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        embedded = self.embed(batch)
        return self.classify(embedded) if self.classify else embedded
