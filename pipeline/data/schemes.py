"""The object store and the path that a URI names."""

import re

from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.data.cloud_objects import AzureObjects, GoogleObjects
from medfocus.pipeline.data.object_stores import StoreAddress
from medfocus.pipeline.data.objects import MemoryObjects, Objects
from medfocus.pipeline.data.s3_objects import S3Objects
from medfocus.pipeline.data.storage_errors import StorageError

_STORES: dict[str, type[Objects]] = {
    "s3": S3Objects,
    "gs": GoogleObjects,
    "az": AzureObjects,
    "abfs": AzureObjects,
    "memory": MemoryObjects,
}
# Where each store's credentials come from.
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID or a profile",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or sign in",
}
_CREDENTIALS["abfs"] = _CREDENTIALS["az"]
# An Azure URI that names the account.
_AZURE_HOST = re.compile(r"(?P<container>[^@:]+)@(?P<account>[^@:.]+)\.(dfs|blob)\.core\.windows\.net")


def object_store(uri: str, *, endpoint: str | None, region: str | None, anonymous: bool) -> tuple[Objects, str]:
    """The object store of a URI, and the path ``bucket/key`` in it. No connection is made.

    Args:
        uri: the URI.
        endpoint: URL of an S3 service other than AWS.
        region: region of an S3 service.
        anonymous: whether requests have no credentials.

    Raises:
        StorageError: the scheme is not known, or the URI has no bucket, or credentials.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    account = None
    if scheme in ("az", "abfs") and (match := _AZURE_HOST.fullmatch(bucket)):
        bucket, account = match["container"], match["account"]
    if scheme not in _STORES or not bucket:
        raise StorageError(
            f"{without_credentials(uri)}: not a local path or s3://bucket/prefix URI; correct it. For gs:// run pip"
            " install 'medfocus[gcs]', for az:// and abfs:// pip install 'medfocus[azure]'"
        )
    if "@" in bucket or ":" in bucket:
        # The URI is not quoted: the text before the bucket is probably a secret.
        credentials = _CREDENTIALS.get(scheme, "leave them out")
        raise StorageError(f"a {scheme}:// URI holds no credentials; {credentials}, give {scheme}://bucket/prefix")
    s3 = scheme == "s3"
    address = StoreAddress(scheme, endpoint if s3 else None, region if s3 else None, anonymous, account)
    return _STORES[scheme](address), f"{bucket}/{key}".rstrip("/")
