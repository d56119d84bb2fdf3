"""The settings that decide the shape and the meaning of the learned part of a model."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PromptSettings:
    """Settings of the learned prompts; a model stores them beside its tensors as JSON.

    Attributes:
        classes: names of the C classes, in the order of the probabilities.
        template: sentence of a class, with ``{}`` in the place of its name.
        cut: number of transformer blocks below the cut of the image tower.
        focus: how the focus mask is used: ``none``, ``masked_image``, ``attention`` or ``both``.
        visual_prompts: learned visual tokens in each block above the cut.
        text_context: learned context tokens in front of a sentence.
        class_context: whether each class has a text context of its own.
        class_offset: whether each class's embedding has a learned offset.
    """

    classes: tuple[str, ...]
    template: str
    cut: int
    focus: str
    visual_prompts: int
    text_context: int
    class_context: bool
    class_offset: bool

    def to_json(self) -> dict[str, Any]:
        """The settings as a dict that JSON can hold."""
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PromptSettings":
        """The settings that ``to_json`` gave."""
        return cls(**(content | {"classes": tuple(content["classes"])}))

    @property
    def uses_region(self) -> bool:
        """Whether the model needs the tokens of the best region."""
        return self.focus in ("masked_image", "both")
