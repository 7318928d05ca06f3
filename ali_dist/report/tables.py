"""Metrics as a table for people and as JSON for programs, with intervals where there were several draws."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Self

from ali_dist.evaluation.catalog import metric_bounds
from ali_dist.report.metric_rows import format_metric, metric_rows

_REFERENCE_WIDTH = 34  # most characters of a line in the table's column of references
_WIDTH = 140  # characters of the table's lines where the output is no terminal

_STUDENT_T = [
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
]
"""97.5 % points of Student's t with 1, 2, ... degrees of freedom."""

_LARGEST_LOGIT = 300.0

MOST_SEEDS = len(_STUDENT_T) + 1
"""Draws that `MetricEstimate.from_values` knows an interval for."""


@dataclass(frozen=True, slots=True)
class MetricEstimate:
    """The estimate of one metric.

    Attributes:
        mean: Mean over the draws.
        low: Lower end of a 95 % interval; None for a single draw.
        high: Upper end of that interval, likewise.
        values: The metric of each draw; empty where the interval does not come from draws (a bootstrap).
    """

    mean: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()

    @classmethod
    def from_values(cls, values: Sequence[float], key: str = "") -> Self:
        """The mean of up to 30 independent draws of a metric, with a 95 % interval within what the metric can be.

        It is Student's, mean ± t s / sqrt(n), and ends where the metric does. That of a metric with two ends, such as
        a share, is taken on the scale of its logit (by the delta method) and brought back, so that it nears an end
        without reaching it. Draws that are all equal have that one point for an interval.

        Args:
            values: The draws.
            key: The metric, whose ends the catalog knows; empty: it has none.
        """
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, values=tuple(values))
        reach = _STUDENT_T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
        low, high = _bounded_interval(mean, reach, *metric_bounds(key))
        return cls(mean, low, high, tuple(values))


def _bounded_interval(mean: float, reach: float, least: float, most: float) -> tuple[float, float]:
    """The interval mean ± reach, kept within [least, most]: by its logit where both are finite, else cut off."""
    if math.isinf(least) or math.isinf(most) or not least < mean < most or reach == 0:
        return max(least, mean - reach), min(most, mean + reach)
    share = (mean - least) / (most - least)
    logit_reach = reach / (most - least) / (share * (1 - share))
    # With odds o, the logit's neighbors at distance r are at o e^(-r) and o e^r; capped where exp would overflow.
    factor = math.exp(min(logit_reach, _LARGEST_LOGIT))
    odds = share / (1 - share)
    low, high = odds / factor / (1 + odds / factor), odds * factor / (1 + odds * factor)
    return least + (most - least) * low, least + (most - least) * high


def print_table(estimates: Mapping[str, MetricEstimate], stream: IO[str] | None = None) -> None:
    """Write a table: metric, value, interval where there is one, what to hold it against, and what it is.

    Args:
        estimates: By the metrics' keys.
        stream: Where the table goes; None: to stdout.
    """
    target = stream or sys.stdout
    has_intervals = any(estimate.low is not None for estimate in estimates.values())
    headings = ("Metric", "Value", *(("95 % interval",) if has_intervals else ()), "Reference", "What it is")
    rows = []
    for row in metric_rows({key: estimate.mean for key, estimate in estimates.items()}):
        interval = (_format_interval(row.key, estimates[row.key]),) if has_intervals else ()
        rows.append((row.title, row.value_with_caveat, *interval, row.reference, row.text))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        target.write(_plain_table([headings, *rows]))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings[:-2]:
        table.add_column(heading, no_wrap=True)
    table.add_column("Reference", max_width=_REFERENCE_WIDTH)
    table.add_column("What it is")
    for cells in rows:
        table.add_row(*cells)
    console = Console(file=target, highlight=False, width=None if target.isatty() else _WIDTH, soft_wrap=False)
    console.print(table)


def print_rows(rows: Sequence[Sequence[str]], stream: IO[str] | None = None) -> None:
    """Write a table of texts, its headings first; on a terminal, long texts are broken within their columns."""
    target = stream or sys.stdout
    if not target.isatty():  # programs read a row in a line
        target.write(_plain_table(rows))
        return
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        target.write(_plain_table(rows))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in rows[0]:
        table.add_column(Text(heading), overflow="fold")
    for cells in rows[1:]:
        table.add_row(*map(Text, cells))  # names of runs may hold what rich takes for markup
    Console(file=target, highlight=False).print(table)


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    """The table without rich: one line for each row, with aligned columns and unbroken texts."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _format_interval(key: str, estimate: MetricEstimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{format_metric(key, estimate.low)} to {format_metric(key, estimate.high)}"


def estimates_to_json(estimates: Mapping[str, MetricEstimate]) -> dict[str, Any]:
    """`metrics` by key, and beside it `intervals` and `values` of those that have an interval."""
    with_interval = {key: estimate for key, estimate in estimates.items() if estimate.low is not None}
    return {
        "metrics": {key: estimate.mean for key, estimate in estimates.items()},
        "intervals": {key: [estimate.low, estimate.high] for key, estimate in with_interval.items()},
        "values": {key: list(estimate.values) for key, estimate in with_interval.items() if estimate.values},
    }
