"""Clients of the S3 protocol. This file and `s3_errors.py` are the only ones that import boto3 or botocore.

Credentials come from where boto3 looks for them (AWS_* variables, profile, machine role); no message holds a secret.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ali_dist.errors import InputError


class ProcessState:
    """What a fork must not share: two processes on one connection would read each other's answers without an error."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.clients: dict[tuple[object, ...], Any] = {}
        # Endpoints: those that have answered at least once, and what they need where deletions are concerned.
        self.answered: set[str | None] = set()
        self.deletes_singly: set[str | None] = set()
        self.wants_content_md5: set[str | None] = set()


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
    client = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    client.meta.events.register("before-sign.s3.DeleteObjects", partial(_use_content_md5, endpoint_url))
    return client


def _use_content_md5(endpoint_url: str | None, request: Any, **_: Any) -> None:
    """Give a deletion the checksum that older servers ask for, instead of boto3's own."""
    if endpoint_url not in process_state().wants_content_md5:
        return
    for name in [
        name for name in request.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum"))
    ]:
        del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


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
