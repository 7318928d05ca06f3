"""Metrics as a table for people and as JSON for programs, with intervals where there were several draws."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ali_dist.evaluation.catalog import METRICS, format_metric, metric_rows

MOST_SEEDS = 30
_WIDTH = 140  # of the table where the output is no terminal

# 97.5 % points of Student's t with 1, 2, ... degrees of freedom.
_T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
)


@dataclass(frozen=True, slots=True)
class MetricEstimate:
    """One metric.

    Attributes:
        mean: Over the draws.
        low: Of the 95 % interval of that mean; None for a single draw.
        high: Likewise.
        values: Of each draw.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Sequence[float]) -> MetricEstimate:
        """Mean and Student's 95 % interval, mean ± t s / sqrt(n), of up to 30 independent draws."""
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, values=tuple(values))
        reach = _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - reach, mean + reach, tuple(values))


def print_table(
    measured: Mapping[str, MetricEstimate], notes: Mapping[str, str], stream: IO[str] | None = None
) -> None:
    """Write a table: metric, value, interval where there is one, what to hold it against, what it is.

    Args:
        measured: By name.
        notes: What those are that `metric_notes` does not know.
        stream: Where to; default: stdout.
    """
    target = stream or sys.stdout
    intervals = any(value.low is not None for value in measured.values())
    headings = ("Metric", "Value", *(("95 % interval",) if intervals else ()), "Reference", "What it is")
    keys = {note.title: key for key, note in METRICS.items()}
    rows = []
    for title, value, reference, text in metric_rows({name: value.mean for name, value in measured.items()}):
        key = keys.get(title, title)
        between = (_format_interval(measured[key], key in METRICS and METRICS[key].share),) if intervals else ()
        rows.append((title, value, *between, reference, text or notes.get(key, "")))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        target.write(_plain_table([headings, *rows]))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(
            heading, no_wrap=number < len(headings) - 2, max_width=34 if number == len(headings) - 2 else None
        )
    for row in rows:
        table.add_row(*row)
    console = Console(file=target, highlight=False, width=None if target.isatty() else _WIDTH, soft_wrap=False)
    console.print(table)


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    """The same without rich: one line a row, its columns aligned and its texts unbroken."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _format_interval(measured: MetricEstimate, share: bool) -> str:
    if measured.low is None or measured.high is None:
        return ""
    return f"{format_metric(measured.low, share)} to {format_metric(measured.high, share)}"


def estimates_to_json(measured: Mapping[str, MetricEstimate]) -> dict[str, Any]:
    """`metrics` by name, and beside it `intervals` and `values` where there were several draws."""
    several = {name: value for name, value in measured.items() if value.low is not None}
    return {
        "metrics": {name: value.mean for name, value in measured.items()},
        "intervals": {name: [value.low, value.high] for name, value in several.items()},
        "values": {name: list(value.values) for name, value in several.items() if value.values},
    }
