"""A model whose prompts have their initial values: it answers as zero-shot CLIP does, at a trained one's cost."""

from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.calibration import Calibration
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.model import Model
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.weights import load_clip, load_tokenizer


def untrained(config: Config, classes: tuple[str, ...]) -> Model:
    source = model_files.resolve_clip(config.clip, config.storage)
    settings = config.model.prompts(classes, config.clip.cut)
    clip = load_clip(source.model, source.checkpoint, source.preprocess)
    state = PromptedCLIP(clip, load_tokenizer(source.model), settings).learned_state()
    return Model(settings, state, Foundation.of(config), Calibration(temperature=1.0, accept_at=0.0))
