"""The settings of the check for burned-in text, and the templates of devices that write at fixed places."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

Action = Literal["quarantine", "black_out", "keep"]
Look = Literal["auto", "always", "never"]


class TemplateError(ValueError):
    """A file of templates that cannot be used; the message is one line with the mend."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Box(_Part):
    """A rectangle in pixels from the top left corner of the image; ``bottom`` and ``right`` are the first outside."""

    top: int = Field(ge=0)
    left: int = Field(ge=0)
    bottom: int
    right: int

    @model_validator(mode="after")
    def _has_pixels(self) -> "Box":
        if self.bottom <= self.top or self.right <= self.left:
            raise ValueError("a box must have its bottom below its top, and its right beyond its left")
        return self


class Template(_Part):
    """Where a device writes on its images.

    Texts are compared whole, without regard to case and to space around them. What is left out fits every image.

    Attributes:
        rows: height of the images in pixels.
        columns: width of the images in pixels.
        boxes: what is blacked out.
        manufacturer: value of Manufacturer (0008,0070).
        model: value of ManufacturerModelName (0008,1090).
        modality: value of Modality (0008,0060).
    """

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    boxes: tuple[Box, ...] = Field(min_length=1)
    manufacturer: str | None = None
    model: str | None = None
    modality: str | None = None

    @model_validator(mode="after")
    def _is_of_a_device(self) -> "Template":
        if self.manufacturer is None and self.model is None:
            raise ValueError("a template must name the manufacturer or the model")
        if any(box.bottom > self.rows or box.right > self.columns for box in self.boxes):
            raise ValueError("a box reaches beyond rows or columns")
        return self


@dataclass(frozen=True)
class BurnedInSettings:
    """Settings of ``stages.burned_in.BurnedInText``.

    Attributes:
        action: what happens to an image with text, or with the risk of text that nothing has looked for.
        ocr: ``auto`` looks at the images whose header signals a risk, if the extra is installed; ``always`` looks at
            every image; ``never`` at none.
        min_length: letters and digits of the shortest line that counts as text.
        templates: where devices write; used to black out.
    """

    action: Action = "quarantine"
    ocr: Look = "auto"
    min_length: int = 3
    templates: tuple[Template, ...] = ()


def read_templates(file: Path) -> tuple[Template, ...]:
    """Read a YAML file with a list of templates (docs/burned-in-text.md).

    Raises:
        TemplateError: the file cannot be read, or a template has a wrong or an unknown key.
    """
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TemplateError(f"{file}: no YAML file that can be read ({type(error).__name__}); correct it") from error
    try:
        return TypeAdapter(tuple[Template, ...]).validate_python(content or ())
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise TemplateError(f"{file}: {place}: {problem['msg']}; correct the template") from error
