"""What a chart says where a pointer is over it: the values at that place, shown by a style sheet alone.

Pages run no scripts, so that they may be opened from anywhere. A chart is covered by bands, each of which brings the
numbers of its place to light while it is hovered over.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

MOST_BANDS = 48
"""Bands of a chart, at most: about ten pixels each."""
STYLE = """
.band rect { fill: transparent; } .band > :not(rect) { visibility: hidden; pointer-events: none; }
.band:hover > :not(rect) { visibility: visible; } .band line { stroke: var(--soft); stroke-width: 0.7; }
svg .band text { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 5px;
  stroke-linejoin: round; }
"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class HoverArea:
    """Where bands may be, in SVG coordinates.

    Attributes:
        left: Left edge.
        right: Right edge.
        top: Upper edge.
        bottom: Lower edge.
        x: Maps a value of the horizontal axis to its place.
        y: Maps a value of the vertical axis to its place.
    """

    left: float
    right: float
    top: float
    bottom: float
    x: Callable[[float], float]
    y: Callable[[float], float]


def draw_bands(names: Sequence[str], curves: Sequence[Points], x_label: str, area: HoverArea) -> list[str]:
    """Draw the bands of a chart as SVG elements.

    Args:
        names: What the curves are called.
        curves: Their points, x ascending; what is not finite is left out.
        x_label: What stands behind a value of the horizontal axis.
        area: Where the bands are.
    """
    finite = [[point for point in points if math.isfinite(point[1])] for points in curves]
    places = _choose_evenly(sorted({x for points in finite for x, _ in points}), MOST_BANDS)
    edges = [area.left, *((area.x(a) + area.x(b)) / 2 for a, b in zip(places, places[1:], strict=False)), area.right]
    bands = []
    for place, start, stop in zip(places, edges, edges[1:], strict=False):
        reach = (stop - start) / 2 + 0.1
        shown = [(index, _nearest(points, place)) for index, points in enumerate(finite) if points]
        shown = [(index, point) for index, point in shown if abs(area.x(point[0]) - area.x(place)) <= reach]
        bands.append(_band_html(names, shown, f"{place:,.0f} {x_label}", area.x(place), (start, stop), area))
    return bands


def _band_html(
    names: Sequence[str],
    shown: Sequence[tuple[int, tuple[float, float]]],
    title: str,
    x: float,
    ends: tuple[float, float],
    area: HoverArea,
) -> str:
    is_left = x < (area.left + area.right) / 2
    text_x = round(x + (7 if is_left else -7), 1)
    lines = [title, *(f"{names[index]} {point[1]:.4g}" for index, point in shown)]
    words = "".join(
        f'<tspan x="{text_x}" y="{area.top + 12 + 13 * row}">{escape(line)}</tspan>' for row, line in enumerate(lines)
    )
    dots = "".join(
        f'<circle class="c{index}" cx="{area.x(point[0])}" cy="{area.y(point[1])}" r="3"/>' for index, point in shown
    )
    return (
        f'<g class="band"><rect x="{ends[0]:.1f}" y="{area.top}" width="{max(0.0, ends[1] - ends[0]):.1f}" '
        f'height="{area.bottom - area.top}"/><line x1="{x}" x2="{x}" y1="{area.top}" y2="{area.bottom}"/>{dots}'
        f'<text text-anchor="{"start" if is_left else "end"}">{words}</text></g>'
    )


def _choose_evenly(values: Sequence[float], most: int) -> list[float]:
    """At most `most` of the values, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def _nearest(points: Points, x: float) -> tuple[float, float]:
    """The point whose x is nearest."""
    place = bisect.bisect_left(points, x, key=lambda point: point[0])
    return min(points[max(0, place - 1) : place + 1], key=lambda point: abs(point[0] - x))
