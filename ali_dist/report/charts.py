"""Line charts as inline SVG: they follow the page's light or dark theme and need neither matplotlib nor a browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ali_dist.report.chart_hover import HoverArea, draw_bands

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 10, 36  # margins around the axes
MOST_POINTS = 400
"""Points of a line that are drawn, at most."""


@dataclass(frozen=True)
class ChartCurve:
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        points: Its points (x, y), x ascending from above 0; where y is not finite, the line is broken.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    curves: Sequence[ChartCurve],
    *,
    x_label: str,
    y_label: str,
    guide: float | None = None,
    from_zero: bool = False,
    shows_values: bool = True,
) -> str:
    """Draw an SVG element with axes and grid, and with a legend where there are several lines.

    Args:
        curves: Up to 4 lines with at least one finite point in all.
        x_label: Quantity and unit of the horizontal axis.
        y_label: Quantity and unit of the vertical axis.
        guide: Height of a dashed horizontal line, e.g. an ideal value; None: no such line.
        from_zero: Whether the vertical axis includes 0.
        shows_values: Whether it shows the values of the place where a pointer is; see `chart_hover.py`.

    Raises:
        ValueError: No point is finite.
    """
    finite_points = [(x, y) for curve in curves for x, y in curve.points if math.isfinite(y)]
    if not finite_points:
        raise ValueError("A chart needs at least one finite point.")
    heights = [y for _, y in finite_points] + ([] if guide is None else [guide]) + ([0.0] if from_zero else [])
    last = max(1.0, *(x for x, _ in finite_points))
    x_ticks = [tick for tick in axis_ticks(0.0, last, 5) if tick <= last]  # the data ends at the right edge
    y_ticks = axis_ticks(min(heights), max(heights), 5)
    scale = _ChartScale(0.0, last, y_ticks[0], y_ticks[-1])
    elements = [*_draw_axes(scale, x_ticks, y_ticks), *_draw_labels(x_label, y_label)]
    if guide is not None:
        height = scale.y(guide)
        elements.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
    for index, curve in enumerate(curves):
        elements.extend(_draw_line(curve, scale, f"line c{index}"))
    area = HoverArea(LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, scale.x, scale.y)
    if shows_values:
        elements += draw_bands([curve.name for curve in curves], [curve.points for curve in curves], x_label, area)
    legend = "".join(f'<span class="key c{i}">{escape(curve.name)}</span>' for i, curve in enumerate(curves))
    legend = f'<div class="legend">{legend}</div>' if len(curves) > 1 else ""
    names = escape(", ".join(curve.name for curve in curves))
    return (
        f'{legend}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{names} over {escape(x_label)}">{"".join(elements)}</svg>'
    )


def axis_ticks(low: float, high: float, count: int) -> list[float]:
    """Choose round numbers that span [low, high], evenly spaced: about `count` of them, at least two."""
    if high <= low:
        pad = abs(low) / 10 or 0.5
        low, high = low - pad, high + pad
    exact_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(exact_step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= exact_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_short(value: float) -> str:
    """A number in at most four digits, with k, M or G from a thousand on."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


@dataclass(frozen=True)
class _ChartScale:
    """Maps data to SVG coordinates, rounded to a tenth of a pixel; x0, x1, y0 and y1 are the ends of the axes."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM), 1)


def _draw_axes(scale: _ChartScale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[str]:
    elements = []
    for value in y_ticks:
        y = scale.y(value)
        elements.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        elements.append(f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{format_short(value)}</text>')
    for value in x_ticks:
        x = scale.x(value)
        elements.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{format_short(value)}</text>')
    return elements


def _draw_labels(x_label: str, y_label: str) -> list[str]:
    middle = (HEIGHT - BOTTOM + TOP) / 2
    return [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text class="axis" transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]


def _draw_line(curve: ChartCurve, scale: _ChartScale, style: str) -> list[str]:
    """Draw a polyline for each unbroken stretch, and a dot where a stretch is a single point."""
    stretches: list[list[str]] = [[]]
    for x, y in thin_out(curve.points):
        if math.isfinite(y):
            stretches[-1].append(f"{scale.x(x)},{scale.y(y)}")
        else:
            stretches.append([])
    elements = []
    for stretch in stretches:
        if len(stretch) == 1:
            x_text, y_text = stretch[0].split(",")
            elements.append(f'<circle class="{style}" cx="{x_text}" cy="{y_text}" r="2.5"/>')
        elif stretch:
            elements.append(f'<polyline class="{style}" points="{" ".join(stretch)}"/>')
    return elements


def thin_out(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep at most `MOST_POINTS` points, the lowest and highest of each stretch, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    kept: list[tuple[float, float]] = []
    size = math.ceil(2 * len(points) / MOST_POINTS)
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        not_finite = [point for point in stretch if not math.isfinite(point[1])]
        extremes = not_finite[:1] or {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept.extend(sorted(extremes))
    return kept
