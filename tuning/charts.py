"""Plots of a sweep as inline SVG, in the colors of the report page: parallel coordinates, scatter, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ali_dist.report.charts import axis_ticks, format_short

_WIDE, _TALL = 1000, 330
_SMALL_WIDE, _SMALL_TALL = 460, 230
_TOP, _BOTTOM, _LEFT, _RIGHT = 46, 26, 60, 14
_LETTER = 8.5  # pixels of a letter of an axis's label, about: those of a phone, which are larger

STYLE = """
.pc path, .lc path { fill: none; stroke: var(--c0); stroke-width: 1.5; stroke-linejoin: round; }
.pc path:hover, .lc path:hover { stroke-width: 4; opacity: 1 !important; }
.sc circle { fill: var(--c0); stroke: var(--card); stroke-width: 1; }
path.early { stroke: var(--soft); stroke-dasharray: 3 3; } circle.early { fill: var(--soft); }
path.best { stroke: var(--c1); stroke-width: 3; } circle.best { fill: var(--c1); }
path.own { stroke: var(--c2); stroke-width: 3; } circle.own { fill: var(--c2); }
figure:has(> .pc) { overflow-x: auto; }
.pc .name { fill: var(--ink); font-size: 12.5px; } .pc .rail { stroke: var(--rule); stroke-width: 2; }
.key-line { display: inline-block; margin-right: 16px; }
.key-line::before { content: ""; display: inline-block; width: 16px; margin-right: 6px; vertical-align: 4px;
  border-top: 3px solid var(--c0); }
.key-line.best::before { border-color: var(--c1); } .key-line.own::before { border-color: var(--c2); }
.key-line.early::before { border-top: 2px dashed var(--soft); }
.trials { white-space: nowrap; } .trials td, .trials th { padding: 4px 10px; font-size: 13px; }
.trials td { font-variant-numeric: tabular-nums; } .trials td.soft { white-space: normal; min-width: 130px; }
a { color: var(--c0); } .answer { font-size: 17px; } code { overflow-wrap: anywhere; }
@media (max-width: 640px) { .pc { min-width: 760px; } .pc .name { font-size: 14px; } }
"""
"""Goes into the page beside the report's own style."""


@dataclass(frozen=True, slots=True)
class ChartAxis:
    """Where values lie on a line from 0 to 1.

    Attributes:
        label: What the axis shows.
        low: The value at 0.
        high: The value at 1.
        log: Whether values are spread evenly in the logarithm.
        options: The options of a choice, in order; empty for numbers.
    """

    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    options: tuple[Any, ...] = ()

    @classmethod
    def from_values(cls, label: str, values: Sequence[Any], *, log: bool = False, choice: bool = False) -> ChartAxis:
        """The axis that spans the values; with `choice`, the distinct values in order are its options."""
        if choice:
            return cls(label, options=tuple(dict.fromkeys(values)))
        numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)] or [0.0, 1.0]
        low, high = min(numbers), max(numbers)
        if low == high and log:
            low, high = low / 2, high * 2
        elif low == high:
            margin = abs(low) / 10 or 0.5
            low, high = low - margin, high + margin
        return cls(label, low, high, log=log and low > 0)

    def place_value(self, value: Any) -> float | None:
        """Where a value lies, 0 to 1 (and beyond for numbers outside of the axis); None if it has no place here."""
        if self.options:
            return (self.options.index(value) + 0.5) / len(self.options) if value in self.options else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def list_ticks(self) -> list[tuple[float, str]]:
        """Places and texts of some values."""
        if self.options:
            return [((k + 0.5) / len(self.options), _option_text(option)) for k, option in enumerate(self.options)]
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            values = [mark for mark in marks if self.low <= mark * 1.0001 and mark <= self.high * 1.0001]
            values = values if len(values) > 1 else [self.low, self.high]
        else:
            values = [tick for tick in axis_ticks(self.low, self.high, 5) if self.low <= tick <= self.high]
        return [(place, format_short(v)) for v in values if (place := self.place_value(v)) is not None]


@dataclass(frozen=True, slots=True)
class PointMark:
    """One trial in a plot.

    Attributes:
        title: What hovering shows.
        style: CSS class: best, own (the preset's), early or empty.
        opacity: 0 to 1.
        values: By axis in parallel coordinates; (x, y) in a scatter plot; pairs (x, y) along a curve.
    """

    title: str
    style: str
    opacity: float
    values: tuple[Any, ...]


