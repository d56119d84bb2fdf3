"""``medfocus verify-deid``: searches shards, the work folder and the tracking store for planted identity."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import log, show
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import MedFocusError, UsageError, before_start
from medfocus.pipeline.identity.contents import pieces_of
from medfocus.pipeline.identity.key import KEY_FILE
from medfocus.pipeline.identity.needles import read_needles
from medfocus.pipeline.identity.search import Search

# What of the work folder holds originals by intent, for its owner alone: the key, and the catalog of a stopped pack.
_PRIVATE = (KEY_FILE, "pack/")
# Places that are printed; all are counted.
_MOST_LINES = 100


def run(config: Config, shards: str, planted: str) -> dict[str, Any]:
    """Search for names, ids and dates that were planted in a source, and print where they are.

    Every file below the shards and the work folder is searched, and the tracking store where it is SQLite: its name,
    its bytes, and what is compressed in it (``identity.contents``). One file at a time is in memory. A needle is named
    by its number, never by its value.

    Args:
        config: the configuration; ``work`` is the folder of logs and of the tracking store.
        shards: prefix that ``pack`` wrote.
        planted: file with the needles (``identity.needles``).

    Returns:
        ``needles`` searched, in how many ``forms``, how many are ``short``, ``files`` and ``bytes`` searched, and
        ``unread``, the number of compressed parts that are damaged or encrypted.

    Raises:
        UsageError: there are no needles, or no such shards.
        MedFocusError: a needle was found.
    """
    with before_start():
        file = Path(planted).expanduser().absolute()
        needles = read_needles(file)
        prefix = locate(shards, config.storage)
        if not prefix.is_folder():
            raise UsageError(f"{prefix.uri}: nothing is there; give a prefix that pack wrote")
    search, files, size, unread = Search(needles), 0, 0, 0
    found: set[tuple[int, str]] = set()
    for folder, name in _files(config, prefix, str(file)):
        content = (folder / name).read()
        files, size = files + 1, size + len(content)
        for number, place in _places(search, folder, name, content):
            if number is None:
                unread += 1
                continue
            if (number, place) not in found and len(found) < _MOST_LINES:
                show(f"needle {number:>5} is in {place}")
            found.add((number, place))
    if unread:
        log.warning(
            "%d compressed parts are damaged or encrypted, and were searched as the bytes that they are", unread
        )
    numbers = {number for number, _ in found}
    show(
        f"{len(needles)} needles in {search.forms} forms, {search.short} of them short, searched in {size} bytes of"
        f" {files} files: {len(numbers)} found"
    )
    if found:
        raise MedFocusError(
            f"{len(numbers)} of {len(needles)} needles were found in {len(found)} places; keep {prefix.uri} back, and"
            " remove what the lines above name"
        )
    counts = {"needles": len(needles), "forms": search.forms, "short": search.short}
    return counts | {"files": files, "bytes": size, "unread": unread}


def _places(search: Search, folder: Location, name: str, content: bytes) -> Iterator[tuple[int | None, str]]:
    """The number of a needle and the place, for each that is in the name or the content of a file.

    The number is None for a place that cannot be read.
    """
    shown = f"{folder.uri}/{_without_needles(name, search)}"
    for number, _, _ in search.find(os.fsencode(name), text=True):
        yield number, f"name of {shown}"
    for piece in pieces_of(content):
        if piece.unread:
            yield None, shown
        for number, start, stop in search.find(piece.content, text=piece.text):
            where = piece.where(start, stop)
            if where is not None:
                yield number, f"{shown}: {where}" if where else shown


def _files(config: Config, prefix: Location, planted: str) -> Iterator[tuple[Location, str]]:
    """The files to search, each once, as a folder and a name below it; those with originals are left out."""
    work = locate(config.work, config.storage)
    places = [(prefix, name) for name in prefix.files(recursive=True)]
    places += [(work, name) for name in work.files(recursive=True) if not name.startswith(_PRIVATE)]
    if database := _tracking_database():
        places.append((locate(str(database.parent), config.storage), database.name))
    seen = {planted}
    for folder, name in places:
        if (path := (folder / name).path) not in seen:
            seen.add(path)
            yield folder, name


def _tracking_database() -> Path | None:
    """The file of a tracking store that MLFLOW_TRACKING_URI names; says so where the store is a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    if uri.startswith("sqlite"):
        return Path(sqlalchemy.make_url(uri).database or "").absolute()
    log.warning("the tracking store %s is a server, and is not searched", without_credentials(uri))
    return None


def _without_needles(name: str, search: Search) -> str:
    """A name whose needles are replaced by their numbers."""
    content = os.fsencode(name)
    for number, start, stop in sorted(search.find(content, text=True), key=lambda hit: -hit[1]):
        content = content[:start] + f"[needle {number}]".encode() + content[stop:]
    return content.decode(errors="replace")
