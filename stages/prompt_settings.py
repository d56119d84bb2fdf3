"""The settings that decide the shape and the meaning of the learned part of a model."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Focus = Literal["none", "masked_image", "attention", "both"]


@dataclass(frozen=True)
class FocusMode:
    """How a model uses the focus mask.

    Attributes:
        region: whether the square about the best region is a second view, whose tokens are features.
        attention: whether the attention of CLS is biased towards the mask.
    """

    region: bool
    attention: bool


# The focus modes: each name of ``Focus`` has an entry.
FOCUS_MODES: dict[str, FocusMode] = {
    "none": FocusMode(region=False, attention=False),
    "masked_image": FocusMode(region=True, attention=False),
    "attention": FocusMode(region=False, attention=True),
    "both": FocusMode(region=True, attention=True),
}


@dataclass(frozen=True)
class PromptSettings:
    """Settings of the learned prompts; a model stores them beside its tensors as JSON.

    Attributes:
        classes: names of the C classes, in the order of the probabilities.
        template: sentence of a class, with ``{}`` in the place of its name.
        cut: number of transformer blocks below the cut of the image tower.
        focus: name of the focus mode (``FOCUS_MODES``).
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
        return FOCUS_MODES[self.focus].region

    @property
    def uses_attention(self) -> bool:
        """Whether the model biases the attention of CLS."""
        return FOCUS_MODES[self.focus].attention
