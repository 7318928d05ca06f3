"""What failed S3 requests mean: which of them may be tried again, and what the user is told about the others."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from typing import Any

from ali_dist.errors import InputError
from ali_dist.storage.base import Access, changed_error, not_found_error

_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "InternalError", "ServiceUnavailable"}
_WRONG_REGION = "set storage.region or AWS_DEFAULT_REGION to the bucket's region"
_ACCESS_HINTS = {
    "SignatureDoesNotMatch": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must belong together and to this endpoint",
    "InvalidAccessKeyId": "this endpoint does not know the access key, so check AWS_ACCESS_KEY_ID",
    "ExpiredToken": "the temporary credentials have expired, so get new ones",
    "InvalidToken": "check AWS_SESSION_TOKEN, or remove it for permanent keys",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's, so set it",
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "IllegalLocationConstraintException": _WRONG_REGION,
    "PermanentRedirect": _WRONG_REGION,
    "AccessDenied": "these credentials lack the permission, so check the bucket's policy",
}
_MISNAMED_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_S3_ENDPOINT_URL", "S3_ENDPOINT", "AWS_S3_ENDPOINT", "MINIO_ENDPOINT")


def explain_error(error: Exception, url: str, access: Access, key: str) -> Exception | None:
    """Find what to raise at once for a failed request for `key` in `url`; None where another try may succeed.

    An error that is neither the server's, the network's nor the settings' is returned as it is.
    """
    import urllib3.exceptions
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ClientError):
        return _explain_reply(error, url, access, key)
    if isinstance(error, boto.SSLError):
        return InputError(
            f"The certificate of {server_name(access)} is not trusted for {url} ({error_text(error)}): let "
            f"AWS_CA_BUNDLE name a file with the certificate that signed it."
        )
    lost = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, ResponseParserError)
    if isinstance(error, (*lost, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)):
        return None
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return InputError(
            f"There are no S3 credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
            f"public buckets are read without any if storage.anonymous is true (--anonymous){misnamed_hint(access)}."
        )
    if isinstance(error, boto.BotoCoreError):
        return InputError(f"The S3 settings for {url} do not work: {error_text(error)}.")
    return error


def _explain_reply(error: Any, url: str, access: Access, key: str) -> Exception | None:
    if is_transient(error):
        return None
    server, status, code = server_name(access), reply_status(error), error_code(error)
    if code == "NoSuchBucket" or (status == 404 and error.operation_name == "HeadBucket"):
        bucket = url.split("/")[2]
        return InputError(
            f"There is no bucket {bucket!r} at {server}: create it, or correct {url!r}{misnamed_hint(access)}."
        )
    if status == 404:
        return not_found_error(url, key)
    if status == 412:
        return changed_error(url, key)
    if is_about_access(error):
        hint = _ACCESS_HINTS.get(code, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy")
        if access.anonymous:
            hint = "it is not public, so set storage.anonymous to false and give credentials"
        if code == "RequestTimeTooSkewed":
            hint += _clock_difference(error)
        return InputError(f"{server} refuses access to {url} ({code}): {hint}{misnamed_hint(access)}.")
    return InputError(f"{server} refuses the request for {key!r} in {url}: {error_text(error)}.")


def misnamed_hint(access: Access) -> str:
    """A clause on a variable that looks like an endpoint's but is read by nobody; empty if none is set or needed."""
    if access.endpoint_url is not None:
        return ""
    for name in _MISNAMED_ENDPOINTS:
        if os.environ.get(name):
            return (
                f"; {name} is set, but not read: if it names your server, set AWS_ENDPOINT_URL_S3 to that address, or "
                f"give storage.endpoint_url"
            )
    return ""


def server_name(access: Access) -> str:
    """What messages call the server."""
    return access.endpoint_url or "AWS"


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


def may_be_stale_credentials(error: Exception) -> bool:
    """Whether other credentials may help; the reply to a HEAD has no body that could say so."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    return is_about_access(error) or (reply_status(error) == 400 and error.operation_name.startswith("Head"))


def is_missing(error: Exception) -> bool:
    """Whether there is no such object or bucket; of a HEAD for an object, that is for who asks to find out."""
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and reply_status(error) == 404 and error.operation_name != "HeadObject"


def is_skewed(error: Exception) -> bool:
    """Whether a request was refused because it was signed too long ago, which a machine that slept can do better."""
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and error_code(error) == "RequestTimeTooSkewed"


def asked_wait_seconds(error: Exception) -> float:
    """How long the server asks to be left alone, by the Retry-After of its refusal; 0 if it does not."""
    text = _header(error, "retry-after")
    if text.strip().isdecimal():
        return float(text)
    date = _parse_date(text)
    return 0.0 if date is None else max(0.0, date - time.time())


def _clock_difference(error: Exception) -> str:
    date = _parse_date(_header(error, "date"))
    if date is None:
        return ""
    minutes = (time.time() - date) / 60
    return f" (it is {abs(minutes):,.0f} minutes {'ahead' if minutes > 0 else 'behind'})"


def _parse_date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _header(error: Any, name: str) -> str:
    """A header of the reply that a botocore ClientError stands for; empty where there was none."""
    reply = getattr(error, "response", None) or {}
    return str(reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name, ""))


def error_code(error: Any) -> str:
    """The S3 error code of a botocore ClientError, such as NoSuchKey; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def reply_status(error: Any) -> int:
    """HTTP status of a botocore ClientError; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def error_text(error: Exception) -> str:
    """The error's message on one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".")[:300]
