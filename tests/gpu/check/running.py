"""Parts as child processes: each has a time limit, each figure is saved at once, and no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figure = dict[str, Any]
_POLL_SECONDS = 0.1

OK, FAILED, CUT_OFF, NOT_BEGUN = "ok", "failed", "cut off", "not begun"


@dataclass(slots=True)
class PartOutcome:
    """How a part ended; JSON-able by `dataclasses.asdict`.

    Attributes:
        status: `OK`, `FAILED`, `CUT_OFF` or `NOT_BEGUN`.
        reason: Why it is not ok.
        limit: Seconds that it had.
        seconds: Seconds that it took.
        figures: What it has measured.
    """

    status: str
    reason: str = ""
    limit: float = 0.0
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


class _FigureReader:
    """Reads the lines of JSON that a child appends to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position = 0

    def read_new(self) -> list[Figure]:
        """Read the complete lines that were written since the last call."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            stream.seek(self._position)
            text = stream.read()
        complete = text[: text.rfind(b"\n") + 1]  # what follows is still being written
        self._position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def run_child(
    command: Sequence[str],
    figure_file: Path,
    log: Path,
    limit: float,
    *,
    cwd: Path,
    stop_requested: Callable[[], bool],
    on_new_figures: Callable[[PartOutcome], None],
) -> PartOutcome:
    """Run one part until it ends, its time is over, or the user stops the check.

    When this function returns, the part and all processes that it started have ended.

    Args:
        command: The command line of the part.
        figure_file: The file that it writes its figures to.
        log: Gets its output.
        limit: Seconds that it may take.
        cwd: Where it runs.
        stop_requested: Whether the user has asked the check to stop; called ten times a second.
        on_new_figures: Called with the outcome so far whenever there are new figures.
    """
    outcome = PartOutcome(CUT_OFF, limit=round(limit, 1))
    reader = _FigureReader(figure_file)
    began = time.monotonic()
    with log.open("ab") as output:
        log_start = output.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
        )
    try:
        while child.poll() is None:
            if stop_requested():
                outcome.reason = "stopped on request"
                break
            if time.monotonic() - began >= limit:
                outcome.reason = f"its {limit:.0f} s were over"
                break
            time.sleep(_POLL_SECONDS)
            _add_new_figures(reader, outcome, on_new_figures)
    finally:
        _kill_group(child)
    _add_new_figures(reader, outcome, on_new_figures)
    outcome.seconds = round(time.monotonic() - began, 1)
    if not outcome.reason:
        _set_status(outcome, child.returncode, _last_line(log, log_start))
    return outcome


def _add_new_figures(
    reader: _FigureReader, outcome: PartOutcome, on_new_figures: Callable[[PartOutcome], None]
) -> None:
    if figures := reader.read_new():
        outcome.figures += figures
        on_new_figures(outcome)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and its whole group: its figures are written, and it has nothing else to save."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _set_status(outcome: PartOutcome, code: int, last_line: str) -> None:
    """Decide whether a part that has ended by itself succeeded, and why not."""
    failures = [figure for figure in outcome.figures if figure["kind"] == "failure"]
    outcome.status = OK if code == 0 and not failures else FAILED
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        outcome.reason = f"{failures[0]['what']}: {failures[0]['why']}{more}"
    elif code != 0:
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        outcome.reason = f"ended with {how}: {last_line}"[:300]


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Replace `file` atomically: at any time it holds either the old results or the new ones, never a part of them."""
    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)
