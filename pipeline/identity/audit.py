"""Evidence: which attributes were removed and how often, without a value."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from medfocus.pipeline.identity import attributes  # noqa: F401  silences pydicom
from medfocus.pipeline.identity.allowed import ALLOWED
from medfocus.pipeline.identity.private_file import private_file

_FORMS = {allowed.keyword: allowed.form for allowed in ALLOWED}
# Forms of values that are read from sequences too: laterality and spacing of enhanced objects.
_NESTED_FORMS = ("term", "number")
# Attributes of the pixels, which become the picture, and the structure of the file.
_PIXELS = frozenset(("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
_MERGING = Lock()


@dataclass
class Audit:
    """Counts of attributes, over all objects that were added.

    Workers make one each, and ``merge`` adds them up.

    Attributes:
        objects: number of DICOM objects.
        removed: how often an attribute with a value was removed, by keyword. Attributes in sequences count. All private
            attributes count as ``private``, those of no dictionary as ``unknown``, those before the header as
            ``preamble``.
        released: how often an attribute left, in the form of ``allowed.ALLOWED``. A value that its closed list lacks
            counts too, although nothing of it left.
    """

    objects: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    released: Counter[str] = field(default_factory=Counter)

    def add(self, header: Dataset) -> None:
        """Count the attributes of an object.

        Args:
            header: with its file meta information and preamble, where the file has them.
        """
        removed: Counter[str] = Counter()
        released: Counter[str] = Counter()
        if any(getattr(header, "preamble", None) or b""):
            removed["preamble"] += 1
        removed.update(keyword for keyword, _ in _keywords(getattr(header, "file_meta", None) or Dataset()))
        for keyword, depth in _keywords(header):
            leaves = _FORMS.get(keyword) in (_NESTED_FORMS if depth else _FORMS.values())
            (released if leaves else removed)[keyword] += 1
        self.merge(Audit(1, removed, released))

    def merge(self, other: "Audit") -> None:
        """Add the counts of another audit; threads may do so at once."""
        with _MERGING:
            self.objects += other.objects
            self.removed.update(other.removed)
            self.released.update(other.released)

    def to_json(self) -> str:
        """The counts by keyword, in alphabetical order."""
        content = {"objects": self.objects, "removed": self.removed, "released": self.released}
        return json.dumps(content, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Audit":
        """The audit that ``to_json`` wrote."""
        content = json.loads(text)
        return cls(content["objects"], Counter(content["removed"]), Counter(content["released"]))

    def write(self, path: str | Path) -> None:
        """Write the counts as a JSON file that its owner alone can read.

        Raises:
            UsageError: the file cannot be written.
        """
        with private_file(path) as stream:
            stream.write(self.to_json().encode() + b"\n")


def _keywords(dataset: Dataset, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The keyword of each attribute that has a value, and how many sequences it is in."""
    for tag in dataset.keys():  # noqa: SIM118  iterating a Dataset would convert its values
        if tag.is_private:
            yield "private", depth
            continue
        element = dataset.get_item(tag, keep_deferred=True)
        keyword, _ = _entry(tag)
        if keyword not in _PIXELS and _has_value(element):
            yield keyword, depth
        for item in _items(dataset, tag, element):
            yield from _keywords(item, depth + 1)


def _items(dataset: Dataset, tag: BaseTag, element: DataElement | RawDataElement) -> list[Dataset]:
    """The items of a sequence; none for another attribute, or where the sequence is damaged."""
    try:
        if isinstance(element, RawDataElement):
            if (element.VR or _entry(tag)[1]) != "SQ":
                return []
            element = dataset[tag]
        return list(element.value) if isinstance(element.value, Sequence) else []
    except Exception:  # pydicom's converters raise errors of any class on damaged values
        return []


@lru_cache(1 << 14)
def _entry(tag: BaseTag) -> tuple[str, str]:
    """Keyword and value representation of a tag."""
    keyword = keyword_for_tag(tag)
    return (keyword, dictionary_VR(tag)) if keyword else ("unknown", "UN")


def _has_value(element: DataElement | RawDataElement) -> bool:
    """Whether an element, converted or not, has a value."""
    return element.length != 0 if isinstance(element, RawDataElement) else not element.is_empty
