"""What a part is given: where it computes, until when, and where its figures go, one line for each."""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


class Figures:
    """Hands figures to the parent as soon as they are there, so that a cut-off loses only the one in progress.

    Args:
        file: Each figure is a line of JSON in it.
        deadline: When this process will be ended, in seconds of `time.monotonic`, whose zero all processes share.
    """

    def __init__(self, file: Path, deadline: float) -> None:
        self._file = file
        self._deadline = deadline

    def add(self, kind: str, **values: Any) -> None:
        """Write one figure; `values` are JSON-able."""
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"kind": kind, **values}) + "\n")

    def fail(self, what: str, error: BaseException) -> None:
        """Something went wrong, and the part goes on without it; the traceback goes to the log."""
        traceback.print_exception(error, file=sys.stderr)
        text = str(error).strip() or "no message"
        self.add("failure", what=what, why=f"{type(error).__name__}: {text.splitlines()[0]}"[:300])

    def left(self) -> float:
        """Seconds until this process will be ended."""
        return self._deadline - time.monotonic()

    def fits(self, what: str, seconds: float) -> bool:
        """Whether `what`, which takes about `seconds`, can be begun; where it cannot, that is a figure, too."""
        left = self.left()
        if seconds <= left:
            return True
        self.add("not begun", what=what, needs=round(seconds), left=round(left))
        return False


@dataclass(frozen=True, slots=True)
class Task:
    """What a part needs to know.

    Attributes:
        device: Where to measure. On a CPU everything is done on tiny settings: the check then checks itself.
        out: The user's folder, for pictures.
        work: Data and runs that the parts share; gone when the check ends.
        figures: Where to report.
    """

    device: torch.device
    out: Path
    work: Path
    figures: Figures

    @property
    def tiny(self) -> bool:
        """Whether the figures mean nothing, and only their being there counts."""
        return self.device.type == "cpu"
