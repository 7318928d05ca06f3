"""A thread that calls a function every so often, so that what takes long is seen to go on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


class Heartbeat:
    """Calls `beat` every `seconds` from a daemon thread until it is stopped; not while a debugger asks for commands.

    Args:
        beat: Called each time; must be quick, and safe beside the thread that works.
        seconds: Seconds between two calls.
    """

    def __init__(self, beat: Callable[[], None], seconds: float = 1.0) -> None:
        self._beat = beat
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the last call has ended; may be called twice."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            if not _is_debugged():
                self._beat()


def _is_debugged() -> bool:
    """Whether the main thread stands in pdb, whose prompt would be drawn over."""
    identity = threading.main_thread().ident
    frame = None if identity is None else sys._current_frames().get(identity)
    while frame is not None:
        if frame.f_globals.get("__name__") == "pdb":
            return True
        frame = frame.f_back
    return False
