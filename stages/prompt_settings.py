"""What decides the shape and the meaning of the learned part of a model."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PromptSettings:
    """Classes, template, cut and sizes of the learned prompts; saved beside them as JSON."""

    classes: tuple[str, ...]
    template: str
    cut: int
    focus: str
    visual_prompts: int
    text_context: int
    class_context: bool
    class_offset: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PromptSettings":
        return cls(**(content | {"classes": tuple(content["classes"])}))

    @property
    def uses_region(self) -> bool:
        """Whether the tokens of the best region are needed."""
        return self.focus in ("masked_image", "both")
