"""One run, one writer: whoever trains a run holds its lease, and another process with the same run is refused.

In a folder the lease is a lock of the operating system on `lease.json`, which ends with its process, however that
ends. In an object store, which has no locks, it is an object that its holder renews: one that stands still for
`STALE_SECONDS` is nobody's. No clock is compared with another machine's. Each new holder has a higher token; a former
one that wakes up again finds it before it completes a checkpoint, and writes no more.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from ali_dist.errors import InputError, StorageError, TrainingError
from ali_dist.storage.base import MissingObject, Store
from ali_dist.storage.local import LocalStore

LEASE_KEY = "lease.json"
RENEW_SECONDS = 10.0
STALE_SECONDS = 30.0
PATIENCE_SECONDS = 10.0
"""How long a folder's lock is waited for: a worker that is being replaced takes a while to go."""
_POLL_SECONDS = 0.5


class Lease(Protocol):
    """The right to write a run."""

    def check(self) -> None:
        """Make sure that it is still held; called before a checkpoint is completed.

        Raises:
            TrainingError: Another process has taken the run over.
        """

    def release(self) -> None:
        """Give it up; never raises."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, as `lease.json` says.

    Attributes:
        host: Name of the machine, and its process namespace.
        pid: The process.
        started: When the process began, in the machine's clock ticks since its start: numbers of processes come again.
        since: When the lease was taken, for people.
        name: Random; no two processes have the same.
        token: Counts the holders of the run.
        beat: Changes as long as the lease is held.
        released: Whether it was given up.
    """

    host: str
    pid: int
    started: int
    since: str
    name: str
    token: int = 1
    beat: int = 0
    released: bool = False

    @classmethod
    def of_this_process(cls) -> Holder:
        """This process, as the holder of a lease that nobody held before."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
        return cls(_host(), os.getpid(), _start_of(os.getpid()), since, secrets.token_hex(8))

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Parse the content of `lease.json`; None if it says nothing."""
        try:
            content = json.loads(data)
            return cls(**{f.name: content[f.name] for f in fields(cls)})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def to_json(self) -> bytes:
        """The content of `lease.json`."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        return self.host == _host() and _start_of(self.pid) != self.started

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine that is still there."""
        return self.host == _host() and _start_of(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]}, since {self.since}"


def take_lease(store: Store, run_name: str, say: Callable[[str], None]) -> Lease:
    """Take the lease of a run.

    Args:
        store: The run folder.
        run_name: What messages call the run.
        say: Takes messages for the user.

    Raises:
        InputError: Another process holds it, which the message names, or the folder cannot be written.
        StorageError: The object store fails.
    """
    if isinstance(store, LocalStore):
        try:
            return _FolderLease(store.root, run_name)
        except OSError as error:
            raise InputError(
                f"{store.root / LEASE_KEY} cannot be written ({(error.strerror or str(error)).lower()}): check the "
                "permissions of run.dir and the space on its disk, or choose another one."
            ) from error
    return _ObjectLease(store, run_name, say)


class _FolderLease:
    """A lock on a file. A folder on a file system without locks goes without."""

    def __init__(self, folder: Path, run_name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / LEASE_KEY).open("a+b")
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self._try_lock():
                if time.monotonic() >= deadline:
                    self._file.seek(0)
                    raise _refusal(run_name, Holder.parse(self._file.read()))
                time.sleep(_POLL_SECONDS)
            self._write(Holder.of_this_process().to_json())
        except BaseException:
            self._file.close()
            raise

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks here
            pass
        return True

    def _write(self, content: bytes) -> None:
        self._file.truncate(0)
        self._file.write(content)
        self._file.flush()

    def check(self) -> None:
        """Nothing: a lock of the operating system cannot be lost."""

    def release(self) -> None:
        self._file.close()


class _ObjectLease:
    """An object that a thread renews."""

    def __init__(self, store: Store, run_name: str, say: Callable[[str], None]) -> None:
        self._store = store
        self._run_name = run_name
        self._holder = Holder.of_this_process()
        self._other: Holder | None = None  # who has taken over
        self._ended = threading.Event()
        before = self._read()
        if before is not None and not before.released:
            self._watch(before, say)
        self._put(token=before.token + 1 if before is not None else 1)
        self.check()  # of two that take it at once, the later one has it
        self._thread = threading.Thread(target=self._renew, name="ali-lease", daemon=True)
        self._thread.start()

    def _watch(self, before: Holder, say: Callable[[str], None]) -> None:
        """Return when the lease is free."""
        if before.is_gone:
            return
        say(
            f"Run {self._run_name!r} was in use by {before}, which did not say that it ended: watching for "
            f"{STALE_SECONDS:.0f} s whether it is still there."
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            now = self._read()
            if now is None or now.released:
                return
            if now != before:
                raise _refusal(self._run_name, now)

    def _read(self) -> Holder | None:
        try:
            return Holder.parse(self._store.get(LEASE_KEY))
        except MissingObject:
            return None

    def _put(self, **changes: int | bool) -> None:
        self._holder = Holder(**{**asdict(self._holder), **changes})
        self._store.put(LEASE_KEY, self._holder.to_json())

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self.check()
                self._put(beat=self._holder.beat + 1)
            except TrainingError:
                return  # the next check says so
            except (InputError, StorageError):
                continue  # an outage: the next time

    def check(self) -> None:
        if self._other is None:
            found = self._read()
            if found is not None and found.name != self._holder.name:
                self._other = found
        if self._other is not None:
            raise TrainingError(
                f"Run {self._run_name!r} was taken over by {self._other}: this process writes no more. What it has "
                "trained since its last checkpoint is left to the other one."
            )

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self.check()
            self._put(released=True)
        except (InputError, StorageError, TrainingError):
            pass  # then it is another's, or stands still until it is nobody's


def _refusal(run_name: str, holder: Holder | None) -> InputError:
    who = f"by {holder}" if holder is not None else "by another process"
    return InputError(
        f"Run {run_name!r} is being trained {who}: wait until that ends, stop it, or choose another --run.name."
    )


def _host() -> str:
    """This machine and, in a container, its numbering of processes."""
    try:
        namespace = f" {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}{namespace}"


def _start_of(pid: int) -> int:
    """When a process of this machine began, in clock ticks; 0 if there is none, 1 where that cannot be found out."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return 0 if Path("/proc/self").exists() else _is_there(pid)
    except OSError:
        return 1
    state, *others = status.rpartition(")")[2].split()
    return 0 if state in ("Z", "X") else int(others[18])


def _is_there(pid: int) -> int:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        pass
    return 1
