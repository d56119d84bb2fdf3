"""Look-up tables of DICOM: the Modality LUT and the VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1)."""

from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from medfocus.stages.dicom.attributes import numbers_of, value_of
from medfocus.stages.formats.picture import ImageError

_MOST_ENTRIES = 1 << 16
_MOST_BITS = 16


@dataclass(frozen=True, eq=False)
class LookUp:
    """A table that maps whole numbers.

    Attributes:
        first: the input that the first entry belongs to. Smaller inputs have the first entry, large ones the last.
        entries: float64 [n].
        full: the largest value that an entry may have.
    """

    first: int
    entries: np.ndarray
    full: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Look up values, rounded to whole numbers; float64 of the same shape."""
        places = np.clip(np.rint(np.nan_to_num(values)) - self.first, 0, len(self.entries) - 1)
        found: np.ndarray = self.entries[places.astype(np.intp)]
        return found


def lookup_of(item: Dataset, *, signed: bool, little: bool) -> LookUp:
    """Read a table from an item of a Modality LUT Sequence or a VOI LUT Sequence.

    Args:
        item: has LUT Descriptor and LUT Data.
        signed: whether the inputs may be negative.
        little: whether words of the file are little endian.

    Raises:
        ImageError: Undecodable where the table is damaged.
    """
    descriptor, data = numbers_of(item, "LUTDescriptor", 3), value_of(item, "LUTData")
    if descriptor is None or data is None:
        raise ImageError("Undecodable", "a look-up table has no descriptor or no data")
    count = int(descriptor[0]) & 0xFFFF or _MOST_ENTRIES
    first = int(descriptor[1])
    if signed and first > 0x7FFF:
        first -= 1 << 16
    elif not signed:
        first &= 0xFFFF
    bits = int(descriptor[2])
    entries = _entries(data, count, little)
    if not 1 <= bits <= _MOST_BITS or len(entries) < count:
        raise ImageError("Undecodable", f"a look-up table of {count} entries of {bits} bits holds {len(entries)}")
    entries = entries[:count]
    full = max(2**bits - 1, 2 ** int(entries.max()).bit_length() - 1)  # some writers name too few bits
    return LookUp(first, entries.astype(np.float64), float(full))


def _entries(data: object, count: int, little: bool) -> np.ndarray:
    """The entries of a table, which may be bytes, words, or two entries in each word."""
    if not isinstance(data, bytes):
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
        return words if len(words) >= count else words.astype("<u2").view(np.uint8)
    if len(data) < 2 * count:
        return np.frombuffer(data, np.uint8)
    return np.frombuffer(data, "<u2" if little else ">u2", count)
