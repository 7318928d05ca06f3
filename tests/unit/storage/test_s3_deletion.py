"""Deletions on servers that lack DeleteObjects, want a Content-MD5 with it, or forbid deleting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from ali_dist.errors import InputError, StorageError
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.checkpoint_files import CheckpointMetadata
from ali_dist.storage import open_store
from ali_dist.storage.base import Listing
from ali_dist.storage.s3 import S3Store
from ali_dist.storage.s3_client import process_state
from tests.helpers.fault_server import ENV, Fault, FaultServer
from tests.helpers.memory_store import MemoryStore

KEYS = ["a & b", "b", "c/d"]
NAMES = {f"bucket/data/{key}": key.encode() for key in KEYS}


@pytest.fixture(scope="module")
def running_server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


@pytest.fixture
def server(running_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    running_server.serve_objects({**NAMES, "bucket/data/kept": b"kept"})
    for habit in (process_state().deletes_singly, process_state().wants_content_md5):  # what was learnt by other tests
        habit.discard(running_server.endpoint_url)
    return running_server


@pytest.fixture
def store(server: FaultServer) -> S3Store:
    opened = open_store("s3://bucket/data", endpoint_url=server.endpoint_url, timeout_seconds=5.0, attempts=4)
    return replace(cast(S3Store, opened), wait_seconds=0.001)


def methods(server: FaultServer) -> list[str]:
    return [request.method for request in server.requests]


def test_objects_are_deleted_by_one_request_where_the_server_knows_it(store: S3Store, server: FaultServer) -> None:
    store.delete([*KEYS, "never there"])
    assert list(server.objects) == ["bucket/data/kept"]
    assert methods(server) == ["POST"]


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [
        (501, "NotImplemented", 1),
        (405, "MethodNotAllowed", 1),
        (404, "NotFound", 1),
        (400, "InvalidRequest", 2),  # the second time with a Content-MD5
        (400, "MissingContentMD5", 2),
        (400, "MalformedXML", 2),
        (200, "NotImplemented", 1),  # said of each object
    ],
)
def test_servers_without_it_delete_one_by_one_and_are_asked_once(
    store: S3Store, server: FaultServer, status: int, code: str, asked: int
) -> None:
    server.inject_lasting_fault("bucket?delete", Fault("status", status=status, code=code))
    store.delete([*KEYS[:2], "never there"])
    store.delete(KEYS[2:])
    assert list(server.objects) == ["bucket/data/kept"]
    assert methods(server) == ["POST"] * asked + ["DELETE"] * 4


def test_a_content_md5_is_given_where_it_is_asked_for_and_from_then_on(store: S3Store, server: FaultServer) -> None:
    server.wants_content_md5 = True
    store.delete(KEYS[:2])
    store.delete(KEYS[2:])
    assert list(server.objects) == ["bucket/data/kept"]
    assert methods(server) == ["POST"] * 3
    without, *with_md5 = [request.headers for request in server.requests]
    assert "content-md5" not in without
    assert not [name for headers in with_md5 for name in headers if name.startswith("x-amz-checksum")]


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [(403, "AccessDenied", "lack the permission"), (200, "AccessDenied", "lack the permission")],
)
def test_a_forbidden_deletion_is_no_unknown_request(
    store: S3Store, server: FaultServer, status: int, code: str, says: str
) -> None:
    server.inject_lasting_fault("bucket?delete", Fault("status", status=status, code=code))
    with pytest.raises(InputError, match=says):
        store.delete(KEYS)
    assert methods(server) == ["POST"]


def test_refusals_that_pass_are_waited_for(store: S3Store, server: FaultServer) -> None:
    busy = Fault("status", status=503, code="SlowDown")
    server.inject_faults("bucket?delete", busy, Fault("status", status=501, code="NotImplemented"))
    server.inject_faults("bucket/data/b", busy)
    store.delete(KEYS)
    assert list(server.objects) == ["bucket/data/kept"]
    assert methods(server) == ["POST"] * 2 + ["DELETE"] * 4


def save(checkpoints: CheckpointStore, step: int) -> None:
    metadata = CheckpointMetadata(
        step=step, images_seen=step, epoch=0, seconds=0, restarts=0, fingerprint="data", world_size=1, config={}
    )
    checkpoints.save(metadata, {"model": {"w": torch.full((3,), float(step))}})
    checkpoints.wait()


def test_a_run_that_may_not_delete_saves_and_says_so_once(store: S3Store, server: FaultServer) -> None:
    server.inject_lasting_fault("bucket?delete", Fault("status", status=403, code="AccessDenied"))
    said: list[str] = []
    checkpoints = CheckpointStore(store, 1, said.append)
    for step in (2, 4, 6, 8):
        save(checkpoints, step)
    assert len(said) == 1
    assert "step-000000002 could not be deleted; training goes on" in said[0]
    assert "AccessDenied" in said[0]
    assert checkpoints.undeleted == {2, 4, 6}
    checkpoints.close()
    assert said[1] == "3 old checkpoints in s3://bucket/data could not be deleted."
    newest = CheckpointStore(store, 1, said.append).read_newest()
    assert newest is not None
    assert newest.metadata.step == 8


def test_a_torn_checkpoint_is_written_again_where_nothing_may_be_deleted(store: S3Store, server: FaultServer) -> None:
    checkpoints = CheckpointStore(store, 1, lambda text: None)
    save(checkpoints, 2)
    server.objects["bucket/data/checkpoints/step-000000002/model.safetensors"] += b"torn"
    server.inject_lasting_fault("bucket?delete", Fault("status", status=403, code="AccessDenied"))
    save(checkpoints, 2)
    newest = CheckpointStore(store, 1, lambda text: None).read_newest()
    assert newest is not None
    assert newest.metadata.step == 2


class UnlistableAfterwards(MemoryStore):
    """A store that fails to list what is in it once a checkpoint is complete."""

    def list(self, prefix: str = "") -> Listing:
        listing = super().list(prefix)
        if any(info.key.endswith("manifest.json") for info in listing):
            raise StorageError("the connection was lost.")
        return listing


def test_what_cannot_be_listed_after_a_save_does_not_end_a_run(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = CheckpointStore(UnlistableAfterwards(f"memory://{tmp_path.name}"), 1, said.append)
    save(checkpoints, 2)
    (sentence,) = said
    assert sentence.startswith("Old checkpoints could not be listed")
