"""`S3Store` with a server that breaks requests on purpose: nothing is lost, doubled or retried in vain."""

from __future__ import annotations

import datetime
import os
import pickle
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import format_datetime
from typing import cast

import pytest

from ali_dist.errors import InputError, StorageError
from ali_dist.storage import open_store
from ali_dist.storage.base import ChangedObject, MissingObject
from ali_dist.storage.retries import listening_for_retries
from ali_dist.storage.s3 import S3Store
from ali_dist.storage.s3_client import process_state
from tests.helpers.fault_server import ENV, Fault, FaultServer

SIZE = 2_000_000
BROKEN_AT = 1_300_000
CHUNK = 256 * 1024  # a break costs at most one chunk read again
NAME = "bucket/data/a.tar"


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture(scope="module")
def running_server() -> Iterator[FaultServer]:
    with (
        FaultServer() as started
    ):  # one for all tests, because a new endpoint takes a new client, which is slow to make
        yield started


@pytest.fixture
def server(running_server: FaultServer, content: bytes, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    running_server.serve_objects({NAME: content})
    process_state().buckets.clear()  # known from earlier tests
    return running_server


@pytest.fixture
def store(server: FaultServer) -> S3Store:
    opened = open_store("s3://bucket/data", endpoint_url=server.endpoint_url, timeout_seconds=5.0, attempts=4)
    return replace(cast(S3Store, opened), wait_seconds=0.001)


READS: list[Callable[[S3Store], bytes]] = [
    lambda store: store.get("a.tar"),
    lambda store: store.get_range("a.tar", 0, SIZE),
]


@pytest.mark.parametrize("read", READS, ids=["get", "get_range"])
@pytest.mark.parametrize("kind", ["reset", "short", "stall"])
def test_a_broken_body_goes_on_where_it_broke(
    store: S3Store, server: FaultServer, content: bytes, kind: str, read: Callable[[S3Store], bytes]
) -> None:
    server.inject_faults(NAME, Fault(kind, after=BROKEN_AT))  # type: ignore[arg-type]
    store = replace(store, access=replace(store.access, timeout_seconds=0.5)) if kind == "stall" else store
    assert read(store) == content
    first, second = server.requests
    assert first.sent == BROKEN_AT
    arrived = SIZE - second.sent
    # A reset also takes with it what had arrived and was not yet read, so only the other two have a lower bound.
    assert (0 if kind == "reset" else BROKEN_AT - CHUNK) <= arrived <= BROKEN_AT, "the rest, not all of it again"
    assert second.if_match is not None, "the rest must come from the same object"


def test_breaks_in_the_middle_of_a_range_and_refusals_in_between_still_give_exactly_the_range(
    store: S3Store, server: FaultServer, content: bytes
) -> None:
    server.inject_faults(
        NAME, Fault("reset", after=600_000), Fault("status", status=503), Fault("short", after=600_000)
    )
    assert store.get_range("a.tar", 12_345, 1_900_000) == content[12_345:1_912_345]
    assert len(server.requests) == 4


@pytest.mark.parametrize("read", READS, ids=["get", "get_range"])
def test_a_body_that_trickles_goes_on_where_it_was_cut_off(
    store: S3Store, server: FaultServer, content: bytes, read: Callable[[S3Store], bytes]
) -> None:
    """A byte every 50 ms is no silence, so that a timeout alone would wait for days."""
    store = replace(store, access=replace(store.access, timeout_seconds=0.5))
    server.inject_faults(NAME, Fault("trickle", after=BROKEN_AT))
    assert read(store) == content
    assert len(server.requests) >= 2
    assert server.requests[-1].sent <= SIZE - BROKEN_AT, "the rest, not all of it again"


def test_a_body_that_always_trickles_ends_in_one_sentence(store: S3Store, server: FaultServer) -> None:
    store = replace(store, access=replace(store.access, timeout_seconds=0.2, attempts=2))
    server.inject_lasting_fault(NAME, Fault("trickle", after=10))
    with pytest.raises(StorageError, match=r"failed 2 times for 'a.tar'; last: the answer came at \d+ bytes a second"):
        store.get("a.tar")


def test_an_object_that_changes_during_a_read_is_never_mixed(store: S3Store, server: FaultServer) -> None:
    server.inject_faults(NAME, Fault("reset", after=BROKEN_AT, replace=bytes(SIZE)))
    with pytest.raises(ChangedObject, match=r"'a.tar' in s3://bucket/data was replaced"):
        store.get("a.tar")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_refusals_are_tried_again(store: S3Store, server: FaultServer, content: bytes, status: int) -> None:
    server.inject_faults(NAME, *[Fault("status", status=status, code="Busy")] * 2)
    assert store.get_range("a.tar", 5, 10) == content[5:15]
    assert len(server.requests) == 3


@pytest.mark.parametrize("asked", ["0.2", "in 1 s", "-5"])
def test_a_senseless_retry_after_is_not_obeyed(store: S3Store, server: FaultServer, asked: str) -> None:
    server.inject_faults(NAME, Fault("status", headers={"Retry-After": asked}))
    assert store.get_range("a.tar", 5, 1)


def test_a_server_is_left_alone_as_long_as_it_asks_within_bounds(
    store: S3Store, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("ali_dist.storage.s3.time.sleep", waits.append)
    date = format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30), usegmt=True)
    asked = [Fault("status", status=429, headers={"Retry-After": text}) for text in ("7", "86400", date)]
    server.inject_faults(NAME, *asked)
    assert store.get_range("a.tar", 5, 1)
    assert waits[:2] == [7.0, 60.0]
    assert 25 < waits[2] <= 30


