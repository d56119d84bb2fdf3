"""Objects: what a location does in an object store, through fsspec; S3 has its own listings and conditional writes."""

import hashlib
import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec import AbstractFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from medfocus.pipeline.data.local_tree import Entry, Kind
from medfocus.pipeline.data.object_stores import StoreAddress
from medfocus.pipeline.data.storage_errors import error_codes

# Bytes of a part of an upload, and parts at a time.
PART, PARTS = 1 << 24, 4
# Bytes of a request of a stream.
_BLOCK = 1 << 23
# Errors of an answer that ends in its middle, which botocore does not try again.
_CUT = {"ClientPayloadError", "ResponseStreamingError", "IncompleteReadError", "ServerDisconnectedError"}
# Codes of a request for bytes beyond the end.
_NO_SUCH_RANGE = {"InvalidRange", "416"}
# What changes with an object's content, in fsspec's information about it, by the library; the best first.
_STAMPS = ("ETag", "etag", "generation", "created", "LastModified", "last_modified", "updated")

_memory_lock = threading.Lock()


def retries(codes: Set[str] = _CUT) -> Retrying:
    """Tries a call again after errors of these codes, with growing pauses of chance."""
    return Retrying(
        retry=retry_if_exception(lambda error: not codes.isdisjoint(error_codes(error))),
        stop=stop_after_attempt(5),
        wait=wait_random_exponential(0.2, max=5),
        reraise=True,
    )


def stamp_of(info: Mapping[str, Any]) -> str:
    """Text that changes with an object's content, from fsspec's information about the object."""
    return f"{info['size']} {next((info[name] for name in _STAMPS if info.get(name)), '')}"