def parallel_coordinates(axes: Sequence[ChartAxis], marks: Sequence[PointMark]) -> str:
    """One line for each trial across upright axes; a value that an axis does not have is marked below it."""
    step = (_WIDE - 2 * _LEFT) / max(1, len(axes) - 1)
    places = [_LEFT + k * step for k in range(len(axes))]
    parts = []
    for mark in marks:
        heights = [_upright_y(axis.place_value(value)) for axis, value in zip(axes, mark.values, strict=True)]
        route = " ".join(
            f"{'L' if k else 'M'}{x:.1f} {y:.1f}" for k, (x, y) in enumerate(zip(places, heights, strict=True))
        )
        parts.append(_svg_path(route, mark))
    for k, (axis, x) in enumerate(zip(axes, places, strict=True)):
        parts.append(f'<line class="rail" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TALL - _BOTTOM}"/>')
        label_x, anchor = _place_label(x, axis.label)
        parts.append(
            f'<text class="name" x="{label_x}" y="{16 + 15 * (k % 2)}" text-anchor="{anchor}">'
            f"{escape(axis.label)}</text>"
        )
        for place, text in axis.list_ticks():
            parts.append(f'<text x="{x + 5:.1f}" y="{_upright_y(place) + 3.5:.1f}">{escape(text)}</text>')
    has_values_below = any(
        axis.place_value(v) is None for mark in marks for axis, v in zip(axes, mark.values, strict=True)
    )
    if has_values_below:
        parts.append(f'<text x="{_LEFT}" y="{_TALL - 4}">below an axis: none</text>')
    view = f"0 0 {_WIDE} {_TALL}"
    return f'<svg class="pc" viewBox="{view}" role="img" aria-label="parallel coordinates">{"".join(parts)}</svg>'


def scatter_plot(x_axis: ChartAxis, y_axis: ChartAxis, marks: Sequence[PointMark]) -> str:
    """A dot for each trial that has both values."""
    parts = _draw_frame(x_axis, y_axis)
    for mark in marks:
        x, y = x_axis.place_value(mark.values[0]), y_axis.place_value(mark.values[1])
        if x is not None and y is not None:
            radius = 5 if mark.style else 4
            parts.append(
                f'<circle class="{mark.style}" cx="{_across_x(x)}" cy="{_down_y(y)}" r="{radius}">'
                f"<title>{escape(mark.title)}</title></circle>"
            )
    return _small_svg("sc", f"{y_axis.label} against {x_axis.label}", parts)


def learning_curves(x_axis: ChartAxis, y_axis: ChartAxis, marks: Sequence[PointMark]) -> str:
    """A line for each trial through its evaluations."""
    parts = _draw_frame(x_axis, y_axis)
    for mark in marks:
        points = [(x_axis.place_value(x), y_axis.place_value(y)) for x, y in mark.values]
        visible = [(_across_x(x), _down_y(y)) for x, y in points if x is not None and y is not None]
        route = " ".join(f"{'L' if k else 'M'}{x} {y}" for k, (x, y) in enumerate(visible))
        parts += [_svg_path(route, mark)] if len(visible) > 1 else []
        parts += [f'<circle class="line c0" cx="{x}" cy="{y}" r="2.5"/>' for x, y in visible[:1] if len(visible) == 1]
    return _small_svg("lc", f"{y_axis.label} over {x_axis.label}", parts)


def _svg_path(route: str, mark: PointMark) -> str:
    look = f'class="{mark.style}" style="opacity:{mark.opacity:.2f}"'
    return f'<path {look} d="{route}"><title>{escape(mark.title)}</title></path>'


def _small_svg(style: str, label: str, parts: Sequence[str]) -> str:
    view = f"0 0 {_SMALL_WIDE} {_SMALL_TALL}"
    return f'<svg class="{style}" viewBox="{view}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _draw_frame(x_axis: ChartAxis, y_axis: ChartAxis) -> list[str]:
    parts = []
    for place, text in y_axis.list_ticks():
        y = _down_y(place)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_SMALL_WIDE - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{escape(text)}</text>')
    for place, text in x_axis.list_ticks():
        parts.append(f'<text x="{_across_x(place)}" y="{_SMALL_TALL - 22}" text-anchor="middle">{escape(text)}</text>')
    middle = (_LEFT + _SMALL_WIDE - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_SMALL_TALL - 5}" text-anchor="middle">{escape(x_axis.label)}</text>'
    )
    return parts


def _place_label(x: float, label: str) -> tuple[float, str]:
    """Where an axis's label stands, and its text-anchor: over the axis, but where it would leave the picture."""
    half = _LETTER * len(label) / 2
    if x - half < 4:
        return 4, "start"
    return (_WIDE - 4, "end") if x + half > _WIDE - 4 else (round(x, 1), "middle")


def _upright_y(place: float | None) -> float:
    span = _TALL - _BOTTOM - _TOP
    return _TALL - _BOTTOM + 10 if place is None else _TALL - _BOTTOM - place * span


def _across_x(place: float) -> float:
    return round(_LEFT + place * (_SMALL_WIDE - _LEFT - _RIGHT), 1)


def _down_y(place: float) -> float:
    return round(_SMALL_TALL - 38 - place * (_SMALL_TALL - 38 - 10), 1)


def _option_text(value: Any) -> str:
    if value is None:
        return "none"
    return format_short(value) if isinstance(value, float) else str(value)
