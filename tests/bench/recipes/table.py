"""Results of trials as a table: the smallest Fréchet distance first, and what failed at the end with its reason."""

from __future__ import annotations

import math
import statistics
import string
from collections.abc import Iterable, Sequence
from typing import Any

from ali_dist.report.metric_rows import format_metric
from tests.bench.recipes.trial import FINISHED, Result

NOTHING = "–"
COLUMNS = (
    ("frechet", "Fréchet distance", "frechet_reference", "real images"),
    ("reconstruction_mse", "reconstruction MSE", "reconstruction_mse_reference", "mean image"),
    ("label_kept", "label kept", "classifier_accuracy", "real images"),
    ("label_entropy", "label entropy", "label_entropy_reference", "data"),
    ("probe_accuracy", "linear probe on µ", "probe_raw_accuracy", "raw pixels"),
    ("probe_random_accuracy", "untrained µ", "", ""),
    ("precision", "precision", "precision_reference", "real images"),
    ("recall", "recall", "recall_reference", "real images"),
)
"""Metric, its heading, what it is held against and that in words, which the heading names, too."""

Rows = list[list[str]]


def newest_results(results: Iterable[Result]) -> list[Result]:
    """Of each variant and seed, the last result."""
    return list({(result["name"], result["seed"]): result for result in results}.values())


def make_rows(results: Iterable[Result]) -> tuple[list[str], Rows, list[str]]:
    """Arrange results in a table.

    Returns:
        The headings, a row for each variant that has finished with at least one seed, and a sentence for each trial
        that has not.
    """
    newest = newest_results(results)
    finished: dict[str, list[Result]] = {}
    for result in newest:
        if result["status"] == FINISHED:
            finished.setdefault(result["name"], []).append(result)
    every = [result for group in finished.values() for result in group]
    shown = [column for column in COLUMNS if any(column[0] in result["metrics"] for result in every)]
    headings = [
        "variant",
        "changes",
        "images",
        "images/s",
        "training",
        *(_heading(column, every) for column in shown),
        "D, E+G loss",
    ]
    rows = [
        [
            name,
            _describe_changes(group[0]["changes"]),
            f"{group[0]['images']:,}" + (f", {len(group)} seeds" if len(group) > 1 else ""),
            f"{statistics.mean(result['images_per_second'] for result in group):,.0f}",
            f"{statistics.mean(result['seconds'] for result in group):,.0f} s",
            *(_format_values(key, [result["metrics"].get(key) for result in group]) for key, *_ in shown),
            ", ".join(
                f"{statistics.mean(result['losses'].get(key, math.nan) for result in group):.2f}"
                for key in ("d_loss", "g_loss")
            ),
        ]
        for name, group in sorted(finished.items(), key=lambda item: _mean_distance(item[1]))
    ]
    failures = [
        f"{result['name']}, seed {result['seed']}: {result['status']} ({result['reason']})"
        for result in newest
        if result["status"] != FINISHED
    ]
    return headings, rows, failures


def _mean_distance(group: Sequence[Result]) -> float:
    distances = [result["metrics"].get("frechet", math.inf) for result in group]
    return statistics.mean(distances)


def _heading(column: tuple[str, str, str, str], results: Sequence[Result]) -> str:
    key, title, reference, words = column
    values = {format_metric(key, r["metrics"][reference]) for r in results if reference in r["metrics"]}
    return f"{title} ({words} {' or '.join(sorted(values))})" if values else title


def _describe_changes(changes: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        return (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        )

    return ", ".join(f"{key.partition('.')[2]} {word(value)}" for key, value in changes.items()) or NOTHING


def _format_values(key: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    mean = format_metric(key, statistics.mean(known))
    return mean if len(known) == 1 else f"{mean} ± {format_metric(key, statistics.stdev(known))}"


def format_text(results: Iterable[Result]) -> str:
    """Format results as aligned plain text."""
    headings, rows, failures = make_rows(results)
    letters = [f"({letter})" for letter in string.ascii_lowercase[: len(headings)]]
    table = [letters, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(headings))]
    lines = [f"{letter} {heading}" for letter, heading in zip(letters, headings, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*(lines if rows else []), *failures])


def format_markdown(results: Iterable[Result], description: str) -> str:
    """Format results as Markdown, below a sentence that says what they are of."""
    headings, rows, failures = make_rows(results)
    lines = [description, ""]
    if rows:
        lines += [f"| {' | '.join(row)} |" for row in (headings, *rows)]
        lines.insert(3, "|---" * len(headings) + "|")
    if failures:
        lines += ["", "Without a result:", "", *(f"- {failure}" for failure in failures)]
    return "\n".join(lines).rstrip()
