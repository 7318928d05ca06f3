"""What a part is given: where it computes, how much time it has, and where it writes its figures."""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


class FigureWriter:
    """Hands each figure to the parent at once, so that a part which is cut off loses only the one in progress.

    Args:
        file: Gets a line of JSON for each figure.
        deadline: When this process will be killed, in seconds of `time.monotonic`, whose zero all processes share.
    """

    def __init__(self, file: Path, deadline: float) -> None:
        self._file = file
        self._deadline = deadline

    def add(self, kind: str, **values: Any) -> None:
        """Write one figure; `values` are JSON-able."""
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"kind": kind, **values}) + "\n")

    def add_failure(self, what: str, error: BaseException) -> None:
        """Write that `what` failed, and its traceback to the log; the part goes on without it."""
        traceback.print_exception(error, file=sys.stderr)
        text = str(error).strip() or "no message"
        self.add("failure", what=what, why=f"{type(error).__name__}: {text.splitlines()[0]}"[:300])

    def seconds_left(self) -> float:
        """Seconds until this process will be killed."""
        return self._deadline - time.monotonic()

    def has_time_for(self, what: str, seconds: float) -> bool:
        """Whether there is time for `what`, which takes about `seconds`; if not, a figure says so."""
        seconds_left = self.seconds_left()
        if seconds <= seconds_left:
            return True
        self.add("not begun", what=what, needs=round(seconds), left=round(seconds_left))
        return False


@dataclass(frozen=True, slots=True)
class PartTask:
    """What a part needs to know.

    Attributes:
        device: Where to measure. On a CPU the settings are tiny, and the check only tests itself.
        out: The user's folder, for pictures.
        work: A folder for data and runs that the parts share; it is deleted when the check ends.
        figures: Where to write figures.
    """

    device: torch.device
    out: Path
    work: Path
    figures: FigureWriter

    @property
    def is_tiny(self) -> bool:
        """Whether the settings are tiny, so that the figures say nothing about the device."""
        return self.device.type == "cpu"
