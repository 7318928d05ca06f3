"""What a driver and its workers tell each other: notes in the key-value store of their Ray cluster.

An actor would do, but is a process more at the start of each run. The store's functions are those that Ray's own
libraries use (2.60).
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from dataclasses import dataclass, field

import ray
from ray.experimental import internal_kv

from ali_dist.runs.trackers import Record

_NAMESPACE = "ali_dist"
_POLL_SECONDS = 0.25  # a look takes a millisecond


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes of one run, or of one sweep. They are read and written in any process of the cluster.

    Attributes:
        key: Under which they lie in the store.
    """

    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def tell_begin(self) -> None:
        """Called by a worker that begins to train, and that from now on shows itself how far it is."""
        self._write("begun", "")

    def has_begun(self) -> bool:
        """Whether a worker has begun."""
        return self._read("begun") is not None

    def request_stop(self) -> None:
        """Called by the driver when it was asked to stop."""
        self._write("stop", "")

    def is_stop_requested(self) -> bool:
        """Whether a stop is requested."""
        return self._read("stop") is not None

    def refuse(self, kind: str, message: str) -> None:
        """Called by a worker that found that the run cannot go on, so that restarting would not help.

        Args:
            kind: `input` or `training`: whose fault it is.
            message: One sentence.
        """
        self._write("refusal", json.dumps([kind, message]))

    def read_refusal(self) -> tuple[str, str] | None:
        """Kind and message of the first refusal; None if no worker has refused."""
        text = self._read("refusal")
        if text is None:
            return None
        kind, message = json.loads(text)
        return kind, message

    def discard(self) -> None:
        """Forget all of them, once nobody will ask any more."""
        for name in ("begun", "stop", "refusal"):
            with contextlib.suppress(ray.exceptions.RayError):
                internal_kv._internal_kv_del(f"{self.key}/{name}", namespace=_NAMESPACE)

    def _write(self, name: str, text: str) -> None:
        """Write a note; one of this name that is there already stays."""
        internal_kv._internal_kv_put(f"{self.key}/{name}", text.encode(), overwrite=False, namespace=_NAMESPACE)

    def _read(self, name: str) -> bytes | None:
        return internal_kv._internal_kv_get(f"{self.key}/{name}", namespace=_NAMESPACE)


class NotesWatch:
    """Looks at a run's notes for its driver, in a thread: a cluster's head that does not answer would hold it up.

    Args:
        notes: Those of the run.
    """

    def __init__(self, notes: Notes) -> None:
        self.has_begun = False
        self.refusal: tuple[str, str] | None = None
        self._notes = notes
        self._end_event = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._look, name="notes-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._end_event.set()

    def _look(self) -> None:
        while self.refusal is None and not self._end_event.wait(_POLL_SECONDS):
            with contextlib.suppress(ray.exceptions.RayError):
                self.has_begun = self.has_begun or self._notes.has_begun()
                self.refusal = self._notes.read_refusal()


def watch_for_stop(notes: Notes | None) -> threading.Event:
    """An event that is set once the driver asks to save and stop.

    Args:
        notes: Those of the run, or of the sweep; None if nobody will ask.
    """
    stop_event = threading.Event()

    def wait_for_driver() -> None:
        assert notes is not None
        while not stop_event.is_set():
            with contextlib.suppress(ray.exceptions.RayError):
                if notes.is_stop_requested():
                    stop_event.set()
            time.sleep(_POLL_SECONDS)

    if notes is not None:
        threading.Thread(target=wait_for_driver, name="stop-watch", daemon=True).start()
    return stop_event


def refused_outcome(refusal: tuple[str, str]) -> Record:
    """What a worker returns that has refused to go on, or that starts again after a refusal."""
    kind, message = refusal
    return {"outcome": kind, "message": message}
