"""The frozen models under the prompts: their settings and their identities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from medfocus.pipeline.config import Config, Section
from medfocus.pipeline.data.commit import settings_key
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models import model_files

AnySection = TypeVar("AnySection", bound=Section)
# Settings of a machine: they change the speed or the place of files, not the masks and tokens.
_MACHINE_SETTINGS = {"weights", "sha256", "batch_size", "prompts_per_pass"}


@dataclass(frozen=True)
class Foundation:
    """SAM2 and CLIP with their settings: everything that decides masks and tokens.

    Args:
        segment: settings of the section ``segment`` that decide the masks.
        clip: settings of the section ``clip`` that decide the tokens.
        sam2_identity: identity of SAM2 (``ModelFiles.identity``).
        clip_identity: identity of CLIP.
        region: whether tokens of the region are computed beside those of the whole image.
    """

    segment: dict[str, Any]
    clip: dict[str, Any]
    sam2_identity: str
    clip_identity: str
    region: bool

    @classmethod
    def of(cls, config: Config) -> "Foundation":
        """The foundation that a configuration names; fetches the models where needed.

        Args:
            config: ``segment``, ``clip``, ``model.focus`` and ``storage``.

        Raises:
            UsageError: a model does not exist.
        """
        sam2 = model_files.resolve_sam2(config.segment, config.storage)
        clip = model_files.resolve_clip(config.clip, config.storage)
        return cls(
            segment=config.segment.model_dump(exclude=_MACHINE_SETTINGS),
            clip=config.clip.model_dump(exclude=_MACHINE_SETTINGS),
            sam2_identity=sam2.identity(),
            clip_identity=clip.identity(),
            region=config.model.uses_region,
        )

    @property
    def key(self) -> str:
        """SHA-256 of the settings and identities: the ``model_key`` of feature rows."""
        return settings_key(vars(self))

    def adopt(self, config: Config) -> Config:
        """The configuration with the settings of this foundation.

        Args:
            config: the configuration of the call; ``segment`` and ``clip`` are replaced.

        Raises:
            UsageError: the call sets one of the settings to another value, or its weights are others.
        """
        adopted = config.model_copy(
            update={
                "segment": _merge(config.segment, self.segment, "segment"),
                "clip": _merge(config.clip, self.clip, "clip"),
            }
        )
        for name, model, identity in (
            ("segment", model_files.resolve_sam2(adopted.segment, config.storage), self.sam2_identity),
            ("clip", model_files.resolve_clip(adopted.clip, config.storage), self.clip_identity),
        ):
            if model.identity() != identity:
                raise UsageError(
                    f"{name}.weights: not the weights this was made with; set it to those, or start again at embed"
                )
        return adopted


def _merge(section: AnySection, recorded: Mapping[str, Any], name: str) -> AnySection:
    """The section with the recorded values; UsageError where the call sets another value than the default."""
    defaults = type(section)()
    for key, value in recorded.items():
        requested = getattr(section, key)
        if requested != value and requested != getattr(defaults, key):
            raise UsageError(
                f"{name}.{key}: {requested!r} asked, made with {value!r}; leave it out, or start again at embed"
            )
    return section.model_copy(update=dict(recorded))
