"""What the sections of the configuration have in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from medfocus.pipeline.yaml_text import NullText


class Section(BaseModel):
    """A part of the configuration. Keys that are not declared are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _null(cls, value: Any, info: ValidationInfo) -> Any:
        """No value where a key takes none; ``null`` is a text like any other for a key that needs one."""
        if not isinstance(value, NullText):
            return value
        takes_none = type(None) in get_args(cls.model_fields[str(info.field_name)].annotation)
        return None if takes_none or not value else str(value)
