"""Parts as child processes: each with its limit, each figure kept as soon as it is there, nothing left behind."""

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
_LOOK = 0.1  # seconds between two looks at a child

OK, FAILED, CUT, NOT_BEGUN = "ok", "failed", "cut off", "not begun"


@dataclass(slots=True)
class Outcome:
    """How a part went; JSON-able by `dataclasses.asdict`."""

    status: str
    reason: str = ""
    limit: float = 0.0
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


class _Lines:
    """The complete lines that a growing file of JSON has got since the last look."""

    def __init__(self, file: Path) -> None:
        self._file, self._at = file, 0

    def new(self) -> list[Figure]:
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            stream.seek(self._at)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]  # what follows is still being written
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def run_child(
    command: Sequence[str],
    lines: Path,
    log: Path,
    limit: float,
    *,
    cwd: Path,
    stopped: Callable[[], bool],
    keep: Callable[[Outcome], None],
) -> Outcome:
    """Run one part to its end, its limit, or a stop; it and all that it started are gone when this returns.

    Args:
        command: The child.
        lines: The file that it writes its figures to.
        log: Gets its output.
        limit: Seconds that it may take.
        cwd: Where it runs.
        stopped: Whether the user has asked for an end; looked at ten times a second.
        keep: Called with the outcome so far whenever there are new figures.
    """
    outcome = Outcome(CUT, limit=round(limit, 1))
    source, began = _Lines(lines), time.monotonic()
    with log.open("ab") as output:
        said_from = output.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
        )
    try:
        while child.poll() is None:
            if stopped():
                outcome.reason = "stopped on request"
                break
            if time.monotonic() - began >= limit:
                outcome.reason = f"its {limit:.0f} s were over"
                break
            time.sleep(_LOOK)
            _take(source, outcome, keep)
    finally:
        _end(child)
    _take(source, outcome, keep)
    outcome.seconds = round(time.monotonic() - began, 1)
    if not outcome.reason:
        _judge(outcome, child.returncode, _last_line(log, said_from))
    return outcome


def _take(source: _Lines, outcome: Outcome, keep: Callable[[Outcome], None]) -> None:
    if new := source.new():
        outcome.figures += new
        keep(outcome)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole group at once: its figures are written, and there is nothing that it could still save."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _judge(outcome: Outcome, code: int, said: str) -> None:
    failures = [figure for figure in outcome.figures if figure["kind"] == "failure"]
    outcome.status = OK if code == 0 and not failures else FAILED
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        outcome.reason = f"{failures[0]['what']}: {failures[0]['why']}{more}"
    elif code != 0:
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        outcome.reason = f"ended with {how}: {said}"[:300]


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Replace `file` as a whole: whoever reads it, or ends us meanwhile, finds the old results or the new ones."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
