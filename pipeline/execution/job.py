"""What a run does to shards, as it travels to every worker."""

from dataclasses import dataclass

from medfocus.pipeline.config import Config
from medfocus.pipeline.data.commit import Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.prompts import Prompts


@dataclass(frozen=True)
class Provenance:
    """What made the rows: a model version and its classes, or, for features, the ``model_key`` and no classes."""

    name: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobSpec:
    """What is done to shards: where they lie, where their rows go, and what makes these.

    Args:
        source: prefix of the shards.
        output: where their rows go.
        config: with absolute paths (``resolve_paths``), so that its names mean the same on every node.
        foundation: the frozen models that the run was started with.
        image_size: of the square images that SAM2 takes, in pixels.
        provenance: what made the rows.
        prompts: of the model that scores; None keeps features of the labelled rows instead.
    """

    source: Location
    output: Output
    config: Config
    foundation: Foundation
    image_size: int
    provenance: Provenance
    prompts: Prompts | None
