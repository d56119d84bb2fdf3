"""The frozen models under the prompts: their settings, and what tells them from any others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from medfocus.pipeline.config import Config, Section
from medfocus.pipeline.data.commit import settings_key
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models import model_files

AnySection = TypeVar("AnySection", bound=Section)
# Set for a machine, not for a model: they change how fast, not what.
_OF_THE_MACHINE = {"weights", "sha256", "batch_size", "prompts_per_pass"}


@dataclass(frozen=True)
class Foundation:
    """The frozen models under the prompts: everything that decides masks and tokens."""

    segment: dict[str, Any]
    clip: dict[str, Any]
    sam2_identity: str
    clip_identity: str
    region: bool

    @classmethod
    def of(cls, config: Config) -> "Foundation":
        sam2 = model_files.resolve_sam2(config.segment, config.storage)
        clip = model_files.resolve_clip(config.clip, config.storage)
        return cls(
            segment=config.segment.model_dump(exclude=_OF_THE_MACHINE),
            clip=config.clip.model_dump(exclude=_OF_THE_MACHINE),
            sam2_identity=sam2.identity(),
            clip_identity=clip.identity(),
            region=config.model.focus in ("masked_image", "both"),
        )

    @property
    def key(self) -> str:
        """``model_key`` of feature rows."""
        return settings_key(vars(self))

    def adopt(self, config: Config) -> Config:
        """The configuration with the sections this foundation was made with.

        Raises:
            UsageError: the call asks for something else, or its weights are others.
        """
        adopted = config.model_copy(
            update={
                "segment": _merge(config.segment, self.segment, "segment"),
                "clip": _merge(config.clip, self.clip, "clip"),
            }
        )
        for name, source, identity in (
            ("segment", model_files.resolve_sam2(adopted.segment, config.storage), self.sam2_identity),
            ("clip", model_files.resolve_clip(adopted.clip, config.storage), self.clip_identity),
        ):
            if source.identity() != identity:
                raise UsageError(
                    f"{name}.weights: not the weights this was made with; set it to those, or start again at embed"
                )
        return adopted


def _merge(section: AnySection, recorded: Mapping[str, Any], name: str) -> AnySection:
    defaults = type(section)()
    for key, value in recorded.items():
        asked = getattr(section, key)
        if asked != value and asked != getattr(defaults, key):
            raise UsageError(
                f"{name}.{key}: {asked!r} asked, made with {value!r}; leave it out, or start again at embed"
            )
    return section.model_copy(update=dict(recorded))
