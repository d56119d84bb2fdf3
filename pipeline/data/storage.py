"""Storage: a location is a local path or an ``s3://`` URI.

Writes are atomic: a local file is renamed into place, and an S3 object appears when its upload is complete. Endpoint
and region come from the configuration or the usual AWS variables, credentials only from the usual chain (environment,
profile, instance), and proxies from the usual variables (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
"""

import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import pyarrow as pa
import pyarrow.fs as pafs

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import local_tree
from medfocus.pipeline.data.local_tree import Entry, Kind, encoded
from medfocus.pipeline.errors import MedFocusError

# The SDK's name for an error, and the service's name if the SDK has none. A refused HEAD request names no error.
_AWS_CODE = re.compile(r"AWS Error (\w+)")
_SERVICE_CODE = re.compile(r"ExceptionName: (\w+)")
_NAMELESS = "HTTP status 400) during Head"
_MENDS = {
    "NO_SUCH_BUCKET": "the bucket does not exist; create it or correct the name",
    "INVALID_ACCESS_KEY_ID": "the access key is not known; correct AWS_ACCESS_KEY_ID or the profile",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not fit the access key; correct AWS_SECRET_ACCESS_KEY",
    "INVALID_SIGNATURE": "the secret key does not fit the access key; correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; renew them and start again",
    "InvalidToken": "the session token is not valid; correct AWS_SESSION_TOKEN or the profile",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    _NAMELESS: "access refused, as with credentials that have expired; renew them and start again",
    "ACCESS_DENIED": "access denied; check the credentials and their policy",
    "NETWORK_CONNECTION": "the service does not answer; check storage.s3_endpoint or AWS_ENDPOINT_URL, and the proxy",
}
_NO_ANSWER = "NETWORK_CONNECTION"
# With these, any other call would fail too: no other shard is worth a try.
_ACCESS_CODES = {name for name in _MENDS if name != _NO_ANSWER}
_BAD_KEY = "a part of the key is empty, . or .., which cannot be addressed; copy the object to another key"


class StorageError(MedFocusError):
    """Storage cannot be used; the message is one line and names the location and the mend."""


class AccessError(StorageError):
    """Storage may not be used at all, because the credentials or the bucket are wrong."""


class ServiceError(StorageError):
    """The storage service does not answer: no file is at fault."""


