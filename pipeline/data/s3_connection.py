"""The connection to S3, through s3fs."""

from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from botocore.configprovider import ConfiguredEndpointProvider
from botocore.session import Session
from s3fs import S3FileSystem

from medfocus.pipeline.data.storage_errors import StorageError

# Tries of each request.
_ATTEMPTS = 5
# Connections at a time: more than a process has threads and parts of uploads.
_CONNECTIONS = 64


class _S3FileSystem(S3FileSystem):
    """s3fs with keys of any text."""

    # botocore tries again, with pauses that depend on the error and on chance.
    retries = 1

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Bucket and key, and no version, which s3fs looks for in the key."""
        bucket, _, key = path.partition("/")
        return bucket, key, None


def connect_s3(
    endpoint: str | None, region: str | None, timeouts: tuple[int, int], *, anonymous: bool, **options: Any
) -> S3FileSystem:
    """Connect to S3. Requests follow a bucket to its region.

    Args:
        endpoint: URL of the service; None takes that of the profile, else AWS.
        region: region; None takes that of the profile.
        timeouts: seconds until a connection is given up, and until an answer.
        anonymous: whether requests have no credentials.
        **options: options of fsspec.

    Raises:
        StorageError: the proxy cannot be used.
    """
    session = Session()
    profile = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3")
    endpoint, region = endpoint or profile.provide(), region or session.get_config_variable("region")
    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    scheme, _, host = (endpoint or f"https://s3.{region or 'us-east-1'}.amazonaws.com").rstrip("/").partition("://")
    config: dict[str, Any] = {
        "connect_timeout": timeouts[0],
        "read_timeout": timeouts[1],
        "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
        "max_pool_connections": _CONNECTIONS,
        "proxies": _proxies(scheme, host),
    }
    if endpoint:
        # Some services know no other checksums than those that S3 requires.
        config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return _S3FileSystem(
        anon=anonymous,
        endpoint_url=endpoint,
        client_kwargs={"region_name": region or "us-east-1"},
        config_kwargs=config,
        **options,
    )


def _proxies(scheme: str, host: str) -> dict[str, str]:
    """The proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY by scheme; empty if there is none, or NO_PROXY has the host.

    Raises:
        StorageError: the proxy cannot be used. The message does not quote its address, which may hold a password.
    """
    proxies = getproxies()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or proxy_bypass(host):
        return {}
    address = address if "://" in address else f"http://{address}"
    try:
        proxy = urlsplit(address)
        if proxy.scheme not in ("http", "https") or not proxy.hostname or (proxy.port or 80) <= 0:
            raise ValueError
    except ValueError as error:
        raise StorageError(
            f"{scheme.upper()}_PROXY or ALL_PROXY: S3 needs http://HOST:PORT; correct it, or name the host in NO_PROXY"
        ) from error
    return {scheme: address}
