"""A run has one writer: a second process is refused, one that is gone is followed, a zombie writes no more."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.runs import lease
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.lease import LEASE_KEY, Holder, take_lease
from ali_dist.storage.local import LocalStore
from ali_dist.training.loop import fit
from tests.helpers.arrays import make_labelled_arrays, write_arrays
from tests.helpers.memory_store import MemoryStore
from tests.helpers.processes import ROOT
from tests.helpers.runs import StoppingContext, tiny_config

HOLD = """
import sys, time
from pathlib import Path
from ali_dist.runs.lease import take_lease
from ali_dist.storage.local import LocalStore
held = take_lease(LocalStore(Path(sys.argv[1])), "mine", print)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.02)


@pytest.fixture
def objects(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(f"memory://lease-{request.node.name}")


@contextlib.contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def take(store: LocalStore | MemoryStore, said: list[str] | None = None) -> lease.Lease:
    lines: list[str] = [] if said is None else said
    return take_lease(store, "mine", lines.append)


def test_a_folder_that_another_process_writes_is_refused_by_its_name_until_that_is_gone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "run")
    with held_by_another_process(tmp_path / "run") as process:
        os.kill(process.pid, signal.SIGSTOP)  # one that hangs may wake up again
        with pytest.raises(InputError, match=rf"'mine' is being trained by process {process.pid} on .*, since 20"):
            take(store)
        process.kill()
        process.wait()
        take(store).release()
    take(store).release()


def test_a_worker_that_is_being_replaced_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 20.0)
    with held_by_another_process(tmp_path) as process:
        timer = threading.Timer(0.5, process.kill)
        timer.start()
        take(LocalStore(tmp_path)).release()
        timer.join()


def test_objects_have_one_writer_at_a_time(objects: MemoryStore) -> None:
    first = take(objects)
    with pytest.raises(InputError, match=rf"being trained by process {os.getpid()} on "):
        take(objects)
    first.check()
    first.release()
    second = take(objects)
    with pytest.raises(TrainingError, match="taken over"):
        first.check()
    second.release()


def leave_behind(objects: MemoryStore, **changes: Any) -> None:
    """The lease of a process that was killed."""
    usual: dict[str, Any] = {"host": "elsewhere", "token": 7}
    holder = dataclasses.replace(Holder.of_this_process(), **(usual | changes))
    objects.put(LEASE_KEY, holder.to_json())


def test_a_lease_that_stands_still_is_nobodys_after_a_while_of_watching(objects: MemoryStore) -> None:
    leave_behind(objects)
    said: list[str] = []
    began = time.monotonic()
    held = take(objects, said)
    assert time.monotonic() - began >= 1.0
    assert len(said) == 1
    assert "on elsewhere" in said[0]
    found = Holder.parse(objects.get(LEASE_KEY))
    assert found is not None
    assert found.token >= 8
    held.release()


def test_a_process_of_this_machine_that_is_gone_is_not_watched(objects: MemoryStore) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for changes in ({"pid": gone.pid}, {"started": 12345}):  # the latter: its number belongs to another process now
        leave_behind(objects, host=Holder.of_this_process().host, **changes)
        said: list[str] = []
        take(objects, said).release()
        assert said == []


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"host": 1}'])
def test_a_damaged_lease_is_nobodys(objects: MemoryStore, tmp_path: Path, content: bytes) -> None:
    objects.put(LEASE_KEY, content)
    take(objects).release()
    (tmp_path / LEASE_KEY).write_bytes(content)
    take(LocalStore(tmp_path)).release()


def test_a_zombie_completes_no_checkpoint(objects: MemoryStore, tmp_path: Path) -> None:
    """It was stopped for so long that another process has taken the run over, and then goes on."""
    write_arrays(tmp_path / "data" / "train", *make_labelled_arrays(60, shape=(1, 8, 8)))
    config = tiny_config(tmp_path, data__source="none")
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=4))
    newest = CheckpointStore(LocalStore(tmp_path / "runs" / "tiny"), 1, print).read_newest()
    assert newest is not None
    zombie = take(objects)
    leave_behind(objects, host="elsewhere")
    checkpoints = CheckpointStore(objects, 1, print, zombie)
    checkpoints.save(newest.metadata, newest.tensors)
    with pytest.raises(TrainingError, match=r"'mine' was taken over by process \d+ on elsewhere"):
        checkpoints.wait()
    assert CheckpointStore(objects, 1, print).read_newest() is None
    zombie.release()
    found = Holder.parse(objects.get(LEASE_KEY))
    assert found is not None
    assert (found.host, found.released) == ("elsewhere", False)


def test_training_is_refused_while_another_process_trains_the_run(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data" / "train", *make_labelled_arrays(60, shape=(1, 8, 8)))
    config = tiny_config(tmp_path, data__source="none")
    folder = tmp_path / "runs" / "tiny"
    with held_by_another_process(folder), pytest.raises(InputError, match="another --run.name"):
        fit(config, StoppingContext())
    assert [path.name for path in folder.iterdir()] == [LEASE_KEY], "nothing is written before"
    assert fit(config, StoppingContext()) is not None


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "run").write_text("mine")
    else:
        (tmp_path / "run" / LEASE_KEY).mkdir(parents=True)
    with pytest.raises(InputError, match=r"lease.json cannot be written \(.*\): check the permissions of run.dir"):
        take(LocalStore(tmp_path / "run"))
