"""What holds the models, as an actor of Ray Data."""

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from medfocus.cluster.devices import is_device_error
from medfocus.cluster.resources import Share
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.data.commit import RUN_FILE
from medfocus.pipeline.data.shared_paths import check_seen
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.isolation import Isolation
from medfocus.pipeline.execution.job import JobSpec
from medfocus.pipeline.execution.write import commit_rows
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.prompts import Prompts
from medfocus.stages.batch import Batch, start
from medfocus.stages.segment import Segment
from medfocus.stages.weights import load_clip, load_sam2, load_tokenizer

if TYPE_CHECKING:
    from medfocus.stages.classify import Classify
    from medfocus.stages.embed import Embed

# Of an actor's process, read by glibc when it begins. Ray Data calls an actor from a thread, whose memory glibc would
# take from an arena of its own, and give back to the system whenever a large tensor ends: its pages are then faulted in
# anew, a fifth of the time of a full-size SAM2. The first arena keeps it.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


class ModelActor:
    """SAM2 and CLIP in one actor: shards come in decoded, and what goes out is the summary of each, once it is written.

    Neither pixels nor tokens travel between the models, nor rows from them to what writes: a task that wrote would be
    another process, which takes some of a CPU from the models also while it has nothing to write.
    """

    def __init__(self, job: JobSpec, share: Share, device: str, journal: Any):
        torch.set_num_threads(share.threads)
        check_seen(job.output.prefix / RUN_FILE)
        self.job, self.journal = job, journal
        try:
            self.segment = load_segment(job.config, device, job.foundation.sam2_identity)
            self.embed, self.classify = load_embed(job.config, device, job.prompts, job.foundation.clip_identity)
            if ray.get(journal.device_errors.remote()):
                self._try_device()
        except Exception as error:
            if not is_device_error(error):
                raise
            raise MedFocusError(
                f"node {platform.node()}: its device fails in a new process, too ({reason(error)}); mend it or take"
                " the node out of the cluster, the same call goes on from here"
            ) from error

    def __call__(self, batch: Batch) -> dict[str, list]:
        segmented = Isolation("segment", self.journal)(self.segment, batch)
        return self._commit(Isolation("embed", self.journal)(self._embed, segmented))

    def _try_device(self) -> None:
        """One image through the models: tells a broken device from a row that fails, before any row is in hand."""
        side = self.segment.size
        grey = np.random.default_rng(0).integers(0, 256, (1, side, side, 1), np.uint8)
        square = np.full(1, side, np.int32)
        image = {"image_id": np.array([""], object), "pixels": grey, "height": square, "width": square}
        self._embed(self.segment(start(image)))

    def _embed(self, batch: Batch) -> Batch:
        embedded = self.embed(batch)
        return self.classify(embedded) if self.classify else embedded

    def _commit(self, batch: Batch) -> dict[str, list]:
        return commit_rows(batch, self.job.output, self.job.provenance)


def load_segment(config: Config, device: str, identity: str | None = None) -> Segment:
    """The region finder with its SAM2, which has to be of an identity where one is given."""
    source = model_files.resolve_sam2(config.segment, config.storage)
    model_files.check_identity(source, identity, "segment")
    sam2 = load_sam2(source.model, source.checkpoint, image_size=config.segment.image_size, device=device)
    return Segment(sam2, config.segment.settings)


def load_embed(
    config: Config, device: str, prompts: Prompts | None, identity: str | None = None
) -> "tuple[Embed, Classify | None]":
    """CLIP below the cut, and with prompts what classifies by it. CLIP has to be of an identity where one is given."""
    # Here, not above: open_clip takes seconds to import, and the driver does without.
    from medfocus.stages.classify import Classify
    from medfocus.stages.embed import Embed
    from medfocus.stages.prompted_clip import PromptedCLIP
    from medfocus.stages.tower import ImageTower

    source = model_files.resolve_clip(config.clip, config.storage)
    model_files.check_identity(source, identity, "clip")
    clip = load_clip(source.model, source.checkpoint, source.preprocess, device=device)
    region = config.model.uses_region
    views = config.clip.views if prompts is None else 1
    tower = ImageTower(clip, config.clip.cut)
    embed = Embed(tower, region=region, batch_size=config.clip.batch_size, views=views)
    if prompts is None:
        return embed, None
    model = PromptedCLIP(clip, load_tokenizer(source.model), prompts.settings).to(device)
    model.load_learned({name: torch.tensor(value) for name, value in prompts.state.items()})
    return embed, Classify(model, **vars(prompts.calibration), batch_size=config.clip.batch_size)
