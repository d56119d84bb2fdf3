"""Finds pictures that an archive has twice: the same pixels, and pixels that look alike.

Of the same pictures one is kept, so that no picture is in two splits. Pictures that look alike are counted only: slices
of one body do.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from medfocus.pipeline.console.logs import event, log
from medfocus.stages.likeness import BLANK

# Pictures whose perceptual hashes differ in at most so many of 64 bits look alike.
NEAR = 4
# Bits of the parts of a hash. Of six parts, two at least are equal where at most four bits differ. Pictures that look
# alike hence agree in at least one of the fifteen pairs of parts.
_PARTS = (11, 11, 11, 11, 10, 10)
# Pairs of hashes that are compared at a time.
_PAIRS = 1 << 20


class PackedPicture(NamedTuple):
    """A picture of an archive.

    Args:
        image_id: its name.
        digest: ``likeness.pixels_digest`` of it.
        likeness: ``likeness.perceptual_hash`` of it.
        patient_id: its patient; None where not known.
        label: its class; None where it has none.
        version: version of the manifest that has it first; what was kept in an earlier one stays.
    """

    image_id: str
    digest: str
    likeness: str
    patient_id: str | None = None
    label: str | None = None
    version: int = 0


@dataclass(frozen=True)
class Duplicates:
    """Pictures that an archive has twice.

    Args:
        kept: ``image_id`` of the picture that is kept, by that of each picture with the same pixels that is not.
        near: number of different pictures that look like another one.
        of_several_patients: number of different pictures that are of several patients by their headers or labels;
            pictures of one colour are not counted.
        of_several_labels: number of different pictures with several classes, counted in the same way.
    """

    kept: Mapping[str, str]
    near: int
    of_several_patients: int
    of_several_labels: int

    def log(self) -> None:
        """Log counts, and each doubt in one line."""
        event("duplicates", same_pixels=len(self.kept), look_alike=self.near)
        if self.of_several_patients:
            log.warning(
                "%d pictures are there for several patients; one copy of each is kept, check the patients",
                self.of_several_patients,
            )
        if self.of_several_labels:
            log.warning(
                "%d pictures are there with several classes; one copy of each is kept, check the labels",
                self.of_several_labels,
            )

    def as_json(self) -> dict[str, Any]:
        """The counts, for ``--json``."""
        return {
            "same_pixels": len(self.kept),
            "look_alike": self.near,
            "of_several_patients": self.of_several_patients,
            "of_several_labels": self.of_several_labels,
        }


def find_duplicates(pictures: Callable[[], Iterable[PackedPicture]]) -> Duplicates:
    """Find the pictures that an archive has twice.

    Of the same pictures, one that was kept in an earlier version is kept; else one with a label, then one with a
    patient, then the one whose ``image_id`` is the smallest.

    Args:
        pictures: gives every picture, twice; 24 bytes of each are held in memory, and all of those that are the same.
    """
    high, low, hashes = _compact(pictures())
    order = np.lexsort((low, high))
    again = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    first = np.concatenate([[True], ~again])[: len(order)]
    repeated = {(int(high[place]), int(low[place])) for place in order[1:][again]}
    groups: dict[tuple[int, int], list[PackedPicture]] = defaultdict(list)
    for picture in pictures() if repeated else ():
        if (digest := _halves(picture.digest)) in repeated:
            groups[digest].append(picture)
    kept: dict[str, str] = {}
    for members in groups.values():
        members.sort(key=lambda one: (one.version, one.label is None, one.patient_id is None, one.image_id))
        kept |= {other.image_id: members[0].image_id for other in members[1:]}
    shown = [members for members in groups.values() if members[0].likeness not in BLANK]
    return Duplicates(
        kept,
        count_near(hashes[order[first]]),
        sum(_differ(picture.patient_id for picture in members) for members in shown),
        sum(_differ(picture.label for picture in members) for members in shown),
    )


def count_near(hashes: np.ndarray) -> int:
    """Number of hashes that have another one within ``NEAR`` bits.

    Args:
        hashes: uint64 [N], perceptual hashes of N different pictures.
    """
    different, counts = np.unique(hashes, return_counts=True)
    near = counts > 1
    for mask in _masks():
        keys = different & mask
        order = np.argsort(keys, kind="stable")
        for one, other in _pairs_of_equal(keys[order]):
            one, other = order[one], order[other]
            close = np.bitwise_count(different[one] ^ different[other]) <= NEAR
            near[one[close]] = near[other[close]] = True
    return int(counts[near].sum())


def _compact(pictures: Iterable[PackedPicture]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first 128 bits of each digest as two halves, and each hash; uint64 [N] each."""
    rows = ((*_halves(picture.digest), int(picture.likeness, 16)) for picture in pictures)
    table = np.fromiter(rows, [("high", "u8"), ("low", "u8"), ("hash", "u8")])
    return table["high"], table["low"], table["hash"]


def _halves(digest: str) -> tuple[int, int]:
    return int(digest[:16], 16), int(digest[16:32], 16)


def _masks() -> Iterator[np.uint64]:
    """Masks of two parts of a hash each."""
    ends = np.cumsum(_PARTS)
    parts = [((1 << int(bits)) - 1) << int(end - bits) for bits, end in zip(_PARTS, ends, strict=True)]
    for one, other in combinations(parts, 2):
        yield np.uint64(one | other)


def _pairs_of_equal(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places whose keys are equal, in pieces of bounded size.

    Args:
        keys: sorted keys.
    """
    starts = np.append(np.flatnonzero(np.diff(keys, prepend=~keys[:1])), len(keys))
    ends = np.repeat(starts[1:], np.diff(starts))
    after = ends - np.arange(len(keys)) - 1  # number of equal keys that follow each
    totals = np.cumsum(after)
    first = 0
    while first < len(keys):
        base = totals[first - 1] if first else 0
        last = max(int(np.searchsorted(totals, base + _PAIRS, side="right")), first + 1)
        sizes = after[first:last]
        one = np.repeat(np.arange(first, last), sizes)
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield one, one + 1 + offsets
        first = last


def _differ(values: Iterable[Hashable]) -> bool:
    return len({value for value in values if value is not None}) > 1
