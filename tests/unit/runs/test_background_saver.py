"""Saving through an outage: tried again, replaced by what is newer, bounded, and never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ali_dist.errors import InputError, OutageError, StorageError, TrainingError
from ali_dist.runs import background_saver
from ali_dist.runs.background_saver import BackgroundSaver
from ali_dist.storage.base import Store
from ali_dist.storage.retries import note_retry

PATIENT = 60.0


class Storage:
    """Takes texts, unless it is out of order."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.saved: list[str] = []
        self.tried: list[str] = []
        self.has_tried = threading.Event()
        self.lock = threading.Lock()

    def write(self, text: str) -> None:
        self.tried.append(text)
        self.has_tried.set()
        with self.lock:
            pass
        if self.error is not None:
            raise self.error
        self.saved.append(text)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
    monkeypatch.setattr(background_saver, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Storage()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(storage: Storage, said: list[str]) -> Callable[[float], BackgroundSaver[str]]:
    def write_files(store: Store, text: str) -> None:
        store.put("copy", text.encode())

    def make_saver(outage_seconds: float) -> BackgroundSaver[str]:
        return BackgroundSaver(
            url="s3://bucket",
            write=storage.write,
            write_files=write_files,
            name_of=lambda text: f"the text {text!r}",
            outage_seconds=outage_seconds,
            say=said.append,
        )

    return make_saver


def copies_in(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.glob("ali-dist-unsaved-*/copy")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_until_failed(saver: BackgroundSaver[str], storage: Storage) -> None:
    assert storage.has_tried.wait(5)
    saver.wait_for_turn()


def test_a_failed_save_is_tried_again_until_it_works_and_said_once(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, said: list[str]
) -> None:
    saver = make(PATIENT)
    storage.error = StorageError("The bucket is gone.")
    saver.submit("first")
    wait_until_failed(saver, storage)
    wait_until(lambda: len(storage.tried) >= 3)
    assert not saver.is_idle()
    storage.error = None
    saver.wait()
    assert storage.saved == ["first"]
    assert saver.is_idle()
    assert len(said) in (2, 3)  # with one of a copy, if the wait began before the save was made
    assert said[0].startswith(
        "The text 'first' could not be saved to s3://bucket (The bucket is gone); the run goes on"
    )
    assert said[-1].startswith("Saved again, after ")
    assert saver.take_failures() == ["The bucket is gone"]
    assert saver.take_failures() == []


def test_training_does_not_wait_for_an_outage_and_the_newest_snapshot_counts(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage
) -> None:
    saver = make(PATIENT)
    storage.error = InputError("The keys have expired.")  # which may be renewed while the run goes on
    saver.submit("first")
    for text in ("second", "third"):
        wait_until_failed(saver, storage)
        saver.submit(text)
    wait_until(lambda: storage.tried[-1] == "third")
    storage.error = None
    saver.wait()
    assert storage.saved == ["third"]


def test_a_try_that_takes_long_is_not_waited_for_and_the_newest_snapshot_is_next(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_saver, "_LONGEST_TURN_SECONDS", 0.02)
    saver = make(PATIENT)
    with storage.lock:  # no try comes to its end
        saver.submit("first")
        for text in ("second", "third"):
            assert storage.has_tried.wait(5)
            saver.wait_for_turn()
            saver.submit(text)
        assert storage.tried == ["first"]
    saver.wait()
    assert storage.saved == ["first", "third"]


def test_an_outage_that_lasts_too_long_is_an_error_that_names_the_copy(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, tmp_path: Path
) -> None:
    saver = make(0.05)
    storage.error = StorageError("The bucket is gone.")
    saver.submit("first")
    with pytest.raises(OutageError) as caught:
        saver.wait()
    (folder,) = tmp_path.glob("ali-dist-unsaved-*")
    assert str(folder) in str(caught.value)
    assert "storage.outage_minutes" in str(caught.value)
    assert "; The bucket is gone)" in str(caught.value)
    assert copies_in(tmp_path) == ["first"]
    assert len(storage.tried) >= 2, "the last try is at the end of the time that is given"


def test_that_saving_has_failed_is_known_before_the_next_save(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage
) -> None:
    saver = make(0.001)
    storage.error = StorageError("The bucket is gone.")
    saver.submit("first")
    wait_until(saver.has_failed)
    with pytest.raises(OutageError):
        saver.wait_for_turn()
    assert not saver.has_failed()


def test_what_is_submitted_after_saving_has_failed_hides_no_error(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage
) -> None:
    """Rank 0 submits alone: only a wait, after which all ranks vote, may raise."""
    saver = make(0.001)
    storage.error = StorageError("The bucket is gone.")
    saver.submit("first")
    wait_until(saver.has_failed)
    storage.error = None
    saver.submit("second")
    with pytest.raises(OutageError):
        saver.wait()
    assert storage.saved == []


def test_who_waits_has_a_copy_on_the_machine_until_it_is_saved(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, said: list[str], tmp_path: Path
) -> None:
    saver = make(PATIENT)
    storage.error = StorageError("The bucket is gone.")
    saver.submit("first")
    wait_until_failed(saver, storage)
    assert copies_in(tmp_path) == [], "while training goes on, the next snapshot is soon there"
    saver.submit("last")
    waiting = threading.Thread(target=saver.wait)
    waiting.start()
    wait_until(lambda: bool(copies_in(tmp_path)))
    assert copies_in(tmp_path) == ["last"]
    storage.error = None
    waiting.join(5)
    assert not waiting.is_alive()
    assert storage.saved == ["last"]
    assert list(tmp_path.iterdir()) == []
    assert any(text.startswith("A copy of the text 'last' is in ") for text in said)


def test_what_is_not_saved_at_the_close_is_kept_and_said(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, said: list[str], tmp_path: Path
) -> None:
    saver = make(PATIENT)
    storage.error = StorageError("The bucket is gone.")
    saver.submit("first")
    saver.close()
    assert copies_in(tmp_path) == ["first"]
    assert str(next(tmp_path.iterdir())) in said[-1]


@pytest.mark.parametrize(
    ("patience", "error"),
    [(PATIENT, TrainingError("The run was taken over.")), (0.0, StorageError("The disk is full."))],
)
def test_what_no_wait_mends_fails_at_once(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, patience: float, error: Exception, tmp_path: Path
) -> None:
    saver = make(patience)
    storage.error = error
    saver.submit("first")
    with pytest.raises(type(error)) as caught:
        saver.wait()
    assert caught.value is error
    assert storage.tried == ["first"]
    assert list(tmp_path.iterdir()) == []
    storage.error = None
    saver.submit("second")
    saver.wait()
    assert storage.saved == ["second"]


def test_training_does_not_wait_for_a_try_whose_requests_fail_and_are_tried_again(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is submitted then is saved after it, and a later try is waited for again."""
    monkeypatch.setattr(background_saver, "_LONGEST_TURN_SECONDS", 30.0)
    write, goes_on = storage.write, threading.Event()

    def write_with_retries(text: str) -> None:
        if text == "old":
            note_retry()
            assert goes_on.wait(10)
        else:
            time.sleep(0.2)
        write(text)

    monkeypatch.setattr(storage, "write", write_with_retries)
    saver = make(PATIENT)
    saver.submit("old")
    began = time.monotonic()
    saver.wait_for_turn()
    assert time.monotonic() - began < 10
    assert storage.saved == []
    saver.submit("new")
    goes_on.set()
    wait_until(lambda: "old" in storage.saved)
    saver.wait_for_turn()
    assert storage.saved == ["old", "new"]


def test_where_an_outage_is_an_error_a_try_is_waited_for_to_its_end(
    make: Callable[[float], BackgroundSaver[str]], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write

    def write_with_retries(text: str) -> None:
        note_retry()
        time.sleep(0.2)
        write(text)

    monkeypatch.setattr(storage, "write", write_with_retries)
    saver = make(0.0)
    saver.submit("text")
    saver.wait_for_turn()
    assert storage.saved == ["text"]
