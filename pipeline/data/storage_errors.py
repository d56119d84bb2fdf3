"""Errors of storage: told apart by the codes of the services and of the operating system, never by their texts.

The libraries of the services translate some errors and leave others: an error is looked for along its chain of causes.
No library is imported here, since most runs use none of them: an error of theirs is known by the name of its class.
"""

import errno
from collections.abc import Iterator

from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.errors import MedFocusError


class StorageError(MedFocusError):
    """Storage cannot be used; the message is one line and names the location and the mend."""


class AccessError(StorageError):
    """Storage may not be used at all, because the credentials or the bucket are wrong."""


class ServiceError(StorageError):
    """The storage service does not answer: no file is at fault."""


class ConditionError(StorageError):
    """The storage service has no conditional writes, so that it cannot hold a lease."""


_EXPIRED = "the credentials have expired; renew them and start again"
_SECRET = "the secret key does not fit the access key; correct AWS_SECRET_ACCESS_KEY"
_SIGN_IN = "the sign-in of the AWS profile has expired; run aws sso login"
_NOT_FETCHED = "credentials cannot be fetched; check the profile, the role or the sign-in that should give them"
_BUCKET = "the bucket does not exist; create it or correct the name"
_DENIED = "access denied; check the credentials and their policy"
_ANOTHER_REGION = "the bucket is in another region, or the endpoint moved; correct storage.s3_region or s3_endpoint"
_NO_ANSWER = "the service does not answer; check storage.s3_endpoint or AWS_ENDPOINT_URL, and the proxy"
_NO_CONDITION = (
    "the service has no conditional writes, so that it cannot hold a lease: two runs at once could write the same"
    " output; use a service that has them"
)
# With these, any other call would fail too: no other shard is worth a try. A refused HEAD request has no code but its
# status.
_ACCESS = {
    "NoSuchBucket": _BUCKET,
    "ContainerNotFound": _BUCKET,
    "InvalidAccessKeyId": "the access key is not known; correct AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": _SECRET,
    "InvalidSignature": _SECRET,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": "the session token is not valid; correct AWS_SESSION_TOKEN or the profile",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "400": "access refused, as with credentials that have expired; renew them and start again",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "401": _DENIED,
    "403": _DENIED,
    "301": _ANOTHER_REGION,
    "PermanentRedirect": _ANOTHER_REGION,
    "AuthorizationHeaderMalformed": _ANOTHER_REGION,
    "IllegalLocationConstraintException": _ANOTHER_REGION,
    "NoCredentialsError": "no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
    " storage.anonymous=true for a public bucket",
    "PartialCredentialsError": "half of the credentials is missing; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "AWS_PROFILE names a profile that does not exist; correct it",
    "ConfigParseError": "the configuration file of AWS cannot be read; correct it",
    "UnauthorizedSSOTokenError": _SIGN_IN,
    "SSOTokenLoadError": _SIGN_IN,
    "TokenRetrievalError": _SIGN_IN,
    "CredentialRetrievalError": _NOT_FETCHED,
    "ClientAuthenticationError": _NOT_FETCHED,
    "GoogleAuthError": _NOT_FETCHED,
}
# Errors of connections of botocore (two classes and those below them), aiohttp, Azure and Google, which have no code.
_SERVICE = {
    "ConnectionError",
    "HTTPClientError",
    "ClientConnectionError",
    "ServiceRequestError",
    "ServiceResponseError",
    "TransportError",
}
_CONDITION = {"NotImplemented", "501"}
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "azure", "google", "gcsfs", "fsspec"}
# Codes of errors of the operating system.
_NETWORK = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)
_CODES = {errno.ENOTSUP: "NotImplemented", **dict.fromkeys(_NETWORK, "ClientConnectionError")}


def storage_error(error: Exception, uri: str) -> StorageError | None:
    """The error of storage that an error of a library or of the operating system is.

    Args:
        error: what a call that reads or writes raised.
        uri: the place, for the message.

    Returns:
        An AccessError if storage may not be used at all, a ServiceError if it does not answer, a ConditionError if it
        has no conditional writes, else a StorageError. The message names the mend. None if the error is no error of
        storage.
    """
    if not any(isinstance(cause, OSError | RecursionError) or _is_of_library(cause) for cause in _chain(error)):
        return None
    codes = list(error_codes(error))
    if code := next((code for code in codes if code in _ACCESS), None):
        return AccessError(f"{uri}: {_region_of(error) if _ACCESS[code] is _ANOTHER_REGION else _ACCESS[code]}")
    if _SERVICE.intersection(codes):
        return ServiceError(f"{uri}: {_NO_ANSWER}")
    if _CONDITION.intersection(codes):
        return no_conditions(uri)
    return StorageError(f"{uri}: {_reason(error)}")


def no_conditions(uri: str) -> ConditionError:
    """The error of a service without conditional writes."""
    return ConditionError(f"{uri}: {_NO_CONDITION}")


def error_codes(error: BaseException) -> Iterator[str]:
    """The codes of an error and its causes: those of the service, the HTTP status, and names of library classes."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's
            yield str(response.get("Error", {}).get("Code", ""))
            yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        elif _is_of_library(cause):  # of Azure and Google
            for name in ("error_code", "status_code", "code"):
                if (code := getattr(cause, name, None)) is not None:
                    yield str(getattr(code, "value", code))
        yield from (kind.__name__ for kind in type(cause).__mro__ if kind.__module__.partition(".")[0] in _LIBRARIES)
        if isinstance(cause, RecursionError):  # the SDK follows a redirection that does not say where to
            yield "PermanentRedirect"
        if isinstance(cause, OSError) and cause.errno in _CODES:
            yield _CODES[cause.errno]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def _region_of(error: Exception) -> str:
    """What to do about a bucket in another region, which the service may name."""
    for cause in _chain(error):
        if isinstance(response := getattr(cause, "response", None), dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            region = response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
            if region:
                return f"the bucket is in region {region}; set storage.s3_region={region}"
    return _ANOTHER_REGION


def _reason(error: Exception) -> str:
    """One line that says what went wrong and what to do."""
    if any(isinstance(cause, FileNotFoundError) for cause in _chain(error)):
        return "no such file or folder; correct the path"
    text = (getattr(error, "strerror", None) or str(error)).strip()
    line = without_credentials(text.splitlines()[0]) if text else type(error).__name__
    return f"{line}; check that the place exists and may be used"
