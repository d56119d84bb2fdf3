"""Objects on S3: listings that stream, reads of any key, and conditional writes."""

import errno
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from medfocus.pipeline.data.object_stores import StoreAddress
from medfocus.pipeline.data.objects import PART, PARTS, Objects, retries, stamp_of
from medfocus.pipeline.data.storage_errors import error_codes

# Answers to a conditional write whose condition does not hold, and to one that meets another at the same moment.
_CONDITION_FAILED, _CONFLICT = {"PreconditionFailed", "412"}, {"ConditionalRequestConflict", "409"}
# Metadata that marks an object with the call that wrote it.
_MARK = "medfocus-write"
# Buckets whose conditional writes this process has tried.
_tried: set[tuple[StoreAddress, str]] = set()


@dataclass(frozen=True)
class S3Objects(Objects):
    """The objects of an S3 service. Keys may have empty parts and the parts ``.`` and ``..``."""

    def listing(self, path: str, recursive: bool) -> Iterator[tuple[str, int, str]]:
        """Name relative to a folder, size, and stamp of each object below it, in order, as the pages arrive."""
        prefix = _prefix(path)
        for page in self._pages(path, {} if recursive else {"Delimiter": "/"}):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):  # marks a folder
                    yield item["Key"].removeprefix(prefix), item["Size"], stamp_of({**item, "size": item["Size"]})

    def _pages(self, path: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Pages of a listing, of at most a thousand objects each."""
        call = {"Bucket": path.partition("/")[0], "Prefix": _prefix(path), **options}
        while True:
            page = self.filesystem.call_s3("list_objects_v2", **call)
            yield page
            if not page.get("IsTruncated"):
                return
            call["ContinuationToken"] = page["NextContinuationToken"]

    def check(self, path: str) -> None:
        """Raise the error of the service if the bucket does not exist or may not be listed.

        The answer to a refused listing names the cause, that to a refused HEAD request does not.
        """
        self.filesystem.call_s3("list_objects_v2", Bucket=path.partition("/")[0], Prefix=_prefix(path), MaxKeys=1)

    def content(self, path: str, most: int | None) -> bytes:
        """The content of an object, or its first bytes; an error where an empty object has none."""
        limits = {} if most is None else {"Range": f"bytes=0-{most - 1}"}
        return retries()(self._get, path, limits)[0]

    def read_range(self, path: str, start: int, end: int, info: Mapping[str, Any]) -> bytes:
        """Bytes of the object that has this information; an error if it has changed since."""
        limits = {"Range": f"bytes={start}-{end - 1}", "IfMatch": info["ETag"]}
        return retries()(self._get, path, limits)[0]

    def read_version(self, path: str) -> tuple[bytes, str]:
        """The content of an object, and the version that ``replace`` compares."""
        return retries()(self._get, path, {})

    def _get(self, path: str, limits: dict[str, str]) -> tuple[bytes, str]:
        """The content of an object or a part of it, and its ETag."""
        filesystem = self.filesystem
        answer = filesystem.call_s3("get_object", **_object(path), **limits)
        try:
            return sync(filesystem.loop, answer["Body"].read), answer["ETag"]
        finally:
            answer["Body"].close()

    def write(self, path: str, content: bytes) -> None:
        """Write an object, which is there when the upload is complete."""
        self.filesystem.pipe_file(path, content, chunksize=PART, max_concurrency=PARTS)

    def upload(self, path: str, file: Path) -> None:
        """Copy a file here."""
        self.filesystem.put_file(str(file), path, chunksize=PART, max_concurrency=PARTS)

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none; of several writers, one wins."""
        self._try_conditions(path)
        return self._put(path, content, IfNoneMatch="*")

    def replace(self, path: str, content: bytes, version: str) -> bool:
        """Write an object if it is there and of this version; of several writers with the same version, one wins."""
        self._try_conditions(path)
        return self._put(path, content, IfMatch=version)

    def _put(self, path: str, content: bytes, **condition: str) -> bool:
        """Write an object under a condition; whether it held.

        Where the answer to a write is lost, the SDK writes again, and then the condition fails by the first write. The
        mark of the object tells who wrote it.
        """
        mark, call = uuid.uuid4().hex, self.filesystem.call_s3
        put = {**_object(path), "Body": content, "Metadata": {_MARK: mark}, **condition}
        try:
            retries(_CONFLICT)(call, "put_object", **put)
        except FileNotFoundError as error:
            if "NoSuchKey" in error_codes(error):
                return False
            raise
        except OSError as error:
            if not _CONDITION_FAILED.intersection(error_codes(error)):
                raise
            try:
                return call("head_object", **_object(path))["Metadata"].get(_MARK) == mark
            except FileNotFoundError:
                return False
        return True

    def _try_conditions(self, path: str) -> None:
        """Try on another object, once in a process, whether a service other than AWS heeds conditions.

        Raises:
            OSError: it does not heed them (ENOTSUP), or does not know them.
        """
        place = (self.address, path.partition("/")[0])
        if place in _tried or not self.filesystem.endpoint_url:
            return
        probe = f"{path.rpartition('/')[0]}/.medfocus-probe-{uuid.uuid4().hex}"
        conditions = ({"IfNoneMatch": "*"}, {"IfNoneMatch": "*"}, {"IfMatch": f'"{uuid.uuid4().hex}"'})
        try:
            answers = [self._put(probe, b"", **condition) for condition in conditions]
        finally:
            self.filesystem.call_s3("delete_object", **_object(probe))
        if answers != [True, False, False]:
            raise OSError(errno.ENOTSUP, "conditions of writes are not heeded")
        _tried.add(place)

    def delete(self, path: str) -> None:
        """Remove an object, or a folder with its content; it is no error if there is none."""
        kind = self.kind(path)
        if kind == "file":
            self.filesystem.call_s3("delete_object", **_object(path))
        elif kind == "folder":
            for page in self._pages(path, {}):
                self._delete_objects(path, [{"Key": item["Key"]} for item in page.get("Contents", [])])

    def _delete_objects(self, path: str, keys: list[dict[str, str]]) -> None:
        """Remove the objects of a page with one request."""
        if not keys:
            return
        removal = {"Objects": keys, "Quiet": True}
        answer = self.filesystem.call_s3("delete_objects", Bucket=path.partition("/")[0], Delete=removal)
        for refusal in answer.get("Errors", []):
            from botocore.exceptions import ClientError

            raise ClientError({"Error": refusal}, "DeleteObjects")


def _object(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    return {"Bucket": bucket, "Key": key}


def _prefix(path: str) -> str:
    """The prefix of the keys below a folder."""
    key = path.partition("/")[2]
    return f"{key}/" if key else ""
