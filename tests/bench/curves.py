"""Draw curves of runs into one picture for the docs: `python -m tests.bench.curves RUN... --out CURVES.svg`.

A line a run (up to 4, by the names of their folders) over the images that were seen: losses, gradient penalty, error of
reconstructions, and how far the codes of real images are from the prior. Everything is read from `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.cli import parse_path
from ali_dist.errors import InputError, exit_code
from ali_dist.report.charts import HEIGHT, LEFT, WIDTH, ChartCurve, line_chart

Records = Sequence[dict[str, Any]]
Runs = Mapping[str, Records]
"""The records of each run by its name."""
COLUMNS = 2
TITLE_HEIGHT = 26
_COLORS = ("#3867d6", "#c9483b", "#2d8f57", "#8854d0")
_STYLE = " ".join(
    (
        "svg { font-family: system-ui, sans-serif; }",
        "text { fill: #555; font-size: 11px; }",
        ".title { fill: #222; font-size: 13px; }",
        ".grid { stroke: #ddd; }",
        ".line { fill: none; stroke-width: 1.4; stroke-linejoin: round; }",
        ".bar { stroke-width: 9; }",
        *(
            f".c{i} {{ stroke: {color}; }} tspan.c{i} {{ fill: {color}; stroke: none; }}"
            for i, color in enumerate(_COLORS)
        ),
    )
)


@dataclass(frozen=True)
class Panel:
    """What one chart shows.

    Attributes:
        title: What it is.
        event: The records that have it.
        key: Its key there.
        unit: Of the vertical axis.
    """

    title: str
    event: str
    key: str
    unit: str

    def draw(self, runs: Runs) -> str:
        """An SVG element without a legend; empty where no run has such a number."""
        curves = [
            ChartCurve(
                name,
                [(r["images"], _number(r[self.key])) for r in records if r["event"] == self.event and self.key in r],
            )
            for name, records in runs.items()
        ]
        if not any(math.isfinite(y) for curve in curves for _, y in curve.points):
            return ""
        svg = line_chart(curves, x_label="images seen", y_label=self.unit, from_zero=True, shows_values=False)
        return svg[svg.index("<svg") :]


PANELS = (
    Panel("D's loss", "train", "d_loss", "nats"),
    Panel("loss of E and G", "train", "g_loss", "nats"),
    Panel("gradient penalty (R1 + R2)", "train", "penalty", "nats"),
    Panel("reconstruction term of E and G", "train", "cycle", "loss"),
    Panel("codes of images against the prior", "watch", "latent_kl", "nats a dimension"),
    Panel("mean σ of the codes", "watch", "sigma", "σ"),
)


def draw_curves(runs: Runs) -> str:
    """Draw the panels, two in a row, under one legend, as a whole SVG file."""
    legend = [f'<text class="title" x="20" y="18">{format_legend(runs)}</text>']
    return arrange_panels([(escape(panel.title), panel.draw(runs)) for panel in PANELS], legend)


def format_legend(names: Iterable[str]) -> str:
    """SVG text with a dot and the name of each curve, in its color."""
    return "".join(f'<tspan class="c{i}" dx="14">● {escape(name)}</tspan>' for i, name in enumerate(names))


def arrange_panels(panels: Sequence[tuple[str, str]], head: Sequence[str] = ()) -> str:
    """Arrange charts, two in a row, as a whole SVG file.

    Args:
        panels: The title of each, as SVG text, and its SVG element of WIDTH and HEIGHT, which may be empty.
        head: Elements of the first TITLE_HEIGHT pixels.
    """
    top = TITLE_HEIGHT if head else 0
    parts = [*head]
    for number, (title, chart) in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        x, y = column * WIDTH, top + row * (HEIGHT + TITLE_HEIGHT)
        parts.append(f'<text class="title" x="{x + LEFT}" y="{y + 18}">{title}</text>')
        place = f'<svg x="{x}" y="{y + TITLE_HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(chart.replace("<svg ", place, 1))
    width, height = WIDTH * COLUMNS, top + (HEIGHT + TITLE_HEIGHT) * -(-len(panels) // COLUMNS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{_STYLE}</style>'
        f'<rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def read_records(folder: Path) -> Records:
    """The records of a run in a folder."""
    file = folder / "metrics.jsonl"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); RUN must be the folder of a run.") from None
    return [json.loads(line) for line in text.splitlines()]


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.curves", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=parse_path, help="folder of a run")
    parser.add_argument("--out", required=True, type=parse_path, metavar="FILE.svg", help="the picture")
    options = parser.parse_args(arguments)

    def draw() -> None:
        options.out.write_text(draw_curves({run.name: read_records(run) for run in options.runs}), encoding="utf-8")

    return exit_code("tests.bench.curves", draw, "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
