"""Values of DICOM attributes, whatever a writer has put there.

The errors name the attribute, never its value.
"""

import math
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items

from medfocus.stages.formats.picture import ImageError


def value_of(header: Dataset, keyword: str) -> Any:
    """The value of an attribute; None where it is missing or empty.

    Raises:
        ImageError: Undecodable where the value does not fit its type.
    """
    try:
        value = header.get(keyword)
    except Exception as error:  # pydicom converts values when they are read, with errors of any class
        raise _damaged(keyword) from error
    return None if value is None or (isinstance(value, str | bytes | Sequence) and len(value) == 0) else value


def text_of(header: Dataset, keyword: str) -> str:
    """The text of an attribute without blanks around it; of several values, the first. Empty where it is missing."""
    value = value_of(header, keyword)
    value = value[0] if isinstance(value, MultiValue) else value
    return "" if value is None else str(value).strip(" \0")


def numbers_of(header: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """The finite numbers of an attribute; None where it is missing, or has not ``count`` values where that is given.

    Raises:
        ImageError: Undecodable where a value is no finite number.
    """
    value = value_of(header, keyword)
    if value is None:
        return None
    values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    try:
        numbers = tuple(float(item) for item in values)
    except (TypeError, ValueError) as error:
        raise _damaged(keyword) from error
    if not all(math.isfinite(number) for number in numbers):
        raise _damaged(keyword)
    return None if count is not None and len(numbers) != count else numbers


def number_of(header: Dataset, keyword: str) -> float | None:
    """The number of an attribute; of several values, the first. None where it is missing."""
    numbers = numbers_of(header, keyword)
    return numbers[0] if numbers else None


def whole_number_of(header: Dataset, keyword: str) -> int | None:
    """The whole number of an attribute; None where it is missing.

    Raises:
        ImageError: Undecodable where the value is no whole number.
    """
    numbers = numbers_of(header, keyword)
    if numbers is None:
        return None
    if len(numbers) != 1 or not numbers[0].is_integer():
        raise _damaged(keyword)
    return int(numbers[0])


def items_of(header: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; none where it is missing.

    Raises:
        ImageError: Undecodable where the attribute is no sequence.
    """
    value = value_of(header, keyword)
    if value is None:
        return ()
    if not isinstance(value, Items):
        raise _damaged(keyword)
    return value


def _damaged(keyword: str) -> ImageError:
    """The error of an attribute whose value cannot be read."""
    return ImageError("Undecodable", f"the value of the attribute {keyword} is damaged or of a wrong type")
