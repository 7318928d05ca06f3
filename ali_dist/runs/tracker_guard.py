"""What keeps the faults of a tracker away from the run: they are said once and counted, and end nothing.

A service is called from a thread of its own, so that a slow one does not hold up the training, and is told nothing that
it has heard of in an earlier start.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ali_dist.errors import Stopped
from ali_dist.runs.optional_packages import without_secrets
from ali_dist.runs.tracker import Histograms, Record, TrackedRun, Tracker, kind_of_picture

MOST_FAILURES = 3
"""Failures in a row after which a tracker is left alone until the next start: each may have cost minutes."""

_MOST_WAITING = 1000  # calls that a slow service may be behind
_SECONDS_TO_FINISH = 60.0


class Memory(Protocol):
    """What a tracker remembers from one start to the next; see `trackers.TrackerMemory`."""

    def recall(self, name: str) -> dict[str, Any]:
        """What a tracker has remembered."""

    def remember(self, name: str, entry: dict[str, Any]) -> None:
        """Keep it."""


class TrackerGuard:
    """Counts and says what a tracker fails at.

    Args:
        name: The tracker's name.
        say: Takes sentences for the user.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self.say = say
        self.is_left_alone = False
        self._failures = 0
        self._in_a_row = 0
        self._missed = 0
        self._reason = ""

    def call(self, function: Callable[[], None]) -> bool:
        """Call the tracker, unless it is left alone; False if it took nothing."""
        if self.is_left_alone:
            self.count_missed()
            return False
        try:
            function()
        except Stopped:
            raise
        except Exception as error:
            self._note(error)
            return False
        self._in_a_row = 0
        return True

    def count_missed(self, count: int = 1) -> None:
        """Count calls that were not made."""
        self._missed += count

    def _note(self, error: Exception) -> None:
        self._failures += 1
        self._in_a_row += 1
        reason = without_secrets(" ".join(f"{type(error).__name__}: {error}".split())).rstrip(".")[:300]
        is_first = not self._reason
        self._reason = self._reason or reason
        if self.is_left_alone:
            self.say(
                f"The tracker {self.name} could not be started ({reason}); the run goes on without it, and "
                "summary.json counts what it misses."
            )
        elif is_first:
            self.say(f"The tracker {self.name} failed ({reason}); the run goes on, and summary.json counts it.")
        if self._in_a_row == MOST_FAILURES and not self.is_left_alone:
            self.is_left_alone = True
            self.say(
                f"The tracker {self.name} failed {MOST_FAILURES} times in a row ({reason}) and is left alone until the "
                "run is started again."
            )

    def to_record(self) -> Record | None:
        """What went wrong in this start, for summary.json; None if nothing did."""
        if not self._failures and not self._missed:
            return None
        return {"failures": self._failures, "missed": self._missed, "reason": self._reason}


class TrackerCalls(Protocol):
    """The methods of `Tracker`, without their faults."""

    guard: TrackerGuard
    appended_files: tuple[str, ...]

    def start(self, run: TrackedRun) -> None:
        """See `Tracker.start`."""

    def forget_after(self, images: int) -> str | None:
        """See `Tracker.forget_after`."""

    def log_record(self, record: Record) -> None:
        """See `Tracker.log_record`."""

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        """See `Tracker.log_histograms`."""

    def log_image(self, path: Path, images: int) -> None:
        """See `Tracker.log_image`."""

    def finish(self, summary: Record) -> None:
        """See `Tracker.finish`; returns when the tracker has everything, or has had its time."""

    def flush(self) -> None:
        """See `Tracker.flush`."""

    def close(self) -> None:
        """See `Tracker.close`."""


class DirectCalls:
    """Calls a tracker that writes files, at once.

    Args:
        tracker: The tracker.
        guard: Takes what it fails at.
    """

    def __init__(self, tracker: Tracker, guard: TrackerGuard) -> None:
        self.guard = guard
        self.appended_files = tracker.appended_files
        self._tracker = tracker

    def start(self, run: TrackedRun) -> None:
        self.guard.call(lambda: _drop(self._tracker.start(run)))

    def forget_after(self, images: int) -> str | None:
        notes: list[str | None] = [None]
        self.guard.call(lambda: notes.append(self._tracker.forget_after(images)))
        return notes[-1]

    def log_record(self, record: Record) -> None:
        self.guard.call(lambda: self._tracker.log_record(record))

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        self.guard.call(lambda: self._tracker.log_histograms(histograms, images))

    def log_image(self, path: Path, images: int) -> None:
        self.guard.call(lambda: self._tracker.log_image(path, images))

    def finish(self, summary: Record) -> None:
        self.guard.call(lambda: self._tracker.finish(summary))

    def flush(self) -> None:
        if not self.guard.is_left_alone:
            self.guard.call(self._tracker.flush)

    def close(self) -> None:
        if not self.guard.is_left_alone:
            self.guard.call(self._tracker.close)


