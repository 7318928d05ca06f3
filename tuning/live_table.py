"""What a person at the terminal sees of a sweep: a live table; where there is no terminal, one line for each event."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ali_dist.report.page import format_duration
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, best_record

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_STYLES = {"running": "cyan", "finished": "green", "stopped": "dim", "pruned": "yellow", "failed": "red"}
_MOST_ROWS = 24  # running trials and the best ones; all of them are in results.csv


def format_value(value: Any) -> str:
    """A setting's value, short."""
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class LiveTable:
    """The terminal.

    Args:
        plan: Of the sweep.
        at_once: Trials that run at the same time.
    """

    def __init__(self, plan: SweepPlan, at_once: int) -> None:
        self._plan, self._at_once = plan, at_once
        self._metric, self._budget = plan.judge(), plan.budget()
        self._names = [dimension.name for dimension in plan.dimensions()]
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._note, self._began = "", time.monotonic()

    def open(self) -> None:
        """Start the table, where there is a terminal."""
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()

    def note(self, text: str) -> None:
        """One line, that stands above the table from now on."""
        self._note = text
        self.say(text)

    def say(self, text: str) -> None:
        """One line; on a terminal the table says it."""
        if self._live is None:
            with self._lock:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()

    def draw(self, records: Sequence[TrialRecord]) -> None:
        """Show how things stand. Only the main thread calls."""
        if self._live is not None:
            self._live.update(self.table(records), refresh=True)

    def close(self) -> None:
        """Let go of the terminal; the table stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self, records: Sequence[TrialRecord]) -> Table:
        """Running trials first, then the best."""
        from rich.table import Table
        from rich.text import Text

        best = best_record(records, higher=self._metric.higher)
        table = Table(title=self._headline(records), title_justify="left", caption=self._below(records), pad_edge=False)
        for heading in ("trial", "state", "images", self._metric.title):
            table.add_column(heading, justify="left" if heading in ("trial", "state") else "right", no_wrap=True)
        for name in self._names:
            table.add_column(name.partition(".")[2], justify="right", overflow="fold")
        table.add_column("time", justify="right", no_wrap=True)
        for record in self._shown(records):
            mark = " ★" if best is not None and record.number == best.number else ""
            default = " (preset)" if record.number == 0 and self._plan.search != "grid" else ""
            table.add_row(
                f"{record.number}{default}{mark}",
                Text(record.state, style=_STYLES[record.state]),
                f"{record.images / self._budget:.0%}",
                "" if record.score is None else f"{record.score:.4g}",
                *(format_value(record.settings.get(name)) for name in self._names),
                format_duration(record.seconds),
            )
        return table

    def _shown(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        sign = -1 if self._metric.higher else 1
        worst = float("inf")
        order = sorted(
            records, key=lambda r: (r.state != "running", worst if r.score is None else sign * r.score, r.number)
        )
        return order[:_MOST_ROWS]

    def _headline(self, records: Sequence[TrialRecord]) -> str:
        ended = sum(record.state != "running" for record in records)
        name, spent = self._plan.base["run"]["name"], format_duration(time.monotonic() - self._began)
        line = f"{name}: {ended} of {self._plan.trials} trials ended, {self._at_once} at once, {spent}"
        return f"{line}\n{self._note}" if self._note else line

    def _below(self, records: Sequence[TrialRecord]) -> str | None:
        left = len(records) - _MOST_ROWS
        return f"and {left} more in results.csv" if left > 0 else None
