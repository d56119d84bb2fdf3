"""Walks a local folder: yields each real file once, and an entry with the reason for what cannot be used."""

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
    """Kind of an entry of a walk."""

    FILE = "file"
    TROUBLE = "trouble"  # cannot be used
    REPEATED = "repeated"  # a link to something that has an entry under another name
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Entry:
    """An entry of a walk.

    Args:
        name: path relative to the folder, with slashes. Bytes of a local name that are not UTF-8 are lone surrogates,
            as with Python's ``surrogateescape``.
        kind: kind of the entry.
        size: size of a file in bytes.
        error: class of the error, if the kind is ``TROUBLE``.
        message: what is wrong and what to do, without any name, if the kind is ``TROUBLE``.
        stamp: text that changes with the content of a file, which is not opened for it; an empty text for what is none.
    """

    name: str
    kind: Kind = Kind.FILE
    size: int = 0
    error: str = ""
    message: str = ""
    stamp: str = ""


def encoded(path: str) -> bytes:
    """The bytes of a local path, which are the same in every locale."""
    return path.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    """The bytes of a name as readable text: as UTF-8, else in the 8-bit encoding of Windows, else as Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return name.decode(encoding)
        except UnicodeDecodeError:
            continue
    return name.decode("latin-1")


def stamp_of(status: os.stat_result) -> str:
    """Text that changes with the content of a file: its size and the time of its last change in nanoseconds."""
    return f"{status.st_size} {status.st_mtime_ns}"


def walk(folder: str, skip: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield an entry for everything below a folder. No file is opened.

    Links are followed, in the order of their names, after everything that is there without links. A link into the
    folder, to the target of an earlier link, or to a folder above is ``REPEATED``.

    Args:
        folder: absolute path of the folder.
        skip: whether to skip files and folders of this name (one part of a path). A folder is skipped with its content.

    Raises:
        OSError: the folder itself cannot be read.
    """
    top = os.path.realpath(encoded(folder), strict=True)
    os.scandir(top).close()
    return _Tree(top, skip).walk()


class _Tree:
    """State of one walk. Paths are bytes."""

    def __init__(self, top: bytes, skip: Callable[[str], bool]):
        self.top, self.skip = top, skip
        self.links: list[tuple[bytes, bytes]] = []  # path relative to the folder, and absolute path
        self.walked: set[bytes] = set()  # real paths of walked folders and of linked files

    def walk(self) -> Iterator[Entry]:
        """Yield all entries."""
        yield from self._below(self.top, b"")
        pending = sorted(self.links, reverse=True)
        while pending:
            place, link = pending.pop()
            self.links = []
            yield from self._target(place, link)
            pending += sorted(self.links, reverse=True)

    def _below(self, top: bytes, prefix: bytes) -> Iterator[Entry]:
        """Entries of a real folder and of the real folders below it; links are collected in ``links``."""
        folders = [(top, prefix)]
        while folders:
            path, prefix = folders.pop()
            try:
                with os.scandir(path) as iterator:
                    children = sorted(iterator, key=lambda child: child.name)
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

    def _target(self, place: bytes, link: bytes) -> Iterator[Entry]:
        """Entries of the target of a link."""
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
        """Whether a real path has an entry already, or is a folder above the walked one."""
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
        return Entry(_text(place), Kind.FILE, status.st_size, stamp=stamp_of(status))
    name = _KINDS.get(kind, "no regular file")
    return Entry(_text(place), Kind.TROUBLE, 0, "NotAFile", f"it is {name}; store the image as a file")


def _unreadable(place: bytes, error: OSError) -> Entry:
    message = f"it cannot be read ({error.strerror}); correct its permissions or the storage and pack again"
    return Entry(_text(place), Kind.TROUBLE, 0, "Unreadable", message)
