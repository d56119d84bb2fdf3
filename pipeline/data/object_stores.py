"""Connections to object stores: the package, the options and the credentials of each scheme.

A connection belongs to a process. It is made at its first use, since the packages take time to import, and again where
the environment names other credentials or another proxy, or after a fork.
"""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from medfocus.pipeline.data.storage_errors import StorageError

# Seconds until a connection is given up, and until an answer.
_CONNECT_TIMEOUT, _READ_TIMEOUT = 5, 60
# Variables that decide credentials and proxies.
_VARIABLES = re.compile(r"AWS_|AZURE_|GOOGLE_|STORAGE_EMULATOR_HOST$|.*_PROXY$", re.IGNORECASE)

_filesystems: dict[tuple["StoreAddress", int], AbstractFileSystem] = {}
_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock(), _filesystems={}))


@dataclass(frozen=True)
class StoreAddress:
    """What a process needs to know to connect to a store, besides credentials and proxies, which are its own.

    Args:
        scheme: scheme of the URI.
        endpoint: URL of an S3 service other than AWS.
        region: region of an S3 service.
        anonymous: whether requests have no credentials.
        account: Azure account, where the URI names it.
    """

    scheme: str
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    account: str | None = None

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The connection of this process.

        Raises:
            StorageError: the package of the scheme is not installed, or the proxy cannot be used.
        """
        key = self, hash(frozenset(item for item in os.environ.items() if _VARIABLES.match(item[0])))
        with _lock:
            if key not in _filesystems:
                _filesystems[key] = _connect(self)
            return _filesystems[key]

    def renew(self) -> None:
        """Connect anew at the next use, with the credentials that are there then."""
        with _lock:
            for key in [key for key in _filesystems if key[0] == self]:
                del _filesystems[key]


def _connect(address: StoreAddress) -> AbstractFileSystem:
    """A new connection. fsspec's caches of connections and listings are off: other processes write, too."""
    package, kind, extra = _CONNECTIONS[address.scheme]
    try:
        return kind(address, {"use_listings_cache": False, "skip_instance_cache": True})
    except ImportError as error:
        raise StorageError(f"{address.scheme}:// needs {package}; run pip install '{extra}'") from error


def _s3(address: StoreAddress, options: dict[str, Any]) -> AbstractFileSystem:
    from medfocus.pipeline.data.s3_connection import connect_s3

    timeouts = _CONNECT_TIMEOUT, _READ_TIMEOUT
    return connect_s3(address.endpoint, address.region, timeouts, anonymous=address.anonymous, **options)


def _azure(address: StoreAddress, options: dict[str, Any]) -> AbstractFileSystem:
    """Azure: adlfs takes the account and the credentials from AZURE_STORAGE_*, or from what azure-identity finds."""
    from adlfs import AzureBlobFileSystem

    options |= {"connection_timeout": _CONNECT_TIMEOUT, "read_timeout": _READ_TIMEOUT}
    return AzureBlobFileSystem(account_name=address.account, anon=True if address.anonymous else None, **options)


def _google(address: StoreAddress, options: dict[str, Any]) -> AbstractFileSystem:
    """Google Cloud: gcsfs takes the credentials from Google's usual places.

    The class of ``gcsfs.core`` speaks HTTP alone. That of ``gcsfs`` asks for the layout of each bucket over gRPC, which
    needs another permission.
    """
    from gcsfs.core import GCSFileSystem

    return GCSFileSystem(token="anon" if address.anonymous else None, **options)


def _memory(address: StoreAddress, options: dict[str, Any]) -> AbstractFileSystem:
    from fsspec.implementations.memory import MemoryFileSystem

    return MemoryFileSystem()


# The package of each scheme, what connects, and what pip installs.
_CONNECTIONS: dict[str, tuple[str, Callable[[StoreAddress, dict[str, Any]], AbstractFileSystem], str]] = {
    "s3": ("s3fs", _s3, "medfocus"),
    "gs": ("gcsfs", _google, "medfocus[gcs]"),
    "az": ("adlfs", _azure, "medfocus[azure]"),
    "abfs": ("adlfs", _azure, "medfocus[azure]"),
    "memory": ("fsspec", _memory, "medfocus"),
}
