"""Local files: what a location does on the local file system. Every write is atomic."""

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import pyarrow.fs as pafs
from filelock import FileLock

from medfocus.pipeline.data import local_tree
from medfocus.pipeline.data.local_tree import Entry, encoded

# Errors of file systems that have no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class LocalFiles:
    """The local file system of each machine that uses it. Paths may hold bytes that are not UTF-8."""

    @property
    def arrow_filesystem(self) -> pafs.FileSystem:
        """The file system for pyarrow."""
        return pafs.LocalFileSystem()

    def renew(self) -> None:
        """There is no connection."""

    def kind(self, path: str) -> str:
        """What is there: ``file``, ``folder``, ``other``, or an empty text for nothing."""
        try:
            mode = os.stat(encoded(path)).st_mode  # noqa: PTH116  a Path takes no bytes
        except (FileNotFoundError, NotADirectoryError):
            return ""
        if stat.S_ISDIR(mode):
            return "folder"
        return "file" if stat.S_ISREG(mode) else "other"

    def walk(self, path: str, skip: Callable[[str], bool]) -> Iterator[Entry]:
        """Entries of everything below a folder (see ``local_tree.walk``)."""
        return local_tree.walk(path, skip)

    def names(self, path: str, recursive: bool) -> Iterator[str]:
        """Names of the files below a folder, relative to it, in no order."""
        folders = [(path, "")]
        while folders:
            folder, prefix = folders.pop()
            try:
                iterator = os.scandir(folder)
            except FileNotFoundError:
                continue
            with iterator:
                for child in iterator:
                    if child.is_dir():
                        folders += [(child.path, f"{prefix}{child.name}/")] if recursive else []
                    elif child.is_file():
                        yield prefix + child.name

    def read(self, path: str, most: int | None) -> bytes:
        """The content of a file, or its first bytes."""
        with open(encoded(path), "rb") as file:  # noqa: PTH123  a Path takes no bytes
            return file.read(-1 if most is None else most)

    def open(self, path: str) -> RawIOBase:
        """A stream of a file's content."""
        return open(encoded(path), "rb", 0)  # noqa: PTH123  a Path takes no bytes; the caller closes it

    def stamp(self, path: str) -> str | None:
        """Text that changes with the file's content; None if there is no file."""
        try:
            status = os.stat(encoded(path))  # noqa: PTH116  a Path takes no bytes
        except FileNotFoundError:
            return None
        return local_tree.stamp_of(status)

    def write(self, path: str, content: bytes) -> None:
        """Write a file: its whole content is there at once."""
        with _draft(path, content) as draft:
            draft.replace(path)

    def upload(self, path: str, file: Path) -> None:
        """Copy a file here."""
        with _draft(path, file) as draft:
            draft.replace(path)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file if there is none: its whole content is there at once, and one of several writers wins."""
        with _draft(path, content) as draft:
            try:
                os.link(draft, path)
            except FileExistsError:
                return draft.stat().st_nlink > 1  # over NFS, the answer to a link that was made may be lost
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with _lock(path):
                    if os.path.lexists(path):
                        return False
                    draft.replace(path)
        return True

    def read_version(self, path: str) -> tuple[bytes, str]:
        """The content of a file, and the version that ``replace`` compares."""
        content = self.read(path, None)
        return content, _digest(content)

    def replace(self, path: str, content: bytes, version: str) -> bool:
        """Write a file if it is there and of this version; of several writers with the same version, one wins."""
        if not Path(path).exists():
            return False
        with _lock(path):
            try:
                current = self.read(path, None)
            except FileNotFoundError:
                return False
            if _digest(current) != version:
                return False
            self.write(path, content)
        return True

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with its content; it is no error if there is none."""
        kind = self.kind(path)
        if kind == "folder" and not Path(path).is_symlink():
            shutil.rmtree(path)
        elif kind:
            Path(path).unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lock(path: str) -> FileLock:
    """The lock of all conditional writes of a file; the operating system releases it when its holder ends."""
    return FileLock(Path(path).with_name(f".{Path(path).name}.lock"))


@contextmanager
def _draft(path: str, content: bytes | Path) -> Iterator[Path]:
    """A new file beside a path, with a content or a copy of a file's; it is removed if it is still there at the end."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as original:
                    shutil.copyfileobj(original, file, 1 << 22)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
