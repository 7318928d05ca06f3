"""Clients of the S3 protocol. This file and `s3_errors.py` are the only ones that import boto3 or botocore.

Credentials come from where boto3 looks for them (AWS_* variables, profile, credential process, machine role). They are
looked for again when the server no longer takes them; no message holds a secret.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ali_dist.errors import InputError
from ali_dist.storage.base import Access

_CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")  # botocore reads both, the first one first


class _Connection(NamedTuple):
    """A boto3 client and the credentials that it was made with."""

    client: Any
    credentials: Any


class ProcessState:
    """What a fork must not share: two processes on one connection would read each other's answers without an error."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.connections: dict[tuple[object, ...], _Connection] = {}
        # Endpoints: those that have answered at least once, and what they need where deletions are concerned.
        self.answered: set[str | None] = set()
        self.buckets: set[tuple[str | None, str]] = set()  # endpoint and name of those that are there
        self.deletes_singly: set[str | None] = set()
        self.wants_content_md5: set[str | None] = set()


_state = ProcessState()


def process_state() -> ProcessState:
    """The state of the running process; a forked child begins with an empty one and a free lock."""
    global _state
    if _state.pid != os.getpid():
        _state = ProcessState()
    return _state


def client_for(access: Access, attempts: int = 1) -> Any:
    """This process's boto3 client for these settings and the AWS_* variables in force.

    Args:
        access: How the server is reached.
        attempts: Most tries of one request by boto3 itself.

    Raises:
        InputError: Boto3 is not installed, or there is no file of certificates where one is said to be.
    """
    state = process_state()
    settings = _settings(access, attempts)
    with state.lock:
        if settings not in state.connections:
            state.connections[settings] = _connect(access, attempts, _new_session())
        return state.connections[settings].client


def renew_client(access: Access, attempts: int, refused: Any) -> bool:
    """Look for credentials again after the server has refused those of a client.

    Returns:
        Whether there are other ones by now, which `client_for` uses from here on.
    """
    if access.anonymous:
        return False
    state = process_state()
    settings = _settings(access, attempts)
    with state.lock:
        current = state.connections.get(settings)
        if current is None or current.client is not refused:
            return True  # another thread has renewed it
        session = _new_session()  # reads the files of credentials again, which a session does once
        if _secret_of(session.get_credentials()) == _secret_of(current.credentials):
            return False
        state.connections[settings] = _connect(access, attempts, session)
        return True


def _settings(access: Access, attempts: int) -> tuple[object, ...]:
    variables = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return access, attempts, variables


def _secret_of(credentials: Any) -> tuple[str | None, ...] | None:
    return None if credentials is None else tuple(credentials.get_frozen_credentials())


def load_client_code() -> None:
    """Load all that a client needs but its connection, so that processes forked from this one have it."""
    from botocore import UNSIGNED
    from botocore.config import Config

    _new_session().client("s3", region_name="us-east-1", config=Config(signature_version=UNSIGNED))


@cache
def _descriptions() -> Any:
    """What reads boto3's descriptions of services, and keeps them: one for all sessions, because that takes longest."""
    from botocore.session import Session

    return Session().get_component("data_loader")


def _new_session() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise InputError("s3:// places need the package boto3: install it with 'pip install boto3'.") from error
    from botocore.session import Session

    session = Session()
    session.register_component("data_loader", _descriptions())
    return boto3.session.Session(botocore_session=session)


def _connect(access: Access, attempts: int, session: Any) -> _Connection:
    from botocore import UNSIGNED
    from botocore.config import Config

    _check_certificates()
    endpoint_url = access.endpoint_url
    region = access.region or session.region_name or os.environ.get("AWS_REGION")
    config = Config(
        connect_timeout=access.timeout_seconds,
        read_timeout=access.timeout_seconds,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=64,
        tcp_keepalive=True,
        signature_version=UNSIGNED if access.anonymous else None,
        # Private endpoints rarely have a DNS name for each bucket, and older ones reject the newer checksum trailers.
        s3={"addressing_style": "path" if endpoint_url and access.addressing == "auto" else access.addressing},
        request_checksum_calculation="when_required" if endpoint_url else "when_supported",
        response_checksum_validation="when_required",
        proxies={} if _is_loopback(endpoint_url) else None,  # None: those of HTTPS_PROXY and its like
    )
    region = region or ("us-east-1" if endpoint_url or access.anonymous else None)
    client = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    client.meta.events.register("before-sign.s3.DeleteObjects", partial(_use_content_md5, endpoint_url))
    if access.request_payer:
        client.meta.events.register("before-sign.s3", _agree_to_pay)
    return _Connection(client, None if access.anonymous else session.get_credentials())


def _is_loopback(endpoint_url: str | None) -> bool:
    """Whether an endpoint is on this machine, where no proxy can reach it for us."""
    host = (urlsplit(endpoint_url).hostname if endpoint_url else None) or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_certificates() -> None:
    """Refuse a variable that names no file of certificates: every request would fail."""
    for name in _CA_VARIABLES:
        path = os.environ.get(name)
        if path:
            if not Path(path).exists():
                raise InputError(
                    f"{name} is {path!r}, where there is nothing: let it name a file of certificates, or remove it."
                )
            return


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


def _agree_to_pay(request: Any, **_: Any) -> None:
    request.headers["x-amz-request-payer"] = "requester"


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