@pytest.mark.parametrize("difference", [7, -7])
def test_a_length_that_is_not_the_bodys_is_asked_for_again(
    store: S3Store, server: FaultServer, content: bytes, difference: int
) -> None:
    server.inject_faults(NAME, Fault("length", after=difference))
    assert store.get_range("a.tar", 5, 100_000) == content[5:100_005]
    assert len(server.requests) == 2
    if difference > 0:
        server.inject_faults(NAME, Fault("length", after=difference))
        assert store.get("a.tar") == content


@pytest.mark.parametrize("read", READS, ids=["get", "get_range"])
def test_a_length_that_is_always_wrong_ends_in_one_sentence(
    store: S3Store, server: FaultServer, read: Callable[[S3Store], bytes]
) -> None:
    server.inject_lasting_fault(NAME, Fault("length", after=7))
    with pytest.raises(StorageError, match=r"failed 4 times for 'a.tar'; last: (the|an) answer"):
        read(store)


def test_a_clock_that_is_wrong_is_said_after_one_more_try(store: S3Store, server: FaultServer) -> None:
    skewed = Fault("status", status=403, code="RequestTimeTooSkewed", headers={"Date": "Thu, 01 Jan 2026 00:00:00 GMT"})
    server.inject_faults(NAME, skewed)
    assert store.get_range("a.tar", 5, 1)
    server.inject_lasting_fault(NAME, skewed)
    with pytest.raises(InputError, match=r"clock differs too much from the server's, so set it"):
        store.get("a.tar")


def test_weak_etags_pin_the_content_without_if_match(store: S3Store, server: FaultServer, content: bytes) -> None:
    server.weak_etags = True
    (info,) = store.list()
    assert store.stat("a.tar") == info
    server.inject_faults(NAME, Fault("short", after=BROKEN_AT))
    assert store.get_range("a.tar", 0, SIZE, etag=info.etag) == content
    assert store.get_range("a.tar", 5, 0, etag=info.etag) == b""
    assert {request.if_match for request in server.requests} == {None}
    server.objects[NAME] = bytes(SIZE)
    for length in (0, 5):
        with pytest.raises(ChangedObject):
            store.get_range("a.tar", 0, length, etag=info.etag)


