"""Clients of the S3 protocol, and what their errors mean for the user. The only file that imports boto3.

Credentials come from where boto3 looks for them (AWS_* variables, profile, machine role); no message holds a secret.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from urllib.parse import urlsplit

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


class ProcessState:
    """What a fork must not share: two processes on one connection would read each other's answers without an error."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.clients: dict[tuple[object, ...], Any] = {}
        self.answered: set[str | None] = set()  # endpoints that have answered at least once


_state = ProcessState()


def process_state() -> ProcessState:
    """The state of the running process; a forked child begins with an empty one and a free lock."""
    global _state
    if _state.pid != os.getpid():
        _state = ProcessState()
    return _state


def client_for(endpoint_url: str | None, timeout_seconds: float, attempts: int = 1) -> Any:
    """This process's boto3 client for these settings and the AWS_* variables in force.

    Args:
        endpoint_url: Address of the S3 server; None is AWS.
        timeout_seconds: Connect timeout, and longest silence of a connection.
        attempts: Most tries of one request by boto3 itself.

    Raises:
        InputError: Boto3 is not installed.
    """
    state = process_state()
    variables = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    settings = (endpoint_url, timeout_seconds, attempts, variables)
    with state.lock:
        if settings not in state.clients:
            state.clients[settings] = _new_client(endpoint_url, timeout_seconds, attempts)
        return state.clients[settings]


def _new_client(endpoint_url: str | None, timeout_seconds: float, attempts: int) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise InputError("s3:// places need the package boto3: install it with 'pip install boto3'.") from error
    session = boto3.session.Session()
    region = session.region_name or os.environ.get("AWS_REGION") or ("us-east-1" if endpoint_url else None)
    config = Config(
        connect_timeout=timeout_seconds,
        read_timeout=timeout_seconds,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=64,
        tcp_keepalive=True,
        # Private endpoints rarely have a DNS name for each bucket, and older ones reject the newer checksum trailers.
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        request_checksum_calculation="when_required" if endpoint_url else "when_supported",
        response_checksum_validation="when_required",
    )
    return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


def upload_parts(client: Any, source: Any, bucket: str, name: str, part_bytes: int) -> None:
    """Upload the open file `source` in parts, several at a time; the object appears once all parts have arrived."""
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=4)
    client.upload_fileobj(source, Bucket=bucket, Key=name, Config=parts)


def check_endpoint(endpoint_url: str) -> str:
    """Return `endpoint_url` if it is a plain http(s) address.

    Raises:
        InputError: The address has another scheme, no host, or a password in it.
    """
    parts = urlsplit(endpoint_url)
    if "@" in parts.netloc:
        raise InputError("The S3 endpoint url holds a user name or password: pass those in AWS_* variables instead.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"The S3 endpoint {endpoint_url!r} is not a url: give it as http://host:port or https://host.")
    return endpoint_url


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
    status = reply_status(error)
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _TRANSIENT_CODES or status in (408, 429) or (status >= 500 and status != 501):
        return None
    if code == "NoSuchBucket" or (status == 404 and error.operation_name == "HeadBucket"):
        bucket = url.split("/")[2]
        return InputError(f"There is no bucket {bucket!r} at {server}: create it, or correct {url!r}.")
    if status == 404:
        return not_found_error(url, key)
    if status == 412:
        return changed_error(url, key)
    if status in (401, 403) or code in _ACCESS_HINTS:
        hint = _ACCESS_HINTS.get(code, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy")
        return InputError(f"{server} refuses access to {url} ({code}): {hint}.")
    return InputError(f"{server} refuses the request for {key!r} in {url}: {error_text(error)}.")


def is_unreachable(error: Exception) -> bool:
    """Whether no connection could be made at all (name, route, refusal, TLS)."""
    from botocore.exceptions import ConnectionError as NotConnected

    return isinstance(error, NotConnected)


def reply_status(error: Any) -> int:
    """HTTP status of a botocore ClientError; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def error_text(error: Exception) -> str:
    """The error's message on one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".")[:300]
