"""The one storage module: a path is a local path or an ``s3://`` URI.

Writes are whole or absent: a local file is renamed into place, an S3 object appears when its upload is complete.
Endpoint and region come from the configuration or the usual AWS variables, credentials from the usual chain
(environment, profile, instance) only, proxies from the usual variables (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
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

# The SDK's own name for an error, and the service's where the SDK has none for it; a refused HEAD tells no name.
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
# Of these, any other call would fail too: no other shard is worth a try.
_NO_ANSWER = "NETWORK_CONNECTION"
_OF_ACCESS = {name for name in _MENDS if name != _NO_ANSWER}
_ODD_PART = "a part of the key is empty, . or .., which cannot be addressed; copy the object to another key"


class StorageError(MedFocusError):
    """Storage that cannot be used; the message is one line and names the location and the mend."""


class AccessError(StorageError):
    """Storage that may not be used, whatever is asked of it: the credentials or the bucket are wrong."""


class ServiceError(StorageError):
    """A service that does not answer: no file is at fault."""


@dataclass(frozen=True)
class Location:
    """A place in storage. Made by ``locate``; picklable, so that it can travel to workers."""

    filesystem: pafs.FileSystem
    path: str
    uri: str

    def __truediv__(self, name: str) -> "Location":
        path = f"{self.path.rstrip('/')}/{name}"
        return Location(self.filesystem, path, _readable(f"{self.uri.rstrip('/')}/{name}", path))

    @property
    def is_local(self) -> bool:
        """Whether the place is on a disk of the machine that looks at it."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def exists(self) -> bool:
        return self._type() != pafs.FileType.NotFound

    def is_folder(self) -> bool:
        return self._type() == pafs.FileType.Directory

    def walk(self, skip: Callable[[str], bool]) -> Iterator[Entry]:
        """Everything below this folder, each real file once; what cannot be used is told as an entry of its own.

        Args:
            skip: whether to leave out what has this name (a single part of a path); of a folder, with all below it.

        Raises:
            StorageError: the folder itself cannot be read.
        """
        if self.is_local:
            return self.attempt(lambda: local_tree.walk(self.path, skip))
        found = self.attempt(lambda: self.filesystem.get_file_info(pafs.FileSelector(self.path, recursive=True)))
        prefix = self.path.rstrip("/") + "/"
        return (_object(info, prefix, skip) for info in found if info.type == pafs.FileType.File)

    def files(self, suffix: str = "", recursive: bool = False) -> list[str]:
        """Names below this place, sorted, relative to it; empty where there is no such place."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        prefix = self.path.rstrip("/") + "/"
        found = self.attempt(lambda: self.filesystem.get_file_info(selector))
        names = [info.path.removeprefix(prefix) for info in found if info.type == pafs.FileType.File]
        return sorted(name for name in names if name.endswith(suffix))

    def read(self, most: int | None = None) -> bytes:
        """The content, or at most its first bytes."""

        def read() -> bytes:
            if self.is_local:  # pyarrow takes no name that is not UTF-8
                with open(encoded(self.path), "rb") as file:  # noqa: PTH123  a Path takes no bytes
                    return file.read(-1 if most is None else most)
            with self.filesystem.open_input_stream(self.path) as stream:
                return stream.read(most)

        return self.attempt(read)

    def write(self, content: bytes) -> None:
        """Write the whole content; a reader sees all of it or nothing."""
        if self.is_local:
            self.attempt(lambda: _write_local(Path(self.path), content))
            return

        def write() -> None:
            with self.filesystem.open_output_stream(self.path, compression=None) as stream:
                stream.write(content)

        self.attempt(write)

    def read_json(self) -> Any:
        return json.loads(self.read())

    def write_json(self, content: Any) -> None:
        self.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")

    def delete(self) -> None:
        """Remove the file, or the folder with all below it; what is not there is no error."""
        found = self._type()
        if found == pafs.FileType.Directory:
            self.attempt(lambda: self.filesystem.delete_dir(self.path))
        elif found == pafs.FileType.File:
            self.attempt(lambda: self.filesystem.delete_file(self.path))

    def _type(self) -> pafs.FileType:
        if self.is_local:
            return self.attempt(lambda: _local_type(self.path))
        return self.attempt(lambda: self.filesystem.get_file_info(self.path)).type

    def attempt(self, call: Callable[[], Any]) -> Any:
        """The result of a call that reads or writes here; StorageError with the mend where it fails."""
        try:
            return call()
        except OSError as error:
            kind = AccessError if _code(error) in _OF_ACCESS else StorageError
            kind = ServiceError if _code(error) == _NO_ANSWER else kind
            raise kind(f"{self.uri}: {_reason(error)}") from error
        except pa.ArrowInvalid as error:
            if self.is_local or not _has_odd_part(self.path):
                raise
            raise StorageError(f"{self.uri}: {_ODD_PART}") from error


def locate(uri: str, config: StorageSection) -> Location:
    """The location of a local path or an ``s3://bucket/key`` URI.

    Raises:
        StorageError: the URI has another scheme or no bucket, or the bucket is not there or may not be used.
    """
    if "://" not in uri:
        path = str(Path(uri).expanduser().absolute())
        if _readable(path, path) != path:  # nor would Ray start in a call with such an argument
            raise StorageError(f"{_readable(path, path)}: the path is not UTF-8; rename it, or give a link to it")
        return Location(pafs.LocalFileSystem(), path, path)
    scheme, _, rest = uri.partition("://")
    if scheme != "s3" or not rest.split("/")[0]:
        raise StorageError(f"{uri}: not a local path or s3://bucket/prefix URI; correct it")
    bucket = rest.split("/")[0]
    if "@" in bucket or ":" in bucket:
        # Not shown: what stands before the bucket is likely a secret.
        raise StorageError(
            "an s3:// URI holds no credentials; set AWS_ACCESS_KEY_ID or a profile, give s3://bucket/prefix"
        )
    if _has_odd_part(rest.rstrip("/")):
        raise StorageError(
            f"{uri}: a part of the key is empty, . or .., which cannot be addressed; give another prefix"
        )
    filesystem = _s3(config)
    if not Location(filesystem, bucket, uri).exists():
        raise StorageError(f"{uri}: {_MENDS['NO_SUCH_BUCKET']}")
    return Location(filesystem, rest.rstrip("/"), uri.rstrip("/"))


def s3_endpoint(config: StorageSection) -> str | None:
    """Endpoint URL in force: the configuration's, else the environment's; None means AWS."""
    return config.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def s3_region(config: StorageSection) -> str | None:
    """Region in force: the configuration's, else the environment's; None leaves it to the profile."""
    return config.s3_region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def resolve_storage(config: StorageSection) -> StorageSection:
    """The section with the endpoint and the region in force here, for workers whose environment may be another."""
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
        given, _, address = endpoint.rpartition("://")
        scheme, host = given or "https", address.rstrip("/")
        options |= {"endpoint_override": host, "scheme": scheme}
        options.setdefault("region", "us-east-1")
    return pafs.S3FileSystem(**options, proxy_options=_proxy(scheme, host))


def _proxy(scheme: str, host: str) -> dict[str, Any] | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names; None without one, and for the hosts of NO_PROXY.

    Raises:
        StorageError: the proxy is none that can be used; its address is not shown, it may hold a password.
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
    """The URI, or that of a local path that is not UTF-8, in URL encoding."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return f"file://{quote(encoded(path))}"
    return uri


def _has_odd_part(path: str) -> bool:
    return any(part in ("", ".", "..") for part in path.split("/"))


def _object(info: pafs.FileInfo, prefix: str, skip: Callable[[str], bool]) -> Entry:
    """An object of a listing; what cannot be addressed is trouble."""
    name = info.path.removeprefix(prefix)
    if any(skip(part) for part in name.split("/")):
        return Entry(name, Kind.SKIPPED)
    if _has_odd_part(name):
        return Entry(name, Kind.TROUBLE, 0, "Unaddressable", _ODD_PART)
    return Entry(name, Kind.FILE, info.size)


def _code(error: OSError) -> str:
    """AWS's name of the error; empty where it has none."""
    text = str(error)
    if _NAMELESS in text:
        return _NAMELESS
    found = _SERVICE_CODE.search(text) or _AWS_CODE.search(text)
    return found.group(1) if found else ""


def _reason(error: OSError) -> str:
    """One line that says what went wrong and what to do."""
    if _code(error) in _MENDS:
        return _MENDS[_code(error)]
    text = error.strerror or str(error).strip().splitlines()[0]
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; correct the path"
    return f"{text}; check that the place exists and may be used"