@dataclass(frozen=True)
class Objects(ABC):
    """The objects of a store. A path is ``bucket/key``.

    Args:
        address: how a process connects to the store.
    """

    address: StoreAddress

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The connection of this process."""
        return self.address.filesystem

    @property
    def arrow_filesystem(self) -> pafs.FileSystem:
        """The file system for pyarrow."""
        return pafs.PyFileSystem(_Handler(self))

    def renew(self) -> None:
        """Connect anew at the next use, with the credentials that are there then."""
        self.address.renew()

    def check(self, path: str) -> None:  # noqa: B027  most stores have no such request
        """Raise the error of the service if the bucket cannot be used, where that takes one cheap request."""

    def kind(self, path: str) -> str:
        """What is there: ``file``, ``folder``, or an empty text for nothing."""
        try:
            return "folder" if self.filesystem.info(path)["type"] == "directory" else "file"
        except FileNotFoundError:
            return ""

    def listing(self, path: str, recursive: bool) -> Iterator[tuple[str, int, str]]:
        """Name relative to a folder, size, and stamp of each object below it; folders have no entry."""
        filesystem = self.filesystem
        prefix = filesystem._strip_protocol(path).rstrip("/") + "/"
        for place, info in filesystem.find(path, detail=True).items():
            name = place.removeprefix(prefix)
            if name and name != place and info["type"] != "directory" and (recursive or "/" not in name):
                yield name, info["size"], stamp_of(info)

    def names(self, path: str, recursive: bool) -> Iterator[str]:
        """Names of the objects below a folder, relative to it."""
        return (name for name, *_ in self.listing(path, recursive))

    def walk(self, path: str, skip: Callable[[str], bool]) -> Iterator[Entry]:
        """Entries of the objects below a folder, as the listing arrives.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        empty = True
        for name, size, stamp in self.listing(path, True):
            empty = False
            skipped = any(skip(part) for part in name.split("/"))
            yield Entry(name, Kind.SKIPPED) if skipped else Entry(name, Kind.FILE, size, stamp=stamp)
        if empty and "/" in path and not self.kind(path):
            raise FileNotFoundError(path)

    def read(self, path: str, most: int | None) -> bytes:
        """The content of an object, or its first bytes."""
        try:
            return self.content(path, most)
        except Exception as error:  # each library has its own classes
            if most is None or _NO_SUCH_RANGE.isdisjoint(error_codes(error)):
                raise
            return b""  # the object is empty

    def content(self, path: str, most: int | None) -> bytes:
        """The content of an object, or its first bytes; an error where an empty object has none."""
        limits = {} if most is None else {"start": 0, "end": most}
        return self.filesystem.cat_file(path, **limits)

    def open(self, path: str) -> "ObjectStream":
        """A stream of an object's content."""
        return ObjectStream(self, path, self.filesystem.info(path))

    def read_range(self, path: str, start: int, end: int, info: Mapping[str, Any]) -> bytes:
        """Bytes of the object that has this information."""
        return self.filesystem.cat_file(path, start=start, end=end)

    def stamp(self, path: str) -> str | None:
        """Text that changes with the object's content; None if there is no object."""
        try:
            info = self.filesystem.info(path)
        except FileNotFoundError:
            return None
        return stamp_of(info)

    def write(self, path: str, content: bytes) -> None:
        """Write an object, which is there when the upload is complete."""
        self.filesystem.pipe_file(path, content)

    def upload(self, path: str, file: Path) -> None:
        """Copy a file here."""
        self.filesystem.put_file(str(file), path)

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none; of several writers, one wins."""
        try:
            self.filesystem.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    @abstractmethod
    def read_version(self, path: str) -> tuple[bytes, str]:
        """The content of an object, and the version that ``replace`` compares."""

    @abstractmethod
    def replace(self, path: str, content: bytes, version: str) -> bool:
        """Write an object if it is there and of this version; of several writers with the same version, one wins."""

    def delete(self, path: str) -> None:
        """Remove an object, or a folder with its content; it is no error if there is none."""
        if kind := self.kind(path):
            self.filesystem.rm(path, recursive=kind == "folder")


@dataclass(frozen=True)
class MemoryObjects(Objects):
    """Objects in the memory of one process, for tests."""

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none; of several writers, one wins."""
        with _memory_lock:
            if self.kind(path):
                return False
            self.write(path, content)
            return True

    def read_version(self, path: str) -> tuple[bytes, str]:
        """The content of an object, and the version that ``replace`` compares."""
        content = self.read(path, None)
        return content, hashlib.sha256(content).hexdigest()

    def replace(self, path: str, content: bytes, version: str) -> bool:
        """Write an object if it is there and of this version; of several writers with the same version, one wins."""
        with _memory_lock:
            if self.kind(path) != "file" or self.read_version(path)[1] != version:
                return False
            self.write(path, content)
            return True


class ObjectStream(io.RawIOBase):
    """A stream of an object's content. Each read is a request for as many bytes.

    Args:
        objects: the objects of the store.
        path: path of the object.
        info: fsspec's information about the object.
    """

    def __init__(self, objects: Objects, path: str, info: Mapping[str, Any]):
        self.objects, self.path, self.info, self.position = objects, path, info, 0

    def readable(self) -> bool:
        """The stream is to be read."""
        return True

    def seekable(self) -> bool:
        """The stream can be positioned."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer, as many as it holds; their number."""
        end = min(self.position + len(buffer), self.info["size"])
        if end <= self.position:
            return 0
        content = self.objects.read_range(self.path, self.position, end, self.info)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def readall(self) -> bytes:
        """Read the rest."""
        return self.read(max(0, self.info["size"] - self.position)) or b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; the position."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.info["size"]}[whence]
        return self.position


class _Handler(pafs.FSSpecHandler):
    """A store for pyarrow. Its pickle holds the address alone: no credentials, and the receiver connects anew."""

    def __init__(self, objects: Objects):
        super().__init__(objects.filesystem)
        self.objects = objects

    def __reduce__(self) -> tuple[type, tuple[Objects]]:
        return _Handler, (self.objects,)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open an object to read at any position: a small one is read whole, of others each read is a request."""
        stream = self.objects.open(path)
        return pa.BufferReader(stream.readall()) if stream.info["size"] <= _BLOCK else pa.PythonFile(stream, mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open an object to read it from its start: requests are for more than what is read."""
        return pa.PythonFile(io.BufferedReader(self.objects.open(path), _BLOCK), mode="r")
