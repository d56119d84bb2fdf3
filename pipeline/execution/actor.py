"""The actor of Ray Data that holds the models and commits the rows of a shard."""

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
from medfocus.pipeline.data.shared_paths import check_visible
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.job import JobSpec
from medfocus.pipeline.execution.write import commit_rows
from medfocus.pipeline.isolation.isolation import Isolation
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.prompts import Prompts
from medfocus.stages.batch import Batch, start
from medfocus.stages.segment import Segment
from medfocus.stages.weights import load_clip, load_sam2, load_tokenizer

if TYPE_CHECKING:
    from medfocus.stages.classify import Classify
    from medfocus.stages.embed import Embed

# Environment of an actor's process, which glibc reads when the process begins. Ray Data calls an actor from a thread,
# and glibc gives each thread a memory arena of its own. Such an arena returns the memory of a large tensor to the
# system as soon as it is freed, and mapping the pages again takes a fifth of the time of a full-size SAM2. The main
# arena keeps the memory.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


class ModelActor:
    """SAM2 and CLIP in one actor, which takes decoded shards, commits their rows, and returns their summaries.

    Pixels, tokens and rows stay in the process. A separate task that writes would be another process, which takes CPU
    time from the models even when it is idle.

    Args:
        job: specification of the job.
        share: the actor's share of the cluster.
        device: device of the models, ``cuda`` or ``cpu``.
        journal: handle of the run's journal.

    Raises:
        MedFocusError: the output is not visible on this node, the models are not those that the run was started with,
            or the device of the node is broken or absent.
    """

    def __init__(self, job: JobSpec, share: Share, device: str, journal: Any):
        if device == "cuda" and not torch.cuda.is_available():
            raise MedFocusError(
                f"node {platform.node()}: torch {torch.__version__} finds no CUDA device; install a torch with CUDA and"
                " a driver that fits it on the node, or set cluster.device=cpu"
            )
        torch.set_num_threads(share.threads)
        check_visible(job.output.prefix / RUN_FILE)
        self.job, self.journal = job, journal
        try:
            self.segment = load_segment(job.config, device, job.foundation.sam2_identity)
            self.embed, self.classify = load_embed(job.config, device, job.prompts, job.foundation.clip_identity)
            if ray.get(journal.device_errors.remote()):
                self._check_device()
        except Exception as error:
            if not is_device_error(error):
                raise
            raise MedFocusError(
                f"node {platform.node()}: its device fails in a new process, too ({reason(error)}); mend it or take"
                " the node out of the cluster, the same call goes on from here"
            ) from error

    def __call__(self, batch: Batch) -> dict[str, list]:
        """Process and commit one shard.

        Args:
            batch: decoded rows of the shard, as ``read_and_decode`` returns them.

        Returns:
            The summary of the shard, as ``commit_rows`` returns it.
        """
        segmented = Isolation("segment", self.journal)(self.segment, batch)
        return self._commit(Isolation("embed", self.journal)(self._embed, segmented))

    def _check_device(self) -> None:
        """Process one random image, so that a broken device raises its error before any row is in flight."""
        side = self.segment.size
        pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 1), np.uint8)
        sides = np.full(1, side, np.int32)
        image = {"image_id": np.array([""], object), "pixels": pixels, "height": sides, "width": sides}
        self._embed(self.segment(start(image)))

    def _embed(self, batch: Batch) -> Batch:
        embedded = self.embed(batch)
        return self.classify(embedded) if self.classify else embedded

    def _commit(self, batch: Batch) -> dict[str, list]:
        return commit_rows(batch, self.job.output, self.job.provenance)


def load_segment(config: Config, device: str, identity: str | None = None) -> Segment:
    """Load SAM2 with what finds regions by it.

    Args:
        config: the configuration; ``segment`` names the model.
        device: device of the model.
        identity: identity that the weights must have; None takes any.

    Raises:
        MedFocusError: the weights cannot be loaded, or have another identity.
    """
    source = model_files.resolve_sam2(config.segment, config.storage)
    model_files.check_identity(source, identity, "segment")
    sam2 = load_sam2(source.model, source.checkpoint, image_size=config.segment.image_size, device=device)
    return Segment(sam2, config.segment.settings)


def load_embed(
    config: Config, device: str, prompts: Prompts | None, identity: str | None = None
) -> "tuple[Embed, Classify | None]":
    """Load CLIP: the embed stage below the cut and, with prompts, the classify stage above it.

    Args:
        config: the configuration; ``clip`` names the model, ``model.focus`` says whether regions are embedded too.
        device: device of the model.
        prompts: learned prompts of the model that scores; None leaves the classify stage out.
        identity: identity that the weights must have; None takes any.

    Raises:
        MedFocusError: the weights cannot be loaded, or have another identity.
    """
    # Imported here: open_clip takes seconds to import, and the driver does not need it.
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
