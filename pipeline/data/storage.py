"""Storage: a location is a local path or a URI of an object store, such as ``s3://bucket/prefix``.

Writes are atomic: a local file is renamed into place, and an object appears when its upload is complete. Endpoint
and region come from the configuration or the usual AWS variables, credentials only from the usual places of each store
(environment, profile, instance), and proxies from the usual variables (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).

``create`` and ``replace`` write under a condition. Of several processes that create the same file, or replace the same
version of it, one wins; leases are built on them.
"""

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote

import pyarrow.fs as pafs

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.local_files import LocalFiles
from medfocus.pipeline.data.local_tree import Entry, encoded
from medfocus.pipeline.data.storage_errors import AccessError, ConditionError, ServiceError, StorageError, storage_error

if TYPE_CHECKING:
    from medfocus.pipeline.data.objects import Objects

__all__ = ["AccessError", "ConditionError", "Location", "ServiceError", "StorageError", "locate"]

# Bytes that are copied at once.
_CHUNK = 1 << 22

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A place in storage, made by ``locate``.

    It can be pickled, so that it can travel to workers, and holds no credentials: each process has its own. Threads may
    share it. Every method that reads or writes raises StorageError if the storage cannot be used, and AccessError,
    which is one, if it may not be used at all.

    Args:
        store: what the place is in.
        path: path or key in the store.
        uri: the place for messages and records, which is always valid UTF-8.
    """

    store: "LocalFiles | Objects"
    path: str
    uri: str

    def __truediv__(self, name: str) -> "Location":
        path = f"{self.path.rstrip('/')}/{name}"
        return replace(self, path=path, uri=_readable(f"{self.uri.rstrip('/')}/{name}", path))

    @property
    def is_local(self) -> bool:
        """Whether the place is on the local file system of each machine that uses it."""
        return isinstance(self.store, LocalFiles)

    @property
    def arrow_filesystem(self) -> pafs.FileSystem:
        """The file system for pyarrow, to use with ``path``; it can be pickled, too."""
        return self.attempt(lambda: self.store.arrow_filesystem)

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self.attempt(lambda: self.store.kind(self.path)) != ""

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return self.attempt(lambda: self.store.kind(self.path)) == "folder"

    def walk(self, skip: Callable[[str], bool]) -> Iterator[Entry]:
        """Yield an entry for everything below this folder, with each real file once (see ``local_tree.walk``).

        Objects are yielded as their listing arrives, and errors raised then.

        Args:
            skip: whether to skip files and folders of this name (one part of a path). A folder is skipped with its
                content.

        Raises:
            StorageError: the folder itself cannot be read.
        """
        entries = self.attempt(lambda: self.store.walk(self.path, skip))
        return iter(lambda: self.attempt(lambda: next(entries, None)), None)

    def files(self, suffix: str = "", recursive: bool = False) -> list[str]:
        """Names of the files below this folder, relative to it and sorted; empty if there is no such folder.

        Args:
            suffix: end of the names.
            recursive: include files in folders below.
        """

        def names() -> list[str]:
            return sorted(name for name in self.store.names(self.path, recursive) if name.endswith(suffix))

        return self.attempt(names)

    def read(self, most: int | None = None) -> bytes:
        """The content of the file, or its first ``most`` bytes."""
        return self.attempt(lambda: self.store.read(self.path, most))

    def open(self) -> BinaryIO:
        """A stream of the content, which reads it in blocks and can be positioned; the caller closes it."""
        return io.BufferedReader(_Stream(self, self.attempt(lambda: self.store.open(self.path))), _CHUNK)

    def download(self, file: Path) -> None:
        """Copy the content to a local file; a reader of the file sees the whole content or what was there before."""
        draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            with self.open() as stream, draft.open("wb") as target:
                shutil.copyfileobj(stream, target, _CHUNK)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def stamp(self) -> str | None:
        """Text that changes when the content does; None if there is no file."""
        return self.attempt(lambda: self.store.stamp(self.path))

    def write(self, content: bytes) -> None:
        """Write the file; a reader sees the whole content or nothing."""
        self.attempt(lambda: self.store.write(self.path, content))

    def upload(self, file: Path) -> None:
        """Copy a local file here; a reader sees the whole content or nothing."""
        self.attempt(lambda: self.store.upload(self.path, file))

    def create(self, content: bytes) -> bool:
        """Write the file if there is none. Of several processes that create it at once, one wins.

        Returns:
            Whether this call has written the file.

        Raises:
            ConditionError: the storage service has no conditional writes.
        """
        return self.attempt(lambda: self.store.create(self.path, content))

    def read_version(self) -> tuple[bytes, str]:
        """The content of the file, and the version that ``replace`` takes; equal contents may be of one version."""
        return self.attempt(lambda: self.store.read_version(self.path))

    def replace(self, content: bytes, version: str) -> bool:
        """Write the file if it is there and still of a version. Of several processes that replace one, one wins.

        Local files are compared under a lock, which ``write`` and ``delete`` do not heed: a file that is replaced is
        written by ``create`` and ``replace`` alone.

        Args:
            content: the new content.
            version: version that ``read_version`` returned.

        Returns:
            Whether this call has written the file.

        Raises:
            ConditionError: the storage service has no conditional writes.
        """
        return self.attempt(lambda: self.store.replace(self.path, content, version))

    def read_json(self) -> Any:
        """The content of the file as JSON; ValueError if it is not JSON."""
        return json.loads(self.read())

    def write_json(self, content: Any) -> None:
        """Write the file as JSON with sorted keys."""
        self.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")

    def delete(self) -> None:
        """Remove the file, or the folder with its content; it is no error if there is none."""
        self.attempt(lambda: self.store.delete(self.path))

    def attempt(self, call: Callable[[], T]) -> T:
        """Run a call that reads or writes here; returns its result.

        Raises:
            AccessError: storage may not be used at all.
            ServiceError: the storage service does not answer.
            StorageError: the call fails for another reason. All of these messages name the mend.
        """
        try:
            return call()
        except Exception as error:  # each library of a store has its own classes
            failure = storage_error(error, self.uri)
            if failure is None:
                raise
            if isinstance(failure, AccessError):
                self.store.renew()
            raise failure from error


class _Stream(io.RawIOBase):
    """A stream of a location's content that raises the location's errors."""

    def __init__(self, location: Location, stream: io.RawIOBase):
        self.location, self.stream = location, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.location.attempt(lambda: self.stream.readinto(buffer))

    def readall(self) -> bytes:
        return self.location.attempt(self.stream.readall)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def close(self) -> None:
        self.stream.close()
        super().close()


def locate(uri: str, config: StorageSection) -> Location:
    """The location of a local path or of a URI of an object store.

    Args:
        uri: path or URI: ``s3://``, ``gs://``, ``az://``, ``abfs://``, or ``memory://`` in tests.
        config: storage section of the configuration.

    Raises:
        StorageError: the URI has another scheme, one whose package is not installed, no bucket, or credentials; the
            path is not UTF-8; or the bucket does not exist or may not be used.
    """
    if "://" not in uri:
        path = str(Path(uri).expanduser().absolute())
        if _readable(path, path) != path:  # Ray does not start in a process with such an argument
            raise StorageError(f"{_readable(path, path)}: the path is not UTF-8; rename it, or give a link to it")
        return Location(LocalFiles(), path, path)
    from medfocus.pipeline.data.schemes import object_store  # its libraries take time to import

    endpoint, region = s3_endpoint(config), s3_region(config)
    store, path = object_store(uri, endpoint=endpoint, region=region, anonymous=config.anonymous)
    location = Location(store, path, uri.rstrip("/"))
    location.attempt(lambda: store.check(path))
    return location


def s3_endpoint(config: StorageSection) -> str | None:
    """Endpoint URL of the configuration, else of the environment; None leaves it to the profile, else to AWS."""
    return config.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def s3_region(config: StorageSection) -> str | None:
    """Region of the configuration, else of the environment; None leaves it to the profile."""
    return config.s3_region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def resolve_storage(config: StorageSection) -> StorageSection:
    """The section with the endpoint and the region of this process, for workers with another environment."""
    return config.model_copy(update={"s3_endpoint": s3_endpoint(config), "s3_region": s3_region(config)})


def _readable(uri: str, path: str) -> str:
    """The URI; for a local path that is not UTF-8, a ``file://`` URI in URL encoding."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return f"file://{quote(encoded(path))}"
    return uri