@dataclass(frozen=True)
class Location:
    """A place in storage, made by ``locate``; it can be pickled, so that it can travel to workers.

    Every method that reads or writes raises StorageError if the storage cannot be used, and AccessError, which is one,
    if it may not be used at all.

    Args:
        filesystem: filesystem of the place.
        path: path or key in the filesystem.
        uri: the place for messages and records, which is always valid UTF-8.
    """

    filesystem: pafs.FileSystem
    path: str
    uri: str

    def __truediv__(self, name: str) -> "Location":
        path = f"{self.path.rstrip('/')}/{name}"
        return Location(self.filesystem, path, _readable(f"{self.uri.rstrip('/')}/{name}", path))

    @property
    def is_local(self) -> bool:
        """Whether the place is on the local file system of each machine that uses it."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self._type() != pafs.FileType.NotFound

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return self._type() == pafs.FileType.Directory

    def walk(self, skip: Callable[[str], bool]) -> Iterator[Entry]:
        """Yield an entry for everything below this folder, with each real file once (see ``local_tree.walk``).

        Args:
            skip: whether to skip files and folders of this name (one part of a path). A folder is skipped with its
                content.

        Raises:
            StorageError: the folder itself cannot be read.
        """
        if self.is_local:
            return self.attempt(lambda: local_tree.walk(self.path, skip))
        selector = pafs.FileSelector(self.path, recursive=True)
        listing = self.attempt(lambda: self.filesystem.get_file_info(selector))
        prefix = self.path.rstrip("/") + "/"
        return (_object_entry(info, prefix, skip) for info in listing if info.type == pafs.FileType.File)

    def files(self, suffix: str = "", recursive: bool = False) -> list[str]:
        """Names of the files below this folder, relative to it and sorted; empty if there is no such folder.

        Args:
            suffix: end of the names.
            recursive: include files in folders below.
        """
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        prefix = self.path.rstrip("/") + "/"
        listing = self.attempt(lambda: self.filesystem.get_file_info(selector))
        names = [info.path.removeprefix(prefix) for info in listing if info.type == pafs.FileType.File]
        return sorted(name for name in names if name.endswith(suffix))

    def read(self, most: int | None = None) -> bytes:
        """The content of the file, or its first ``most`` bytes."""

        def read() -> bytes:
            if self.is_local:  # pyarrow takes no name that is not UTF-8
                with open(encoded(self.path), "rb") as file:  # noqa: PTH123  a Path takes no bytes
                    return file.read(-1 if most is None else most)
            with self.filesystem.open_input_stream(self.path) as stream:
                return stream.read(most)

        return self.attempt(read)

    def write(self, content: bytes) -> None:
        """Write the file; a reader sees the whole content or nothing."""
        if self.is_local:
            self.attempt(lambda: _write_local(Path(self.path), content))
            return

        def write() -> None:
            with self.filesystem.open_output_stream(self.path, compression=None) as stream:
                stream.write(content)

        self.attempt(write)

    def read_json(self) -> Any:
        """The content of the file as JSON; ValueError if it is not JSON."""
        return json.loads(self.read())

    def write_json(self, content: Any) -> None:
        """Write the file as JSON with sorted keys."""
        self.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")

    def delete(self) -> None:
        """Remove the file, or the folder with its content; it is no error if there is none."""
        kind = self._type()
        if kind == pafs.FileType.Directory:
            self.attempt(lambda: self.filesystem.delete_dir(self.path))
        elif kind == pafs.FileType.File:
            self.attempt(lambda: self.filesystem.delete_file(self.path))

    def _type(self) -> pafs.FileType:
        if self.is_local:
            return self.attempt(lambda: _local_type(self.path))
        return self.attempt(lambda: self.filesystem.get_file_info(self.path)).type

    def attempt(self, call: Callable[[], Any]) -> Any:
        """Run a call that reads or writes here; returns its result.

        Raises:
            AccessError: storage may not be used at all.
            ServiceError: the storage service does not answer.
            StorageError: the call fails for another reason. All of these messages name the mend.
        """
        try:
            return call()
        except OSError as error:
            kind = AccessError if _code(error) in _ACCESS_CODES else StorageError
            kind = ServiceError if _code(error) == _NO_ANSWER else kind
            raise kind(f"{self.uri}: {_reason(error)}") from error
        except pa.ArrowInvalid as error:
            if self.is_local or not _has_bad_part(self.path):
                raise
            raise StorageError(f"{self.uri}: {_BAD_KEY}") from error


def locate(uri: str, config: StorageSection) -> Location:
    """The location of a local path or an ``s3://bucket/key`` URI.

    Args:
        uri: path or URI.
        config: storage section of the configuration.

    Raises:
        StorageError: the URI has another scheme, no bucket, credentials or an empty part; the path is not UTF-8; or the
            bucket does not exist or may not be used.
    """
    if "://" not in uri:
        path = str(Path(uri).expanduser().absolute())
        if _readable(path, path) != path:  # Ray does not start in a process with such an argument
            raise StorageError(f"{_readable(path, path)}: the path is not UTF-8; rename it, or give a link to it")
        return Location(pafs.LocalFileSystem(), path, path)
    scheme, _, rest = uri.partition("://")
    if scheme != "s3" or not rest.split("/")[0]:
        raise StorageError(f"{uri}: not a local path or s3://bucket/prefix URI; correct it")
    bucket = rest.split("/")[0]
    if "@" in bucket or ":" in bucket:
        # The URI is not quoted: the text before the bucket is probably a secret.
        raise StorageError(
            "an s3:// URI holds no credentials; set AWS_ACCESS_KEY_ID or a profile, give s3://bucket/prefix"
        )
    if _has_bad_part(rest.rstrip("/")):
        raise StorageError(
            f"{uri}: a part of the key is empty, . or .., which cannot be addressed; give another prefix"
        )
    filesystem = _s3(config)
    if not Location(filesystem, bucket, uri).exists():
        raise StorageError(f"{uri}: {_MENDS['NO_SUCH_BUCKET']}")
    return Location(filesystem, rest.rstrip("/"), uri.rstrip("/"))


def s3_endpoint(config: StorageSection) -> str | None:
    """Endpoint URL of the configuration, else of the environment; None means AWS."""
    return config.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def s3_region(config: StorageSection) -> str | None:
    """Region of the configuration, else of the environment; None leaves it to the profile."""
    return config.s3_region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def resolve_storage(config: StorageSection) -> StorageSection:
    """The section with the endpoint and the region of this process, for workers with another environment."""
    return config.model_copy(update={"s3_endpoint": s3_endpoint(config), "s3_region": s3_region(config)})


def _s3(config: StorageSection) -> pafs.S3FileSystem:
    options: dict[str, Any] = {
        "connect_timeout": 5,
        "request_timeout": 60,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=5),
        "background_writes": False,
    }
    region = s3_region(config)
    if region:
        options["region"] = region
    scheme, host = "https", f"s3.{region or 'us-east-1'}.amazonaws.com"
    endpoint = s3_endpoint(config)
    if endpoint:
        endpoint_scheme, _, address = endpoint.rpartition("://")
        scheme, host = endpoint_scheme or "https", address.rstrip("/")
        options |= {"endpoint_override": host, "scheme": scheme}
        options.setdefault("region", "us-east-1")
    return pafs.S3FileSystem(**options, proxy_options=_proxy(scheme, host))


def _proxy(scheme: str, host: str) -> dict[str, Any] | None:
    """Options of the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY; None if there is none, or NO_PROXY has the host.

    Raises:
        StorageError: the proxy cannot be used. The message does not quote its address, which may hold a password.
    """
    proxies = getproxies()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or proxy_bypass(host):
        return None
    try:
        proxy = urlsplit(address if "://" in address else f"http://{address}")
        usual_port = {"http": 80, "https": 443}[proxy.scheme]
        options = {"scheme": proxy.scheme, "host": str(proxy.hostname), "port": proxy.port or usual_port}
    except (ValueError, KeyError) as error:
        raise StorageError(
            f"{scheme.upper()}_PROXY or ALL_PROXY: S3 needs http://HOST:PORT; correct it, or name the host in NO_PROXY"
        ) from error
    if proxy.username:
        options |= {"username": unquote(proxy.username), "password": unquote(proxy.password or "")}
    return options


def _local_type(path: str) -> pafs.FileType:
    try:
        mode = os.stat(encoded(path)).st_mode  # noqa: PTH116  a Path takes no bytes
    except (FileNotFoundError, NotADirectoryError):
        return pafs.FileType.NotFound
    if stat.S_ISDIR(mode):
        return pafs.FileType.Directory
    return pafs.FileType.File if stat.S_ISREG(mode) else pafs.FileType.Unknown


def _write_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _readable(uri: str, path: str) -> str:
    """The URI; for a local path that is not UTF-8, a ``file://`` URI in URL encoding."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return f"file://{quote(encoded(path))}"
    return uri


def _has_bad_part(path: str) -> bool:
    return any(part in ("", ".", "..") for part in path.split("/"))


def _object_entry(info: pafs.FileInfo, prefix: str, skip: Callable[[str], bool]) -> Entry:
    """The entry of an object of a listing; its kind is ``TROUBLE`` if its key cannot be addressed."""
    name = info.path.removeprefix(prefix)
    if any(skip(part) for part in name.split("/")):
        return Entry(name, Kind.SKIPPED)
    if _has_bad_part(name):
        return Entry(name, Kind.TROUBLE, 0, "Unaddressable", _BAD_KEY)
    return Entry(name, Kind.FILE, info.size)


def _code(error: OSError) -> str:
    """AWS's name of the error; empty if it has none."""
    text = str(error)
    if _NAMELESS in text:
        return _NAMELESS
    match = _SERVICE_CODE.search(text) or _AWS_CODE.search(text)
    return match.group(1) if match else ""


def _reason(error: OSError) -> str:
    """One line that says what went wrong and what to do."""
    if _code(error) in _MENDS:
        return _MENDS[_code(error)]
    text = error.strerror or str(error).strip().splitlines()[0]
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; correct the path"
    return f"{text}; check that the place exists and may be used"
