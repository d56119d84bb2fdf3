"""Regular files below a local folder, each real file once; what cannot be used is told, and costs itself only."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Kind(Enum):
    """What an entry of a walk is."""

    FILE = "file"
    TROUBLE = "trouble"  # cannot be used
    REPEATED = "repeated"  # a link to what has another name, under which it is an entry of its own
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Entry:
    """What is below a folder.

    Args:
        name: place below the folder, with slashes; bytes of a local name that are not UTF-8 are lone surrogates, as
            with Python's ``surrogateescape``.
        kind: what it is.
        size: bytes of a file.
        error: class of the error of what cannot be used.
        message: what is wrong with it and what to do, without any name.
    """

    name: str
    kind: Kind = Kind.FILE
    size: int = 0
    error: str = ""
    message: str = ""


def encoded(path: str) -> bytes:
    """The bytes of a local path: the same ones in every locale."""
    return path.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    """The bytes of a name as a person reads them: UTF-8, else the 8-bit encoding of Windows, else Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return name.decode(encoding)
        except UnicodeDecodeError:
            continue
    return name.decode("latin-1")


def walk(folder: str, skip: Callable[[str], bool]) -> Iterator[Entry]:
    """Everything below a folder.

    Links are followed, after all that is there without them, in order of their names. A link into the folder, or to
    what an earlier link has led to, repeats; so does one to a folder that holds this one. No file is opened.

    Args:
        folder: absolute path.
        skip: whether to leave out what has this name (a single part of a path); of a folder, with all below it.

    Raises:
        OSError: the folder itself cannot be read.
    """
    top = os.path.realpath(encoded(folder), strict=True)
    os.scandir(top).close()
    return _Tree(top, skip).walk()


class _Tree:
    """The state of one walk: paths are bytes."""

    def __init__(self, top: bytes, skip: Callable[[str], bool]):
        self.top, self.skip = top, skip
        self.links: list[tuple[bytes, bytes]] = []  # place below the folder, and path
        self.walked: set[bytes] = set()  # real paths: folders that were walked from there on, files that links led to

    def walk(self) -> Iterator[Entry]:
        yield from self._below(self.top, b"")
        pending = sorted(self.links, reverse=True)
        while pending:
            place, link = pending.pop()
            self.links = []
            yield from self._behind(place, link)
            pending += sorted(self.links, reverse=True)

    def _below(self, top: bytes, prefix: bytes) -> Iterator[Entry]:
        """What is in a real folder and the real folders below it; links are put aside."""
        folders = [(top, prefix)]
        while folders:
            path, prefix = folders.pop()
            try:
                with os.scandir(path) as found:
                    children = sorted(found, key=lambda child: child.name)
            except OSError as error:
                yield _unreadable(prefix, error)
                continue
            for child in children:
                place = prefix + child.name
                if self.skip(_text(child.name)):
                    yield Entry(_text(place), Kind.SKIPPED)
                    continue
                try:
                    if child.is_symlink():
                        self.links.append((place, child.path))
                    elif child.path in self.walked:
                        yield Entry(_text(place), Kind.REPEATED)
                    elif child.is_dir(follow_symlinks=False):
                        folders.append((child.path, place + b"/"))
                    else:
                        yield _file(place, child.stat(follow_symlinks=False))
                except OSError as error:
                    yield _unreadable(place, error)
        self.walked.add(top)

    def _behind(self, place: bytes, link: bytes) -> Iterator[Entry]:
        """What a link leads to."""
        try:
            real = os.path.realpath(link, strict=True)
            status = os.stat(real)  # noqa: PTH116  a Path takes no bytes
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                message = "the link leads to nothing, or to itself; mend or remove it"
                yield Entry(_text(place), Kind.TROUBLE, 0, "BrokenLink", message)
            else:
                yield _unreadable(place, error)
            return
        if self._is_known(real):
            yield Entry(_text(place), Kind.REPEATED)
        elif stat.S_ISDIR(status.st_mode):
            yield from self._below(real, place + b"/")
        else:
            self.walked.add(real)
            yield _file(place, status)

    def _is_known(self, real: bytes) -> bool:
        """Whether a real path has an entry of its own, or holds the folder of this walk."""
        if self.top.startswith(real.rstrip(b"/") + b"/"):
            return True
        path, skipped = real, False
        while path not in self.walked:
            path, name = os.path.split(path)
            if not name:
                return False
            skipped = skipped or self.skip(_text(name))
        return not skipped


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _file(place: bytes, status: os.stat_result) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        return Entry(_text(place), Kind.FILE, status.st_size)
    name = _KINDS.get(kind, "no regular file")
    return Entry(_text(place), Kind.TROUBLE, 0, "NotAFile", f"it is {name}; store the image as a file")


def _unreadable(place: bytes, error: OSError) -> Entry:
    message = f"it cannot be read ({error.strerror}); correct its permissions or the storage and pack again"
    return Entry(_text(place), Kind.TROUBLE, 0, "Unreadable", message)
