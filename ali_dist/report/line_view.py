"""How a run looks in a pipe, a job or a file: one short line with clock time for each record and event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ali_dist.report.run_clock import IDLE_SECONDS, RunClock, format_elapsed
from ali_dist.report.terminal_lines import SEPARATOR, evaluation_line, stamp, training_parts
from ali_dist.report.unbreakable_stream import UnbreakableStream

EVERY_SECONDS = 30.0
"""Shortest time between two lines about the same phase, and the longest that a log of a run stands still."""


class LineView:
    """Writes lines; what takes long is told by `beat`, which another thread calls about every second.

    Args:
        clock: Where the run is.
        stream: What is written to.
    """

    def __init__(self, clock: RunClock, stream: UnbreakableStream) -> None:
        self._clock = clock
        self._stream = stream
        self._told_phase = ""
        self._told_at = time.monotonic()

    def update(self, record: Mapping[str, Any] | None) -> None:
        """Write the record, if there is one."""
        if record is None:
            return
        if record.get("event") == "evaluation":
            self.message(evaluation_line(record))
        else:
            self.message(SEPARATOR.join([*self._position(), *training_parts(record)]))

    def message(self, text: str) -> None:
        """Write an event."""
        if text:
            self.write(stamp(text))

    def write(self, text: str) -> None:
        """Write a line without clock time."""
        self._told_at = time.monotonic()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def refresh(self) -> None:
        """Nothing is written anew in a log."""

    def beat(self) -> None:
        """Write what is being done, if nothing has been written for long."""
        phase = self._clock.phase
        silence = time.monotonic() - self._told_at
        is_new = bool(phase) and phase != self._told_phase and self._clock.idle_seconds >= IDLE_SECONDS
        if not phase:
            self._told_phase = ""
        if silence >= EVERY_SECONDS or (is_new and silence >= IDLE_SECONDS):
            self._told_phase = phase
            self.message(SEPARATOR.join(self._clock.phase_parts() if phase else self._position()))

    def close(self) -> None:
        """Nothing is left to write."""
        self._stream.flush()

    def _position(self) -> list[str]:
        clock = self._clock
        parts = [f"{clock.images:,} / {clock.total_images:,} images"]
        if clock.idle_seconds >= IDLE_SECONDS:
            parts.append(f"no update for {format_elapsed(clock.idle_seconds)}")
        elif clock.remaining is not None:
            parts.append(f"{format_elapsed(clock.remaining)} left")
        return parts
