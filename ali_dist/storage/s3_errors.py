"""What failed S3 requests mean: which of them may be tried again, and what the user is told about the others."""

from __future__ import annotations

from typing import Any

from ali_dist.errors import InputError
from ali_dist.storage.base import changed_error, not_found_error

_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "InternalError", "ServiceUnavailable"}
_WRONG_REGION = "set AWS_DEFAULT_REGION to the bucket's region"
_ACCESS_HINTS = {
    "SignatureDoesNotMatch": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must belong together and to this endpoint",
    "InvalidAccessKeyId": "this endpoint does not know the access key, so check AWS_ACCESS_KEY_ID",
    "ExpiredToken": "the temporary credentials have expired, so get new ones",
    "InvalidToken": "check AWS_SESSION_TOKEN, or remove it for permanent keys",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "IllegalLocationConstraintException": _WRONG_REGION,
    "PermanentRedirect": _WRONG_REGION,
    "AccessDenied": "these credentials lack the permission, so check the bucket's policy",
}


def explain_error(error: Exception, url: str, endpoint_url: str | None, key: str) -> Exception | None:
    """Find what to raise at once for a failed request for `key` in `url`; None where another try may succeed.

    An error that is neither the server's, the network's nor the settings' is returned as it is.
    """
    import urllib3.exceptions
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ClientError):
        return _explain_reply(error, url, endpoint_url or "AWS", key)
    lost = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, ResponseParserError)
    if isinstance(error, (*lost, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)):
        return None
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return InputError(
            f"There are no S3 credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    if isinstance(error, boto.BotoCoreError):
        return InputError(f"The S3 settings for {url} do not work: {error_text(error)}.")
    return error


def _explain_reply(error: Any, url: str, server: str, key: str) -> Exception | None:
    status, code = reply_status(error), error_code(error)
    if is_transient(error):
        return None
    if code == "NoSuchBucket" or (status == 404 and error.operation_name == "HeadBucket"):
        bucket = url.split("/")[2]
        return InputError(f"There is no bucket {bucket!r} at {server}: create it, or correct {url!r}.")
    if status == 404:
        return not_found_error(url, key)
    if status == 412:
        return changed_error(url, key)
    if is_about_access(error):
        hint = _ACCESS_HINTS.get(code, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy")
        return InputError(f"{server} refuses access to {url} ({code}): {hint}.")
    return InputError(f"{server} refuses the request for {key!r} in {url}: {error_text(error)}.")


def is_unreachable(error: Exception) -> bool:
    """Whether no connection could be made at all (name, route, refusal, TLS)."""
    from botocore.exceptions import ConnectionError as NotConnected

    return isinstance(error, NotConnected)


def is_transient(error: Any) -> bool:
    """Whether a server's refusal, a botocore ClientError, may pass."""
    status = reply_status(error)
    return error_code(error) in _TRANSIENT_CODES or status in (408, 429) or (status >= 500 and status != 501)


def is_about_access(error: Any) -> bool:
    """Whether a server's refusal, a botocore ClientError, is about who asks, and not about what is asked."""
    return reply_status(error) in (401, 403) or error_code(error) in _ACCESS_HINTS


def error_code(error: Any) -> str:
    """The S3 error code of a botocore ClientError, such as NoSuchKey; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def reply_status(error: Any) -> int:
    """HTTP status of a botocore ClientError; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def error_text(error: Exception) -> str:
    """The error's message on one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".")[:300]
