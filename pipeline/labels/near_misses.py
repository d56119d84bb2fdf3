"""Tells how names and ids that name no image differ from those that do, without telling any of them."""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import NamedTuple

from medfocus.pipeline.labels.ids import Key
from medfocus.pipeline.labels.items import Items, Pseudonym
from medfocus.pipeline.labels.names import fold, path_of, strip_suffix


class NearMiss(Enum):
    """How a name or an id differs from one of the archive; the text says what to do."""

    ROUNDED = "a spreadsheet rounded a long number; format the column as text before the numbers are put in"
    ZEROS = "leading zeros differ; spreadsheets drop them unless the column is formatted as text"
    CASE = "the letter case differs; write the ids as the headers have them"
    FOLDER = "a file of this name is in another folder; write its path below the source"
    SUFFIX = "a file of this name has another suffix; write the suffix of the file"
    SIGNS = "blanks, hyphens or dots differ; write them as the archive has them"
    LETTERS = "few letters differ from a name of the archive; check the spelling"


class Miss(NamedTuple):
    """A name or an id that names no image.

    Args:
        line: line of the label file.
        key: the key that it was looked up by; None for a name of a file.
        text: the name or the id.
    """

    line: int
    key: Key | None
    text: str


# Most misses that are looked into, most that are compared letter by letter, and most items they are compared with.
_MOST, _MOST_BY_LETTERS, _MOST_ITEMS = 1000, 20, 2000
_LONGEST_NUMBER = 16
_EXPONENT = re.compile(r"\d([.,]\d+)?e\+\d+", re.IGNORECASE)
# A spreadsheet keeps fifteen digits of a number.
_FIFTEEN_DIGITS = re.compile(r"[1-9]\d{14}0+")
# How a name of a file is reduced to what it has in common with a near one, the closest first.
_REDUCTIONS: tuple[tuple[NearMiss, Callable[[str], str]], ...] = (
    (NearMiss.FOLDER, lambda name: name),
    (NearMiss.SUFFIX, strip_suffix),
    (NearMiss.ZEROS, lambda name: re.sub(r"(?<!\d)0+(?=\d)", "", strip_suffix(name))),
    (NearMiss.SIGNS, lambda name: re.sub(r"[\W_]", "", strip_suffix(name))),
)


def find_near_misses(misses: Sequence[Miss], items: Items, pseudonym: Pseudonym) -> dict[NearMiss, list[int]]:
    """Find how names and ids differ from near ones of the archive.

    Args:
        misses: the names and ids that name no image; the first thousand are looked into.
        items: gives every item.
        pseudonym: gives the pseudonym of an id.

    Returns:
        Lines by kind, without the lines that are near to nothing.
    """
    kinds: dict[int, NearMiss] = {}
    names: dict[int, str] = {}
    ids: dict[str, list[tuple[int, Key, NearMiss]]] = defaultdict(list)
    for line, key, text in misses[:_MOST]:
        if key is None:
            names[line] = _base_name(text)
        elif _EXPONENT.fullmatch(text) or _FIFTEEN_DIGITS.fullmatch(text):
            kinds[line] = NearMiss.ROUNDED
        else:
            for kind, variant in _variants(text):
                ids[pseudonym(key.kind, variant)].append((line, key, kind))
    kinds |= _near_ids(ids, items) if ids else {}
    kinds |= _near_names(names, items) if names else {}
    lines: dict[NearMiss, list[int]] = defaultdict(list)
    for line, kind in sorted(kinds.items()):
        lines[kind].append(line)
    return dict(lines)


def _variants(text: str) -> Iterator[tuple[NearMiss, str]]:
    """Other spellings of an id that the archive may have."""
    if text.isdecimal():
        bare = text.lstrip("0")
        lengths = range(max(len(bare), 1), _LONGEST_NUMBER + 1)
        yield from ((NearMiss.ZEROS, bare.zfill(length)) for length in lengths if length != len(text))
    for other in {text.upper(), text.lower()} - {text}:
        yield NearMiss.CASE, other
    if (other := re.sub(r"[\W_]", "", text)) != text:
        yield NearMiss.SIGNS, other


def _near_ids(ids: Mapping[str, Sequence[tuple[int, Key, NearMiss]]], items: Items) -> dict[int, NearMiss]:
    """Kind of each line whose id has a variant in the archive."""
    kinds: dict[int, NearMiss] = {}
    keys = {key for wanted in ids.values() for _, key, _ in wanted}
    for item in items():
        for own in keys:
            for line, key, kind in ids.get(own.of_item(item) or "", ()):
                if key == own:
                    kinds.setdefault(line, kind)
    return kinds


def _near_names(names: Mapping[int, str], items: Items) -> dict[int, NearMiss]:
    """Kind of each line whose name is near to that of a file; the closest where there are several."""
    wanted: list[dict[str, list[int]]] = [defaultdict(list) for _ in _REDUCTIONS]
    for line, name in names.items():
        for lines, (_, reduce) in zip(wanted, _REDUCTIONS, strict=True):
            lines[reduce(name) or name].append(line)
    ranks: dict[int, int] = {}
    some: list[str] = []
    for item in items():
        own = _base_name(item.path)
        some += [own] if len(some) < _MOST_ITEMS else []
        for rank, (_, reduce) in enumerate(_REDUCTIONS):
            for line in wanted[rank].get(reduce(own) or own, ()):
                ranks[line] = min(rank, ranks.get(line, rank))
    left = islice((line for line in names if line not in ranks), _MOST_BY_LETTERS)
    slips = {line: NearMiss.LETTERS for line in left if _is_slip(names[line], some)}
    return {line: _REDUCTIONS[rank][0] for line, rank in ranks.items()} | slips


def _is_slip(name: str, others: Sequence[str]) -> bool:
    """Whether few letters of a name differ from another; another number is another image, not a slip."""
    alike = [other for other in others if _digits(other) == _digits(name)]
    return bool(difflib.get_close_matches(name, alike, n=1, cutoff=0.85))


def _digits(name: str) -> str:
    return re.sub(r"\D", "", name)


def _base_name(path: str) -> str:
    return fold(path_of(path)).rpartition("/")[2]
