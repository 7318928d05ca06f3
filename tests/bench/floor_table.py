"""The result of the floor bench as Markdown."""

from __future__ import annotations

from typing import Any

from tests.bench.roof import Roof

_HALF_PRECISION = 0.5  # of the bytes of saved activations, where the networks compute in bf16
_COUNTED = (
    "preset",
    "batch",
    "update",
    "parameters",
    "GFLOP: forward + backward + penalty",
    "usual style, GFLOP",
    "speed-up that arithmetic allows",
    "MB moved",
    "FLOP/byte",
)
_MEASURED = (
    "at the roof, ms: arithmetic, traffic",
    "measured, ms",
    "of the roof",
    "usual style, ms",
    "speed-up measured",
)


def format_floor(result: dict[str, Any]) -> str:
    """Format the result as Markdown: the command, the machine and its roof, and one table."""
    conditions = result.get("conditions")
    lines = [f"`{result['command']}`{_describe_machine(result) if conditions else ''}", ""]
    headings = _COUNTED + (_MEASURED if conditions else ())
    rows: list[tuple[str, ...]] = [headings, ("---",) * len(headings)]
    for name, row in result["rows"].items():
        cells = _counted_cells(name, row)
        if conditions:
            cells += _measured_cells(row, Roof(**result["roof"]), conditions["precision"])
        rows.append(cells)
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _describe_machine(result: dict[str, Any]) -> str:
    conditions, roof = result["conditions"], result["roof"]
    products = ", ".join(f"{rate / 1e9:,.0f} in {name}" for name, rate in roof["products"].items())
    device = f"{conditions['gpu']}; " if "gpu" in conditions else ""
    return (
        f": {device}{conditions['cpu']}, {conditions['threads']} of {conditions['cores']} cores, "
        f"{conditions['precision']}; torch {conditions['torch']}, Python {conditions['python']}, {conditions['date']}. "
        f"Its roof in the same run: {products} GFLOP/s, and {roof['bytes_per_second'] / 1e9:,.1f} GB/s."
    )


def _counted_cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    parts = [row["forward"], row["backward"], *([row["penalty"]] if row["penalty"] else [])]
    return (
        name,
        f"{row['batch']}",
        row["rule"],
        f"{row['parameters']:,}",
        " + ".join(f"{part / 1e9:.2f}" for part in parts),
        f"{row['usual'] / 1e9:.2f}",
        f"{row['allowed_speed_up']:.2f}",
        f"{row['bytes_moved'] / 1e6:,.0f}",
        f"{row['intensity']:.0f}",
    )


def floor_seconds(row: dict[str, Any], roof: Roof, precision: str) -> tuple[float, float]:
    """Seconds that the arithmetic and the traffic of an update take at the roof."""
    halved = 2 * row["saved_bytes"] * (1 - _HALF_PRECISION) if precision == "bf16" else 0.0
    arithmetic = row["operations"] / roof.operations_per_second(precision)
    return arithmetic, (row["bytes_moved"] - halved) / roof.bytes_per_second


def _measured_cells(row: dict[str, Any], roof: Roof, precision: str) -> tuple[str, ...]:
    arithmetic, traffic = floor_seconds(row, roof, precision)
    return (
        f"{1e3 * arithmetic:,.1f}, {1e3 * traffic:,.1f}",
        f"{1e3 * row['seconds']:,.1f}",
        f"{max(arithmetic, traffic) / row['seconds']:.0%}",
        f"{1e3 * row['usual_seconds']:,.1f}",
        f"{row['speed_up']:.2f}",
    )
