"""The specification of a job over shards, which travels to every worker."""

from dataclasses import dataclass

from medfocus.pipeline.config import Config
from medfocus.pipeline.data.commit import Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.prompts import Prompts


@dataclass(frozen=True)
class Provenance:
    """What produces the rows of a job.

    Args:
        name: version of the model that scores; for features, their ``model_key``.
        classes: classes of the model; empty for features.
    """

    name: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobSpec:
    """What is done to shards.

    Args:
        source: prefix of the shards.
        output: prefix that the rows are written to.
        config: the configuration, with absolute paths (``resolve_paths``), so that they mean the same on every node.
        foundation: identities of the frozen models when the run was started.
        image_size: side of the square images that SAM2 takes, in pixels.
        provenance: what produces the rows.
        prompts: learned prompts of the model that scores; None stores features of the labelled rows instead.
    """

    source: Location
    output: Output
    config: Config
    foundation: Foundation
    image_size: int
    provenance: Provenance
    prompts: Prompts | None
