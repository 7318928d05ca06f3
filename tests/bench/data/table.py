"""The results of the bench of reading as tables, for a terminal and for the docs."""

from __future__ import annotations

from typing import Any

_READING = (
    "side",
    "stored as",
    "from",
    "reader",
    "images per CPU-second",
    "images/s",
    "per CPU-second, times webdataset",
)
_HTTP = ("requests an epoch", "bytes an image")
Table = list[tuple[str, ...]]


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"


def _reading_table(rows: list[dict[str, Any]]) -> Table:
    table: Table = [(*_READING, *_HTTP)]
    for row in rows:
        epochs = row["images"] / row["samples"]
        over_http = row["place"] == "http"
        requests = f"{row['requests'] / epochs:.0f}" if over_http else "-"
        sent = f"{row['sent_bytes'] / row['images']:,.0f}" if over_http else "-"
        rates = f"{row['images_per_cpu_second']:,.0f}", f"{row['images_per_second']:,.0f}"
        table.append(
            (str(row["side"]), row["encoding"], row["place"], row["reader"], *rates, _ratio(row), requests, sent)
        )
    return table


def _decoding_table(rows: list[dict[str, Any]]) -> Table:
    table: Table = [("side", "stored as", "decoder", "CPU µs an image", "times Pillow")]
    for row in rows:
        own = (str(row["side"]), row["encoding"], row["decoder"], f"{row['microseconds']:.0f}", _ratio(row))
        table.append(own)
    return table


def _describe_plan(plan: dict[str, Any]) -> str:
    return (
        f"Planning an epoch of {plan['samples']:,} samples in {plan['shards']:,} shards and {plan['lanes']} lanes "
        f"({plan['windows']:,} windows) takes {plan['milliseconds']:.0f} ms of CPU time "
        f"(at most {plan['most_milliseconds']:.0f})."
    )


def _describe_conditions(result: dict[str, Any]) -> str:
    conditions = result["conditions"]
    return (
        f"{conditions['cpu']}, {conditions['cores']} cores, load {result['load'][0]} to {result['load'][1]}; "
        f"torch {conditions['torch']}, Python {conditions['python']}, {conditions['date']}."
    )


def _tables(result: dict[str, Any]) -> list[Table]:
    tables = []
    if "reading" in result:
        tables.append(_reading_table(result["reading"]))
    if result.get("decoding"):
        tables.append(_decoding_table(result["decoding"]))
    return tables


def format_text(result: dict[str, Any]) -> str:
    """Format the result as aligned plain text."""
    parts = [_describe_conditions(result)]
    for table in _tables(result):
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        parts.append("\n".join(line.rstrip() for line in lines))
    if "plan" in result:
        parts.append(_describe_plan(result["plan"]))
    return "\n\n".join(parts)


def format_markdown(result: dict[str, Any]) -> str:
    """Format the result as Markdown, with the command and the machine."""
    parts = [f"`{result['command']}`: {_describe_conditions(result)}"]
    for table in _tables(result):
        rows = [table[0], ("---",) * len(table[0]), *table[1:]]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if "plan" in result:
        parts.append(_describe_plan(result["plan"]))
    return "\n\n".join(parts)
