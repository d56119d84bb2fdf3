"""Objects on Azure and Google Cloud: the conditional writes, for which fsspec has no common way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from medfocus.pipeline.data.objects import Objects
from medfocus.pipeline.data.storage_errors import error_codes

# Codes of a condition that does not hold: of Azure, and the HTTP status.
_CONDITION_FAILED = {"ConditionNotMet", "412"}


@dataclass(frozen=True)
class AzureObjects(Objects):
    """The objects of an Azure account."""

    def read_version(self, path: str) -> tuple[bytes, str]:
        """The content of an object, and the version that ``replace`` compares.

        The version is read first: if the object changes in between, ``replace`` writes nothing.
        """
        version = self.filesystem.info(path)["etag"]
        return self.read(path, None), version

    def replace(self, path: str, content: bytes, version: str) -> bool:
        """Write an object if it is there and of this version; of several writers with the same version, one wins."""
        from azure.core import MatchConditions

        condition = {"etag": version, "match_condition": MatchConditions.IfNotModified}
        return _holds(lambda: self.filesystem.pipe_file(path, content, **condition))


@dataclass(frozen=True)
class GoogleObjects(Objects):
    """The objects of Google Cloud Storage."""

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none; of several writers, one wins."""
        return _holds(lambda: self.filesystem.pipe_file(path, content, mode="create"))

    def read_version(self, path: str) -> tuple[bytes, str]:
        """The content of an object, and the version that ``replace`` compares.

        The version is read first: if the object changes in between, ``replace`` writes nothing.
        """
        version = self.filesystem.info(path)["generation"]
        return self.read(path, None), version

    def replace(self, path: str, content: bytes, version: str) -> bool:
        """Write an object if it is there and of this version; of several writers with the same version, one wins."""
        bucket, _, key = path.partition("/")
        service = self.filesystem.base.replace("/storage/", "/upload/storage/")
        call: dict[str, Any] = {"uploadType": "media", "name": key, "ifGenerationMatch": version, "data": content}
        return _holds(lambda: self.filesystem.call("POST", f"{service}b/{quote(bucket)}/o", **call))


def _holds(write: Callable[[], object]) -> bool:
    """Whether the condition of a write held."""
    try:
        write()
    except FileExistsError:
        return False
    except Exception as error:  # each library has its own classes
        if _CONDITION_FAILED.isdisjoint(error_codes(error)):
            raise
        return False
    return True
