"""What a person at the terminal sees of a sweep: a live table or, without a terminal, one line for each event."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ali_dist.config.wording import format_count
from ali_dist.report.run_facts import format_duration
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, find_best_record

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_STYLES = {"running": "cyan", "finished": "green", "stopped": "dim", "pruned": "yellow", "failed": "red"}
_MOST_ROWS = 24  # running trials and the best ones; results.csv has all of them


def format_value(value: Any) -> str:
    """A setting's value in a few characters."""
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class LiveTable:
    """The table of a running sweep.

    Args:
        plan: The plan of the sweep.
        trials_at_once: How many trials run at the same time.
    """

    def __init__(self, plan: SweepPlan, trials_at_once: int) -> None:
        self._plan = plan
        self._trials_at_once = trials_at_once
        self._metric = plan.score_metric
        self._budget = plan.budget
        self._names = [dimension.name for dimension in plan.dimensions]
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._note = ""
        self._start = time.monotonic()

    def start(self) -> None:
        """Start to draw, where there is a terminal."""
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()

    def show_note(self, text: str) -> None:
        """Show one line, which stands above the table from now on."""
        self._note = text
        self.write_line(text)

    def write_line(self, text: str) -> None:
        """Write one line, unless there is a terminal, where the table shows what it says."""
        if self._live is None:
            with self._lock:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()

    def draw(self, records: Sequence[TrialRecord]) -> None:
        """Show the state of all trials. Only the main thread may call."""
        if self._live is not None:
            self._live.update(self.make_table(records), refresh=True)

    def stop(self) -> None:
        """Let go of the terminal; the table stays on it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def make_table(self, records: Sequence[TrialRecord]) -> Table:
        """The table: running trials first, then the best."""
        from rich.table import Table
        from rich.text import Text

        best = find_best_record(records, higher_is_better=self._metric.higher_is_better)
        table = Table(
            title=self._format_title(records),
            title_justify="left",
            caption=self._format_caption(records),
            pad_edge=False,
        )
        for heading in ("trial", "state", "images", self._metric.title):
            table.add_column(heading, justify="left" if heading in ("trial", "state") else "right", no_wrap=True)
        for name in self._names:
            table.add_column(name.partition(".")[2], justify="right", overflow="fold")
        table.add_column("time", justify="right", no_wrap=True)
        for record in self._choose_rows(records):
            star = " ★" if best is not None and record.number == best.number else ""
            preset = " (preset)" if record.number == 0 and self._plan.has_baseline else ""
            table.add_row(
                f"{record.number}{preset}{star}",
                Text(record.state, style=_STYLES[record.state]),
                f"{record.images / self._budget:.0%}",
                "" if record.score is None else f"{record.score:.4g}",
                *(format_value(record.settings.get(name)) for name in self._names),
                format_duration(record.seconds),
            )
        return table

    def _choose_rows(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        sign = -1 if self._metric.higher_is_better else 1
        worst = float("inf")
        order = sorted(
            records, key=lambda r: (r.state != "running", worst if r.score is None else sign * r.score, r.number)
        )
        return order[:_MOST_ROWS]

    def _format_title(self, records: Sequence[TrialRecord]) -> str:
        ended = sum(record.state != "running" for record in records)
        name = self._plan.base["run"]["name"]
        duration = format_duration(time.monotonic() - self._start)
        trials = format_count(self._plan.trials, "trial")
        line = f"{name}: {ended} of {trials} ended, {self._trials_at_once} at once, {duration}"
        return f"{line}\n{self._note}" if self._note else line

    def _format_caption(self, records: Sequence[TrialRecord]) -> str | None:
        rows_left = len(records) - _MOST_ROWS
        return f"and {rows_left} more in results.csv" if rows_left > 0 else None
