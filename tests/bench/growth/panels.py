"""What a part of the growth bench finds: curves over one quantity, as a panel of the picture and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tests.bench.curves import arrange_panels, format_legend
from tuning.charts import ChartAxis, PointMark, learning_curves

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity.

    Attributes:
        name: What it is, with its unit.
        points: (x, y) with x ascending.
        key: What the picture calls it; empty: only the table has it.
    """

    name: str
    points: Points
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves over the same quantity.

    Attributes:
        title: What the panel shows.
        x: Name of the quantity.
        y: Unit of the curves that are drawn.
        curves: Up to 4 that are drawn.
        log: Whether the upright axis is logarithmic; else it begins at 0. The other one always is logarithmic.
        remark: What belongs to it.
    """

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log: bool = False
    remark: str = ""

    def draw(self) -> tuple[str, str]:
        """Its title with the legend, and its chart, as SVG."""
        drawn = [curve for curve in self.curves if curve.key]
        places = [x for curve in drawn for x, _ in curve.points]
        heights = [y for curve in drawn for _, y in curve.points]
        y_axis = ChartAxis.from_values(self.y, heights, log=True) if self.log else ChartAxis(self.y, 0.0, max(heights))
        marks = [PointMark(curve.name, f"line c{i}", 1.0, curve.points) for i, curve in enumerate(drawn)]
        chart = learning_curves(ChartAxis.from_values(self.x, places, log=True), y_axis, marks)
        return _entitle(
            f"{self.title}: {self.y}" if len(drawn) < 2 else self.title, [curve.key for curve in drawn]
        ), chart

    def to_markdown(self) -> str:
        """A table with a column for each x."""
        places = sorted({x for curve in self.curves for x, _ in curve.points})
        lines = [
            f"| {self.x} | {' | '.join(f'{x:,.0f}' for x in places)} |",
            f"| --- {'| ---: ' * len(places)}|",
        ]
        for curve in self.curves:
            heights = dict(curve.points)
            cells = [format_figure(heights[x]) if x in heights else "-" for x in places]
            lines.append(f"| {curve.name} | {' | '.join(cells)} |")
        return "\n".join([f"**{self.title}**" + (f": {self.remark}" if self.remark else ""), "", *lines])


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasts, in seconds from the beginning of the backward pass."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What goes on at the same time.

    Attributes:
        title: What it shows.
        spans: Each on a line of its own, the first on top.
        remark: What belongs to it.
    """

    title: str
    spans: tuple[Span, ...]
    remark: str

    def draw(self) -> tuple[str, str]:
        """Its title, and a chart with a line for each span, as SVG."""
        ends = [1e3 * edge for span in self.spans for edge in (span.begin, span.end)]
        time_axis = ChartAxis("ms from the beginning of the backward pass", min(0.0, *ends), max(ends))
        names = ChartAxis("", options=tuple(span.name for span in reversed(self.spans)))
        marks = []
        for number, span in enumerate(self.spans):
            edges = tuple((1e3 * edge, span.name) for edge in (span.begin, span.end))
            marks.append(PointMark(span.name, f"bar c{min(number, 1)}", 1.0, edges))
        return _entitle(self.title, []), learning_curves(time_axis, names, marks)

    def to_markdown(self) -> str:
        """A table with a row for each span."""
        lines = ["| | begins at ms | ends at ms |", "| --- | ---: | ---: |"]
        lines += [f"| {span.name} | {1e3 * span.begin:.1f} | {1e3 * span.end:.1f} |" for span in self.spans]
        return "\n".join([f"**{self.title}**: {self.remark}", "", *lines])


Finding = Panel | Timeline


def draw_findings(findings: Sequence[Finding]) -> str:
    """All of them as a whole SVG file."""
    return arrange_panels([finding.draw() for finding in findings])


def format_figure(value: float) -> str:
    """A figure of a table in three digits, and whole from a hundred on."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _entitle(title: str, names: Sequence[str]) -> str:
    return escape(title) if len(names) < 2 else f"{escape(title)}{format_legend(names)}"
