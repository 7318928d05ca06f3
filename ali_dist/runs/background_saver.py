"""A thread that saves one snapshot at a time, and goes on trying while the storage is out of order.

Training does not wait for an outage: the newest snapshot takes the place of the one that could not be saved, and is
tried in turn. Who has no newer one to give (the end of a run, a request to stop) waits, for as long as the outage may
last; what is not saved by then stays in a folder of this machine.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ali_dist.errors import InputError, OutageError, StorageError
from ali_dist.storage.base import Store
from ali_dist.storage.local import LocalStore
from ali_dist.storage.retries import listening_for_retries

S = TypeVar("S")
_FIRST_PAUSE_SECONDS = 2.0  # after a failed try, which has waited by itself before; the pause doubles each time
_LONGEST_PAUSE_SECONDS = 30.0
_LONGEST_TURN_SECONDS = 5.0  # a try that takes longer may well be the first one of an outage


@dataclass(slots=True)
class _Outage:
    """Since when nothing could be saved."""

    began: float
    tries: int = 0


class BackgroundSaver(Generic[S]):
    """Saves snapshots in a thread that lives while there is something to save.

    Args:
        url: Where to, for messages.
        write: Saves a snapshot: one try.
        write_files: Writes its files alone to another store.
        name_of: What messages call a snapshot.
        outage_seconds: How long nothing may be saved before that is an error; 0: the first failure is one.
        say: Takes messages for the user.
    """

    def __init__(
        self,
        *,
        url: str,
        write: Callable[[S], None],
        write_files: Callable[[Store, S], None],
        name_of: Callable[[S], str],
        outage_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._url = url
        self._write = write
        self._write_files = write_files
        self._name_of = name_of
        self._outage_seconds = outage_seconds
        self._say = say
        self._changed = threading.Condition()  # guards what follows
        self._thread: threading.Thread | None = None
        self._is_running = False
        self._current: S | None = None
        self._next: S | None = None
        self._outage: _Outage | None = None
        self._is_struggling = False  # a request of the try in flight has failed, and is tried again
        self._error: BaseException | None = None
        self._is_awaited = False  # by somebody who has no newer snapshot to give
        self._is_hurried = False  # the next try is not put off
        self._is_closing = False
        self._failures: list[str] = []
        self._copied: S | None = None
        self._copy_folder: str | None = None

    def submit(self, snapshot: S) -> None:
        """Save a snapshot, in place of one that waits to be tried again; never raises.

        Where saving has failed for good, nothing is saved before a wait has raised why.
        """
        with self._changed:
            if self._error is not None:
                return
            self._next = snapshot
            self._changed.notify_all()
            if self._is_running:
                return
            self._is_running = True
            self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
            self._thread.start()

    def is_idle(self) -> bool:
        """Whether nothing is in flight, and the last save has not failed for good."""
        return self._error is None and not self._is_running

    def has_failed(self) -> bool:
        """Whether saving has failed for good; the next wait raises why."""
        return self._error is not None

    def take_failures(self) -> list[str]:
        """Why saving did not work: a reason for each outage that has begun since the last call."""
        with self._changed:
            taken, self._failures = self._failures, []
        return taken

    def wait_for_turn(self) -> None:
        """Return when nothing is in flight, or when training should not wait for it: it takes long, or the store fails.

        What is submitted then is saved next, in place of what else waits.

        Raises:
            OutageError, StorageError, InputError, TrainingError: Saving has failed for good.
        """
        with self._changed:
            is_patient = self._outage_seconds > 0
            self._changed.wait_for(
                lambda: not self._is_running or self._outage is not None or (is_patient and self._is_struggling),
                _LONGEST_TURN_SECONDS if is_patient else None,
            )
        self._raise_failure()

    def wait(self) -> None:
        """Return when everything is saved. During an outage a copy is kept on this machine meanwhile.

        Raises:
            OutageError, StorageError, InputError, TrainingError: Saving has failed for good.
        """
        with self._changed:
            self._is_awaited = self._is_hurried = True
            if self._is_running and self._outage is not None:
                self._keep_copy()
            self._changed.notify_all()
        self._join()
        self._is_awaited = False
        self._raise_failure()

    def close(self) -> None:
        """Let a try in flight come to its end, and keep a copy of what it does not save; never raises."""
        with self._changed:
            self._is_closing = self._is_hurried = True
            self._changed.notify_all()
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise_failure(self) -> None:
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    # ---- The thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_next():
                self._try_until_saved()
        except BaseException as error:  # noqa: BLE001  (handed to the training thread by the waits)
            self._end(error)

    def _take_next(self) -> bool:
        with self._changed:
            self._current, self._next = self._next, None
            if self._current is None:
                self._end(None)
            return self._current is not None

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._current = self._next = None
            self._error = error
            self._is_running = False
            self._changed.notify_all()

    def _try_until_saved(self) -> None:
        """Return when the current snapshot is saved, or when there is a newer one."""
        snapshot = self._current
        assert snapshot is not None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = time.monotonic()
            self._is_struggling = False
            try:
                with listening_for_retries(self._note_retry):
                    self._write(snapshot)
            except (InputError, StorageError) as error:
                left = self._note_failure(error, began)
            else:
                self._note_success()
                return
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_hurried, min(pause, left))
                self._is_hurried = False
                if self._next is not None:
                    return
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _note_retry(self) -> None:
        with self._changed:
            self._is_struggling = True
            self._changed.notify_all()

    def _note_failure(self, error: Exception, began: float) -> float:
        """Count and say a failed try; returns how many seconds the outage may last from now on.

        Args:
            error: Why it failed.
            began: The value of `time.monotonic` when it began.

        Raises:
            OutageError: The outage has lasted for too long.
            Exception: The error itself, where there is no patience.
        """
        if self._outage_seconds <= 0:
            raise error
        reason = " ".join(str(error).split()).rstrip(".")
        with self._changed:
            is_new = self._outage is None
            self._outage = self._outage or _Outage(began)
            self._outage.tries += 1
            if is_new:
                self._failures.append(reason)
                self._changed.notify_all()
            lasted = time.monotonic() - self._outage.began
            if lasted >= self._outage_seconds or self._is_closing:
                raise self._give_up(reason) from error
            if is_new:
                self._say(
                    f"{self._name()} could not be saved to {self._url} ({reason}); the run goes on and tries again, "
                    f"for at most {self._outage_seconds / 60:g} minutes (storage.outage_minutes)."
                )
            if self._is_awaited:
                self._keep_copy()
        return self._outage_seconds - lasted

    def _note_success(self) -> None:
        with self._changed:
            outage, self._outage = self._outage, None
            if outage is not None:
                minutes = (time.monotonic() - outage.began) / 60
                tries = "1 failed try" if outage.tries == 1 else f"{outage.tries} failed tries"
                self._say(f"Saved again, after {tries} in {minutes:.1f} minutes.")
            self._drop_copy()

    def _give_up(self, reason: str) -> OutageError:
        self._keep_copy(says=False)
        assert self._outage is not None
        minutes = (time.monotonic() - self._outage.began) / 60
        name, folder = self._name(first=False), self._copy_folder
        copy = f"no copy of {name} could be kept"
        if folder is not None:
            copy = f"{name} is in {folder} (copy what is in there to {self._url})"
        error = OutageError(
            f"Nothing could be saved to {self._url} for {minutes:.1f} minutes (storage.outage_minutes is "
            f"{self._outage_seconds / 60:g}; {reason}); what was saved before is kept, and {copy}: run the same "
            "command to go on."
        )
        if self._is_closing:  # nobody is left to raise it to
            self._say(str(error))
        return error

    # ---- The copy --------------------------------------------------------------------------------------------------

    @property
    def _newest(self) -> S | None:
        return self._next if self._next is not None else self._current

    def _name(self, *, first: bool = True) -> str:
        newest = self._newest
        name = "the checkpoint" if newest is None else self._name_of(newest)
        return name[0].upper() + name[1:] if first else name

    def _keep_copy(self, *, says: bool = True) -> None:
        """Write the newest snapshot to a folder of this machine, once, in place of an older one."""
        newest = self._newest
        if newest is None or newest is self._copied:
            return
        try:
            folder = tempfile.mkdtemp(prefix="ali-dist-unsaved-")
            self._write_files(LocalStore(Path(folder)), newest)
        except (InputError, StorageError, OSError) as error:
            self._say(f"No copy of {self._name(first=False)} could be kept on this machine: {error}")
            return
        self._drop_copy()
        self._copied, self._copy_folder = newest, folder
        if says:
            self._say(f"A copy of {self._name(first=False)} is in {folder} until it is saved to {self._url}.")

    def _drop_copy(self) -> None:
        if self._copy_folder is not None:
            shutil.rmtree(self._copy_folder, ignore_errors=True)
        self._copied = self._copy_folder = None