@pytest.mark.parametrize("listed_as_weak", [False, True])
def test_the_same_etag_may_be_strong_in_one_reply_and_weak_in_another(
    store: S3Store, server: FaultServer, content: bytes, listed_as_weak: bool
) -> None:
    server.weak_etags = listed_as_weak
    (info,) = store.list()
    server.weak_etags = not listed_as_weak
    assert store.get_range("a.tar", 7, 9, etag=info.etag) == content[7:16]
    server.objects[NAME] = bytes(SIZE)
    with pytest.raises(ChangedObject):
        store.get_range("a.tar", 7, 9, etag=info.etag)


def test_lasting_refusals_end_after_the_given_attempts(store: S3Store, server: FaultServer) -> None:
    server.inject_lasting_fault(NAME, Fault("status", status=503))
    with pytest.raises(StorageError, match=r"s3://bucket/data at http://127.* failed 4 times for 'a.tar'.*SlowDown"):
        store.get("a.tar")
    assert len(server.requests) == 4


def test_who_listens_hears_of_each_try_that_follows_a_failed_one(store: S3Store, server: FaultServer) -> None:
    retries: list[str] = []
    server.inject_lasting_fault(NAME, Fault("status", status=503))
    with listening_for_retries(lambda: retries.append("again")), pytest.raises(StorageError):
        store.get("a.tar")
    assert len(retries) == 3  # of four tries
    with pytest.raises(StorageError):
        store.get("a.tar")
    assert len(retries) == 3


def test_a_connection_that_always_breaks_ends_too(store: S3Store, server: FaultServer) -> None:
    server.inject_lasting_fault(NAME, Fault("short", after=100_000))
    with pytest.raises(StorageError, match="failed 4 times"):
        store.get("a.tar")
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "code", "expected", "says"),
    [
        (403, "SignatureDoesNotMatch", InputError, "AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", InputError, "AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", InputError, "bucket's policy"),
        (400, "ExpiredToken", InputError, "get new ones"),
        (412, "PreconditionFailed", ChangedObject, "was replaced"),
        (400, "Strange", InputError, "refuses the request for 'a.tar'"),
    ],
)
def test_final_refusals_are_not_tried_again_and_say_what_to_do(
    store: S3Store, server: FaultServer, status: int, code: str, expected: type[Exception], says: str
) -> None:
    server.inject_lasting_fault(NAME, Fault("status", status=status, code=code))
    with pytest.raises(InputError) as caught:
        store.get("a.tar")
    assert type(caught.value) is expected
    assert says in str(caught.value)
    assert ENV["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        ("NoSuchKey", MissingObject, "no 'a.tar' in s3://bucket/data"),
        ("NoSuchBucket", InputError, "no bucket 'bucket' at http://127.0.0.1"),
    ],
)
def test_what_is_missing_is_looked_for_once_more(
    store: S3Store, server: FaultServer, content: bytes, code: str, expected: type[Exception], says: str
) -> None:
    missing = Fault("status", status=404, code=code)
    server.inject_faults(NAME, missing)
    assert store.get("a.tar") == content
    server.inject_faults(NAME, missing)
    assert store.get_range("a.tar", 5, 7) == content[5:12]
    server.inject_lasting_fault(NAME, missing)
    server.requests.clear()
    with pytest.raises(InputError) as caught:
        store.get("a.tar")
    assert type(caught.value) is expected
    assert says in str(caught.value)
    assert len(server.requests) == 2


def test_an_object_that_one_answer_denies_is_there(store: S3Store, server: FaultServer) -> None:
    server.objects["bucket"] = b""
    server.inject_faults(NAME, Fault("status", status=404, code="NoSuchKey"))
    info = store.stat("a.tar")
    assert info is not None
    assert info.size == SIZE