class ServiceCalls:
    """Calls a service from a thread of its own, in order, and nothing twice that it has of an earlier start.

    Args:
        tracker: The tracker.
        guard: Takes what it fails at.
        memory: Remembers the service's id of the run, and the images of the last record of each event.
    """

    appended_files: tuple[str, ...] = ()

    def __init__(self, tracker: Tracker, guard: TrackerGuard, memory: Memory) -> None:
        self.guard = guard
        self._tracker = tracker
        self._memory = memory
        self._entry = memory.recall(guard.name)
        logged = self._entry.get("logged")
        self._logged: dict[str, int] = dict(logged) if isinstance(logged, dict) else {}
        self._known = dict(self._logged)  # up to where it is told nothing
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def start(self, run: TrackedRun) -> None:
        def start() -> None:
            told = replace(run, known_id=str(self._entry.get("id", "")), remember=self._remember_id)
            try:
                known = self._tracker.start(told) or {}
            except Exception:
                self.guard.is_left_alone = True
                raise
            for event, images in known.items():
                self._known[event] = max(images, self._known.get(event, -1))

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker-{self.guard.name}", daemon=True)
            self._thread.start()
        self._put(start)

    def forget_after(self, images: int) -> None:
        """Let the service hear nothing of what it knows: it takes nothing back."""
        self._put(lambda: self._known.update(self._logged))

    def log_record(self, record: Record) -> None:
        self._log(record["event"], record["images"], lambda: self._tracker.log_record(record))

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        self._log("histograms", images, lambda: self._tracker.log_histograms(histograms, images))

    def log_image(self, path: Path, images: int) -> None:
        event = f"pictures/{kind_of_picture(path)}"
        self._log(event, images, lambda: self._tracker.log_image(path, images))

    def finish(self, summary: Record) -> None:
        if self._thread is None:
            return
        deadline = time.monotonic() + _SECONDS_TO_FINISH
        self._put(lambda: self._tracker.finish(summary))
        self._end(deadline)

    def flush(self) -> None:
        """Nothing: it works on its own."""

    def close(self) -> None:
        """Let a thread that was never told of an end have a short while."""
        if self._thread is not None:
            self._put(self._tracker.close)
            self._end(time.monotonic() + _SECONDS_TO_FINISH / 10)

    def _log(self, event: str, images: int, function: Callable[[], None]) -> None:
        def log() -> None:
            if images <= self._known.get(event, -1):
                return
            function()
            self._logged[event] = images
            self._remember()

        self._put(log)

    def _remember_id(self, run_id: str) -> None:
        self._entry["id"] = run_id
        self._remember()

    def _remember(self) -> None:
        self._entry["logged"] = dict(self._logged)
        self._memory.remember(self.guard.name, dict(self._entry))

    def _put(self, function: Callable[[], None]) -> None:
        if self._thread is None:
            return
        try:
            self._calls.put_nowait(function)
        except queue.Full:
            self.guard.count_missed()

    def _work(self) -> None:
        while (function := self._calls.get()) is not None:
            self.guard.call(function)

    def _end(self, deadline: float) -> None:
        """Wait until the thread has done everything; what it has not done by then is counted, and it is left alone."""
        assert self._thread is not None
        thread, self._thread = self._thread, None
        try:
            self._calls.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        else:
            thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            waiting = self._calls.qsize()
            self.guard.is_left_alone = True
            self.guard.count_missed(max(1, waiting - 1))
            self.guard.say(
                f"The tracker {self.guard.name} did not take everything within {_SECONDS_TO_FINISH:.0f} seconds; the "
                "run ends without it."
            )


def _drop(value: object) -> None:
    del value
