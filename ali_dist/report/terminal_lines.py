"""The lines that a terminal or a log shows of records, and the block that a run ends with."""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ali_dist.evaluation.catalog import METRICS
from ali_dist.report.metric_rows import format_metric, headline_rows
from ali_dist.report.run_clock import format_elapsed

SEPARATOR = " · "
COMMAND = "  python -m ali_dist."
"""How a line of the closing block begins that holds a command."""


def training_parts(record: Mapping[str, Any]) -> list[str]:
    """What a training record says, most important first; values that the record lacks are left out."""
    parts = []
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:,.0f} img/s")
    if "d_q" in record and "d_p" in record:
        parts.append(f"D(x, E(x)) {record['d_q']:.2f}  D(G(z), z) {record['d_p']:.2f}")
    if "d_loss" in record and "g_loss" in record:
        parts.append(f"loss D {record['d_loss']:.3f}  E,G {record['g_loss']:.3f}")
    if "data_wait" in record:
        parts.append(f"data wait {record['data_wait'] * 100:.1f} %")
    return parts


def evaluation_line(record: Mapping[str, Any]) -> str:
    """The sentence about an evaluation that stays; empty where it measured nothing that is shown live."""
    parts = [
        f"{info.title} {format_metric(key, record[key])}"
        for key, info in METRICS.items()
        if info.is_live and key in record
    ]
    return f"evaluation at {record['images']:,} images: {SEPARATOR.join(parts)}" if parts else ""


def fit_parts(parts: Sequence[str], width: int) -> str:
    """As many of the parts, from the first on, as a line of `width` characters holds; a single one may be cut."""
    line = ""
    for part in parts:
        longer = f"{line}{SEPARATOR}{part}" if line else part
        if len(longer) > width:
            return line or f"{part[: max(0, width - 1)]}…"
        line = longer
    return line


def stamp(text: str, width: int | None = None) -> str:
    """An event with its clock time, such as "12:03 checkpoint at 48,000 images".

    Args:
        text: What happened.
        width: Lines are broken between words so that they hold so many characters; None: they are not broken.
    """
    line = f"{time.strftime('%H:%M')} {text}"
    return line if width is None else wrap(line, width, hanging=6)


def wrap(text: str, width: int, *, hanging: int = 4) -> str:
    """Break a line between words; never within a path, nor in a command, which somebody may want to copy.

    Args:
        text: The line; its indent is kept.
        width: Characters of a line.
        hanging: Blanks before all lines but the first.
    """
    if text.startswith(COMMAND):
        return text
    return "\n".join(
        textwrap.wrap(text, width, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)
    )


def closing_lines(summary: Mapping[str, Any], run_url: str, *, draws: bool, explores: bool) -> list[str]:
    """The block that a finished run ends with: time, the numbers that matter, the report, and what to do next.

    Args:
        summary: The run's summary, as in summary.json.
        run_url: The run's folder.
        draws: Whether the data are images, of which `generate` can draw samples.
        explores: Whether they are pictures, which `explore` can show.
    """
    took = format_elapsed(summary["seconds"])
    lines = [f"Done: run {summary['run']!r}, {summary['images']:,} images in {took}."]
    for row in headline_rows(summary.get("metrics") or {}):
        beside = f"; reference {row.reference}" if row.reference else ""
        lines.append(f"  {row.title}: {row.value_with_caveat}{beside}")
    lines.append(f"Report: {run_url.rstrip('/')}/report.html")
    run = shlex.quote(run_url)
    commands = [f"generate {run}"] if draws else [f"evaluate {run}"]
    commands += [*([f"explore {run}"] if explores else []), f"export {run} exported --format torch"]
    return [*lines, "Next:", *(COMMAND + command for command in commands)]