def test_whether_the_bucket_of_a_missing_object_is_there_is_asked_once(store: S3Store, server: FaultServer) -> None:
    assert store.stat("b.tar") is None
    asked = len(server.requests)
    assert store.stat("b.tar") is None
    assert (asked, len(server.requests)) == (3, 5)  # the object is looked for twice each time


def test_a_missing_bucket_is_told_apart_from_a_missing_object_by_stat(store: S3Store, server: FaultServer) -> None:
    server.inject_lasting_fault("bucket", Fault("status", status=404, code="NoSuchBucket"))
    with pytest.raises(InputError, match="There is no bucket 'bucket'"):
        store.stat("b.tar")


def test_a_listing_that_is_not_xml_is_asked_for_again(store: S3Store, server: FaultServer) -> None:
    server.inject_faults("bucket", Fault("garbage"), Fault("short", after=50))
    assert [info.key for info in store.list()] == ["a.tar"]


def test_a_put_goes_through_after_passing_refusals(store: S3Store, server: FaultServer) -> None:
    server.inject_faults("bucket/data/b", *[Fault("status", status=503)] * 2)
    store.put("b", b"content")
    assert server.objects["bucket/data/b"] == b"content"


def test_reads_one_after_the_other_share_a_connection(store: S3Store, server: FaultServer) -> None:
    for start in range(0, SIZE, SIZE // 5):
        store.get_range("a.tar", start, SIZE // 5)
    assert len({request.connection for request in server.requests}) == 1


def test_a_forked_child_never_uses_its_parents_connection(store: S3Store, server: FaultServer, content: bytes) -> None:
    store.get_range("a.tar", 0, 10)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if store.get_range("a.tar", 10, 10) == content[10:20] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.get_range("a.tar", 20, 10)
    parent, child_connection, parent_again = [request.connection for request in server.requests]
    assert parent == parent_again != child_connection


def test_threads_may_share_a_store(store: S3Store, server: FaultServer, content: bytes) -> None:
    server.inject_faults(NAME, *[Fault("reset", after=1000), Fault("status"), Fault("short", after=1000)] * 2)
    store, parts = replace(store, access=replace(store.access, attempts=10)), 16
    parts_read: dict[int, bytes] = {}

    def read(part: int) -> None:
        parts_read[part] = store.get_range("a.tar", part * SIZE // parts, SIZE // parts)

    threads = [threading.Thread(target=read, args=(part,)) for part in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(parts_read[part] for part in range(parts)) == content


def test_an_endpoint_that_never_answered_is_the_users_and_one_that_did_is_not(
    store: S3Store, server: FaultServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        nobody = f"http://127.0.0.1:{closed_soon.getsockname()[1]}"
    with pytest.raises(
        InputError, match=f"endpoint {nobody} cannot be reached for s3://bucket/data .*AWS_ENDPOINT_URL"
    ):
        replace(store, access=replace(store.access, endpoint_url=nobody)).list()
    with FaultServer(server.objects) as gone_soon:
        store = replace(store, access=replace(store.access, endpoint_url=gone_soon.endpoint_url))
        store.get("a.tar")
    with pytest.raises(StorageError, match="failed 4 times"):
        store.list()


def test_missing_credentials_are_one_sentence_and_no_request(
    store: S3Store, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENV:
        monkeypatch.delenv(name)
    with pytest.raises(InputError, match="no S3 credentials for s3://bucket/data: set AWS_ACCESS_KEY_ID and"):
        store.list()
    assert server.requests == []


def test_neither_secrets_nor_clients_are_pickled(store: S3Store) -> None:
    store.get_range("a.tar", 0, 1)
    pickled = pickle.dumps(store)
    assert ENV["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
    assert pickle.loads(pickled) == store


def test_retries_leave_the_seeded_generator_alone(store: S3Store, server: FaultServer) -> None:
    server.inject_faults(NAME, *[Fault("status")] * 3)
    before = random.getstate()
    store.get_range("a.tar", 0, 1)
    assert random.getstate() == before
