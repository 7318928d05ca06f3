"""A checkpoint that is complete stays so, whenever the process that writes beside it is killed.

Run: `make test ARGS=tests/unit/training/test_checkpoint_store.py`
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ali_dist.errors import InputError
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.checkpoint_files import CheckpointMetadata
from ali_dist.storage.base import Listing, ObjectInfo, Store
from ali_dist.storage.local import LocalStore
from tests.helpers.memory_store import MemoryStore

MANIFEST = "manifest.json"
Damage = Callable[[Store, str], None]


class Killed(BaseException):
    """The process is gone."""


class KilledStore:
    """Passes everything on to another store until it has been changed so often; the next change never happens."""

    def __init__(self, store: Store, changes_left: int | None = None) -> None:
        self._store = store
        self._changes_left = changes_left
        self.changes: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return self._store.url

    def list(self, prefix: str = "") -> Listing:
        return self._store.list(prefix)

    def stat(self, key: str) -> ObjectInfo | None:
        return self._store.stat(key)

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def get_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        return self._store.get_range(key, start, length, etag=etag)

    def put(self, key: str, data: bytes | Path) -> None:
        self._count("put", key)
        self._store.put(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # one at a time: a kill may leave any part of them
            self._count("delete", key)
            self._store.delete([key])

    def child(self, prefix: str) -> Store:
        raise NotImplementedError

    def _count(self, change: str, key: str) -> None:
        if self._changes_left is not None and len(self.changes) >= self._changes_left:
            raise Killed
        self.changes.append((change, key))


@pytest.fixture(params=["folder", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path)
    return MemoryStore(f"memory://{tmp_path.name}-{request.node.name}")


def save(store: Store, step: int, *, keep: int = 1, value: float | None = None, restarts: int = 0) -> None:
    """Save a small checkpoint whose weights are `value`, or else its step."""
    metadata = CheckpointMetadata(
        step=step,
        images_seen=step,
        epoch=0,
        seconds=0.0,
        restarts=restarts,
        fingerprint="data",
        world_size=1,
        config={},
    )
    weights = torch.full((3,), float(step if value is None else value))
    tensors = {"model": {"w": weights}, "optimizer": {"w.exp_avg": weights}}
    checkpoints = CheckpointStore(store, keep, lambda text: None)
    checkpoints.save(metadata, tensors)
    checkpoints.wait()


def read_newest(store: Store) -> tuple[int, float] | None:
    """The step of the newest checkpoint that verifies, and the value of its weights."""
    newest = CheckpointStore(store, 1, lambda text: None).read_newest()
    return None if newest is None else (newest.metadata.step, float(newest.tensors["model"]["w"][0]))


def contents(store: Store) -> dict[str, tuple[str, bytes]]:
    return {info.key: (info.etag, store.get(info.key)) for info in store.list()}


def kill_at_every_change(prepare: Callable[[], Store], step: int, **saving: Any) -> list[tuple[int, float] | None]:
    """What is the newest checkpoint after a save that was killed before its first, second, ... and no change."""
    newest = []
    for changes in itertools.count():
        store = prepare()
        try:
            save(KilledStore(store, changes), step, **saving)
        except Killed:
            newest.append(read_newest(store))
        else:
            return [*newest, read_newest(store)]
    raise AssertionError


@pytest.fixture
def prepare(store: Store) -> Callable[[], Store]:
    """Empty the store and save one checkpoint, of step 4."""

    def prepare_again() -> Store:
        store.delete([info.key for info in store.list()])
        save(store, 4)
        return store

    return prepare_again


def test_a_kill_at_any_change_of_a_second_save_of_the_same_step_leaves_the_first(
    prepare: Callable[[], Store],
) -> None:
    assert set(kill_at_every_change(prepare, 4, value=5.0)) == {(4, 4.0)}


def test_a_complete_checkpoint_of_the_same_step_is_not_touched(prepare: Callable[[], Store]) -> None:
    watched = KilledStore(prepare())
    before = contents(watched)
    save(watched, 4, value=5.0, restarts=1)
    assert watched.changes == []
    assert contents(watched) == before


def test_a_kill_at_any_change_of_a_later_save_leaves_the_newest(prepare: Callable[[], Store]) -> None:
    newest = kill_at_every_change(prepare, 8)
    assert set(newest) == {(4, 4.0), (8, 8.0)}
    assert newest == sorted(newest, key=str)  # the manifest of the new one comes before the pruning of the old one
    assert newest.count((8, 8.0)) > 1


def _remove_manifest(store: Store, folder: str) -> None:
    store.delete([f"{folder}/{MANIFEST}"])


def _shorten_model(store: Store, folder: str) -> None:
    store.put(f"{folder}/model.safetensors", store.get(f"{folder}/model.safetensors")[:-1])


def _change_model(store: Store, folder: str) -> None:
    content = bytearray(store.get(f"{folder}/model.safetensors"))
    content[-1] ^= 1
    store.put(f"{folder}/model.safetensors", bytes(content))


def _remove_state(store: Store, folder: str) -> None:
    store.delete([f"{folder}/state.json"])


def _replace_manifest(content: object) -> Damage:
    def replace(store: Store, folder: str) -> None:
        store.put(f"{folder}/{MANIFEST}", json.dumps(content).encode())

    return replace


DAMAGES: dict[str, Damage] = {
    "no manifest": _remove_manifest,
    "short": _shorten_model,
    "changed": _change_model,
    "no state": _remove_state,
    "empty manifest": _replace_manifest({}),
    "a list as manifest": _replace_manifest([]),
    "null as manifest": _replace_manifest(None),
    "numbers in the manifest": _replace_manifest({"model.safetensors": 5, "state.json": 5}),
    "half a manifest": lambda store, folder: store.put(f"{folder}/{MANIFEST}", b'{"model'),
    "a deep manifest": lambda store, folder: store.put(f"{folder}/{MANIFEST}", b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_torn_checkpoint_of_the_same_step_is_written_again(store: Store, damage: Damage) -> None:
    """Whenever that is killed, too, it is the older one or the new one that training goes on from."""

    def prepare() -> Store:
        store.delete([info.key for info in store.list()])
        save(store, 2)
        save(store, 4, keep=2)
        damage(store, "checkpoints/step-000000004")
        assert read_newest(store) == (2, 2.0)
        return store

    newest = kill_at_every_change(prepare, 4, value=5.0, keep=2)
    assert set(newest) == {(2, 2.0), (4, 5.0)}
    assert newest[-1] == (4, 5.0)


def rewrite_file(store: Store, folder: str, name: str, data: bytes) -> None:
    """Replace a file, and what the manifest says of it: the checkpoint verifies."""
    store.put(f"{folder}/{name}", data)
    manifest = json.loads(store.get(f"{folder}/{MANIFEST}"))
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    store.put(f"{folder}/{MANIFEST}", json.dumps(manifest).encode())


def list_file(store: Store, folder: str, name: str) -> None:
    """Name a file in the manifest that is not there."""
    manifest = json.loads(store.get(f"{folder}/{MANIFEST}"))
    store.put(f"{folder}/{MANIFEST}", json.dumps(manifest | {name: {"bytes": 0, "sha256": ""}}).encode())


def change_state(store: Store, folder: str, **changes: Any) -> None:
    state = json.loads(store.get(f"{folder}/state.json")) | changes
    content = {name: value for name, value in state.items() if value is not ...}
    rewrite_file(store, folder, "state.json", json.dumps(content).encode())


SENSELESS: dict[str, tuple[str, Damage]] = {
    "a list as state": ("not an object", lambda s, f: rewrite_file(s, f, "state.json", b"[]")),
    "half a state": ("damaged", lambda s, f: rewrite_file(s, f, "state.json", b'{"st')),
    "another step": ("of update 3", lambda s, f: change_state(s, f, step=3)),
    "a text as step": ("has step '4'", lambda s, f: change_state(s, f, step="4")),
    "a state without images": ("has no images_seen", lambda s, f: change_state(s, f, images_seen=...)),
    "no tensors": ("model.safetensors cannot be read", lambda s, f: rewrite_file(s, f, "model.safetensors", b"")),
    "a huge header": (
        "model.safetensors cannot be read",
        lambda s, f: rewrite_file(s, f, "model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    ),
    "a file elsewhere": ("other names", lambda s, f: list_file(s, f, "../x.safetensors")),
}


@pytest.mark.parametrize(("reason", "damage"), SENSELESS.values(), ids=SENSELESS)
def test_a_checkpoint_that_verifies_and_makes_no_sense_is_passed_over_and_written_again(
    store: Store, reason: str, damage: Damage
) -> None:
    said: list[str] = []
    save(store, 2)
    save(store, 4, keep=2)
    damage(store, "checkpoints/step-000000004")
    checkpoints = CheckpointStore(store, 2, said.append)
    newest = checkpoints.read_newest()
    assert newest is not None
    assert newest.metadata.step == 2
    assert len(said) == 1
    assert "step-000000004" in said[0]
    assert reason in said[0]
    checkpoints.save(dataclasses.replace(newest.metadata, step=4), newest.tensors)
    checkpoints.wait()
    assert read_newest(store) == (4, 2.0)


def test_where_no_checkpoint_can_be_used_nothing_begins_anew(store: Store) -> None:
    save(store, 2)
    rewrite_file(store, "checkpoints/step-000000002", "state.json", b"[]")
    with pytest.raises(InputError, match=r"None of the checkpoints .* step-000000002 \(state.json is not an object\)"):
        read_newest(store)
    _remove_manifest(store, "checkpoints/step-000000002")  # killed before its first checkpoint was complete
    assert read_newest(store) is None


@pytest.mark.parametrize("name", ["step-²", "step-4", "step-00000000000000000000004", "notes.txt", "step-000000004"])
def test_what_else_lies_there_is_no_checkpoint(store: Store, name: str) -> None:
    save(store, 2)
    store.put(f"checkpoints/{name}" if name.endswith(".txt") else f"checkpoints/{name}/x", b"")
    assert read_newest(store) == (2, 2.0)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [MANIFEST, "state.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "endless", "folder"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, name: str, kind: str) -> None:
    store = LocalStore(tmp_path)
    save(store, 2)
    save(store, 4, keep=2)
    path = tmp_path / "checkpoints" / "step-000000004" / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert read_newest(store) == (2, 2.0)


def test_a_damaged_checkpoint_of_a_later_step_does_not_crowd_out_the_new_one(prepare: Callable[[], Store]) -> None:
    """Training passed it over and went on from an older one: what is saved then is the newest that there is."""
    store = prepare()
    save(store, 8, keep=2)
    _change_model(store, "checkpoints/step-000000008")
    save(store, 6)
    assert read_newest(store) == (6, 6.0)


def test_a_failed_look_at_what_is_saved_destroys_nothing(prepare: Callable[[], Store]) -> None:
    """A checkpoint that cannot be read now may well be complete."""

    class Unreadable(KilledStore):
        def get(self, key: str) -> bytes:
            raise InputError(f"{key} cannot be read (permission denied).")

    store = prepare()
    before = contents(store)
    with pytest.raises(InputError, match="permission denied"):
        save(Unreadable(store), 4)
    assert contents(store) == before
