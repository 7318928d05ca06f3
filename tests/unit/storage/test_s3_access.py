"""How S3 is reached: who asks, which way, and what is said when the server cannot be reached like that."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.loaders import JSONFileLoader

from ali_dist.config import StorageConfig
from ali_dist.errors import InputError
from ali_dist.runs.datasets import open_url
from ali_dist.storage import open_store
from ali_dist.storage.base import Access
from ali_dist.storage.s3 import S3Store
from ali_dist.storage.s3_client import client_for, load_client_code, renew_client
from ali_dist.storage.s3_errors import explain_error
from tests.helpers.certificates import make_certificate
from tests.helpers.fault_server import ENV, Fault, FaultServer

NAME = "bucket/data/a.tar"
MISNAMED = ["S3_ENDPOINT_URL", "AWS_S3_ENDPOINT_URL", "S3_ENDPOINT", "AWS_S3_ENDPOINT", "MINIO_ENDPOINT"]


@pytest.fixture(scope="module")
def running_server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(running_server: FaultServer) -> FaultServer:
    running_server.serve_objects({NAME: b"content"})
    return running_server


def open_s3(server: FaultServer, **settings: Any) -> S3Store:
    settings = {"endpoint_url": server.endpoint_url, "timeout_seconds": 5.0, "attempts": 4, **settings}
    return replace(cast(S3Store, open_store("s3://bucket/data", **settings)), wait_seconds=0.001)


def forget_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENV:
        monkeypatch.delenv(name)


# ---- Public buckets ----------------------------------------------------------------------------------------------


def test_anonymous_requests_need_no_credentials_and_carry_no_signature(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for keys in ("set", "missing"):
        if keys == "missing":
            forget_keys(monkeypatch)
        store = open_url("s3://bucket/data", StorageConfig(endpoint_url=server.endpoint_url, anonymous=True))
        assert [info.key for info in store.list()] == ["a.tar"]
        assert store.get("a.tar") == b"content"
    assert len(server.requests) == 4
    assert not [request for request in server.requests if "authorization" in request.headers]


def test_missing_credentials_are_said_with_the_way_to_do_without(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_keys(monkeypatch)
    with pytest.raises(InputError, match=r"set AWS_ACCESS_KEY_ID and .*storage\.anonymous is true \(--anonymous\)\."):
        open_s3(server).list()
    assert server.requests == []


def test_a_bucket_that_is_not_public_is_said_so(server: FaultServer) -> None:
    server.inject_lasting_fault(NAME, Fault("status", status=403, code="AccessDenied"))
    with pytest.raises(InputError, match="is not public, so set storage.anonymous to false"):
        open_s3(server, anonymous=True).get("a.tar")


# ---- Variables that look like the endpoint's -----------------------------------------------------------------------


def refusal(code: str, status: int) -> Exception:
    from botocore.exceptions import ClientError

    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(cast(Any, response), "GetObject")


@pytest.mark.parametrize("name", MISNAMED)
@pytest.mark.parametrize(("code", "status"), [("InvalidAccessKeyId", 403), ("NoSuchBucket", 404)])
def test_a_misnamed_endpoint_is_named_where_aws_was_asked_instead(
    monkeypatch: pytest.MonkeyPatch, name: str, code: str, status: int
) -> None:
    monkeypatch.setenv(name, "http://me:hidden@10.0.0.1")
    error = explain_error(refusal(code, status), "s3://bucket/data", Access(), "a")
    assert isinstance(error, InputError)
    assert f"; {name} is set, but not read" in str(error)
    assert "set AWS_ENDPOINT_URL_S3 to that address, or give storage.endpoint_url" in str(error)
    assert "hidden" not in str(error)
    error = explain_error(refusal(code, status), "s3://bucket/data", Access(endpoint_url="http://10.0.0.1"), "a")
    assert name not in str(error)


def test_a_misnamed_endpoint_is_named_where_aws_cannot_be_reached_or_no_keys_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINIO_ENDPOINT", "http://10.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        nobody = f"http://127.0.0.1:{closed_soon.getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", nobody)
    store = replace(cast(S3Store, open_store("s3://bucket/data", region="us-east-1")), wait_seconds=0.001)
    with pytest.raises(InputError, match="endpoint AWS cannot be reached .*MINIO_ENDPOINT is set, but not read"):
        store.list()
    forget_keys(monkeypatch)
    with pytest.raises(InputError, match="no S3 credentials .*MINIO_ENDPOINT is set, but not read"):
        store.list()


# ---- Region, addresses, who pays -----------------------------------------------------------------------------------


def test_the_region_is_the_settings_then_the_environments(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    open_s3(server).list()
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    open_s3(server).list()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    open_s3(server).list()
    open_s3(server, region="eu-west-3").list()
    regions = [request.headers["authorization"].split("/")[2] for request in server.requests]
    assert regions == ["us-east-1", "eu-west-1", "eu-west-2", "eu-west-3"]


@pytest.mark.parametrize(
    ("addressing", "endpoint", "address"),
    [
        ("auto", "https://objects.example", "https://objects.example/bucket/a"),
        ("path", "https://objects.example", "https://objects.example/bucket/a"),
        ("virtual", "https://objects.example", "https://bucket.objects.example/a"),
        ("auto", None, "https://bucket.s3.amazonaws.com/a"),
        ("path", None, "https://s3.amazonaws.com/bucket/a"),
    ],
)
def test_the_bucket_stands_where_it_is_asked_for(addressing: Any, endpoint: str | None, address: str) -> None:
    client = client_for(Access(endpoint_url=endpoint, addressing=addressing, region="us-east-1"))
    url = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a"})
    assert url.partition("?")[0] == address


def test_the_requester_pays_for_every_kind_of_request_if_asked_to(server: FaultServer) -> None:
    for agrees in (False, True):
        server.requests.clear()
        store = open_s3(server, request_payer=agrees)
        store.list()
        store.stat("a.tar")
        store.get_range("a.tar", 0, 3)
        store.put("b", b"1")
        store.delete(["b"])
        assert [request.method for request in server.requests] == ["GET", "HEAD", "GET", "PUT", "POST"]
        payers = {request.headers.get("x-amz-request-payer") for request in server.requests}
        assert payers == {"requester" if agrees else None}


# ---- Proxies and certificates ----------------------------------------------------------------------------------------


def test_a_proxy_is_used_but_not_for_this_machine_and_not_for_exceptions(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.endpoint_url)
    far = open_s3(server, endpoint_url="http://objects.invalid")
    assert far.get("a.tar") == b"content"
    assert server.requests[0].headers["host"] == "objects.invalid"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert open_s3(server, region="at-home").get("a.tar") == b"content"
    monkeypatch.setenv("HTTP_PROXY", server.endpoint_url)
    monkeypatch.setenv("NO_PROXY", "excepted.invalid")
    with pytest.raises(InputError, match=r"excepted\.invalid cannot be reached"):
        open_s3(server, endpoint_url="http://excepted.invalid").get("a.tar")


def test_a_certificate_is_trusted_if_the_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path)
    with FaultServer({NAME: b"content"}, certificate) as server:
        with pytest.raises(InputError, match=r"certificate of https://127.* is not trusted .*AWS_CA_BUNDLE name"):
            open_s3(server).get("a.tar")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        assert open_s3(server).get("a.tar") == b"content"
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "gone.pem"))
        with pytest.raises(InputError, match=r"AWS_CA_BUNDLE is '.*gone.pem', where there is nothing"):
            open_s3(server).get("a.tar")
        (tmp_path / "empty.pem").write_text("no certificate")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "empty.pem"))
        with pytest.raises(InputError, match="AWS_CA_BUNDLE"):
            open_s3(server).get("a.tar")


# ---- Credentials that change -----------------------------------------------------------------------------------------


def write_keys(tmp_path: Path, key: str, token: str = "") -> None:
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = hidden\naws_session_token = {token}\n"
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(text)


EXPIRED = Fault("status", status=400, code="ExpiredToken")


def test_keys_that_have_expired_are_read_again(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_keys(monkeypatch)
    write_keys(tmp_path, "first", "a")
    store = open_s3(server)
    store.get("a.tar")
    write_keys(tmp_path, "second", "b")
    store.get("a.tar")  # nothing has expired: the first keys are still good
    server.inject_faults(NAME, EXPIRED)
    assert store.get("a.tar") == b"content"
    keys = [request.headers["authorization"].split("=")[1].split("/")[0] for request in server.requests]
    assert keys == ["first", "first", "first", "second"]
    server.inject_faults(NAME, EXPIRED)
    write_keys(tmp_path, "third", "c")
    assert store.stat("a.tar") is not None  # a HEAD is refused without saying why
    assert server.requests[-1].headers["x-amz-security-token"] == "c"


def test_keys_that_are_the_same_are_not_tried_twice_and_new_ones_once(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_keys(monkeypatch)
    write_keys(tmp_path, "first", "a")
    server.inject_lasting_fault(NAME, EXPIRED)
    store = open_s3(server)
    with pytest.raises(InputError, match="temporary credentials have expired, so get new ones"):
        store.get("a.tar")
    assert len(server.requests) == 1
    write_keys(tmp_path, "second", "b")
    with pytest.raises(InputError, match="have expired") as caught:
        store.get("a.tar")
    assert len(server.requests) == 3
    assert "hidden" not in str(caught.value)


def test_threads_whose_keys_expire_at_once_share_the_new_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_keys(monkeypatch)
    write_keys(tmp_path, "first", "a")
    access = Access(endpoint_url="http://127.0.0.1:1")
    expired = client_for(access)
    write_keys(tmp_path, "second", "b")
    assert renew_client(access, 1, expired)
    renewed = client_for(access)
    assert renewed is not expired
    assert renew_client(access, 1, expired), "another thread has renewed it already"
    assert client_for(access) is renewed
    assert not renew_client(access, 1, renewed)


def test_a_client_made_after_its_code_was_loaded_reads_no_more_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a parent loads, the processes that it forks have: a killed run goes on sooner."""
    load_client_code()
    read = []
    load_file = JSONFileLoader.load_file

    def load_and_tell(loader: JSONFileLoader, path: str) -> Any:
        data = load_file(loader, path)
        if data is not None:
            read.append(path)
        return data

    monkeypatch.setattr(JSONFileLoader, "load_file", load_and_tell)
    client_for(Access(endpoint_url="http://127.0.0.1:9", timeout_seconds=1.5))
    assert read == []
