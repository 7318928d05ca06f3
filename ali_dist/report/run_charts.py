"""The curves of a run on its page, and those of several runs over each other: which there are, and what they show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ali_dist.evaluation.catalog import METRICS
from ali_dist.report.charts import ChartCurve, line_chart
from ali_dist.report.template import note_html
from ali_dist.runs.run_reader import Record, RunReader


@dataclass(frozen=True)
class ChartPlan:
    """How one chart is drawn.

    Attributes:
        title: What stands above it.
        unit: Unit of the vertical axis.
        keys: Keys of the records that are drawn, with their names in the legend.
        guide: See `line_chart`.
        from_zero: See `line_chart`.
    """

    title: str
    unit: str
    keys: Mapping[str, str]
    guide: float | None = None
    from_zero: bool = False


_NETWORKS = ("discriminator", "encoder and decoder")
CHARTS = (
    ChartPlan("Losses", "nats", dict(zip(("d_loss", "g_loss"), _NETWORKS, strict=True))),
    ChartPlan("What D believes", "mean probability", {"d_q": "encoder pairs", "d_p": "decoder pairs"}, guide=0.5),
    ChartPlan(
        "Gradient penalty on D",
        "",
        {"penalty_q": "R1, encoder pairs", "penalty_p": "R2, decoder pairs"},
        from_zero=True,
    ),
    ChartPlan("Reconstruction term", "", {"cycle": "of the generators' loss"}, from_zero=True),
    ChartPlan("Learning rate", "", dict(zip(("lr_d", "lr_g"), _NETWORKS, strict=True)), from_zero=True),
    ChartPlan("Throughput", "images per second", {"images_per_second": "all processes"}, from_zero=True),
)
_NEIGHBORS = ChartPlan(
    "Distance to the nearest training image",
    "median of pixels' RMS",
    {"samples": "samples", "holdout": "holdout images"},
    from_zero=True,
)
_METRIC_CHARTS = tuple(
    ChartPlan(info.title, "share" if info.is_share else "", {key: info.title})
    for key, info in METRICS.items()
    if info.is_charted
)


def charts_html(run: RunReader) -> str:
    """The curves of one run."""
    charts = [_chart_html(plan, run.train) for plan in CHARTS]
    if len(run.evaluations) > 1:
        charts += [_chart_html(plan, run.evaluations) for plan in _METRIC_CHARTS]
    charts.append(_chart_html(_NEIGHBORS, run.neighbors))
    return _lay_out(charts)


def _chart_html(plan: ChartPlan, records: list[Record]) -> str:
    """Draw the plan's curves that have a finite point; empty where none has, or where all are 0: a term that is off."""
    curves = [ChartCurve(legend, _curve_points(records, key)) for key, legend in plan.keys.items()]
    curves = [curve for curve in curves if any(math.isfinite(y) for _, y in curve.points)]
    if not any(y for curve in curves for _, y in curve.points):
        return ""
    if len(curves) > 1 and all(curve.points == curves[0].points for curve in curves):
        # The last line would hide the others, as if they had no values.
        title = f"{plan.title}: {', '.join(curve.name for curve in curves)}"
        return _figure_html(plan, title, [ChartCurve("all", curves[0].points)])
    return _figure_html(plan, plan.title, curves)


def _curve_points(records: Iterable[Record], key: str) -> list[tuple[float, float]]:
    return [(r["images"], float(r[key])) for r in records if isinstance(r.get(key), int | float)]


def compared_charts_html(names: Sequence[str], runs: Sequence[RunReader]) -> str:
    """The curves of several runs, each quantity in a chart of its own with one line for every run.

    Args:
        names: What the runs are called.
        runs: Up to 4 runs; a run keeps its color in every chart, whether it has the quantity or not.
    """
    charts = [_compared_html(plan, key, names, [run.train for run in runs]) for plan in CHARTS for key in plan.keys]
    if any(len(run.evaluations) > 1 for run in runs):
        charts += [
            _compared_html(plan, key, names, [run.evaluations for run in runs])
            for plan in _METRIC_CHARTS
            for key in plan.keys
        ]
    charts += [_compared_html(_NEIGHBORS, key, names, [run.neighbors for run in runs]) for key in _NEIGHBORS.keys]
    return _lay_out(charts)


def _compared_html(plan: ChartPlan, key: str, names: Sequence[str], records: Sequence[list[Record]]) -> str:
    """One quantity of every run; empty where no run has it, or where it is 0 in all."""
    curves = [ChartCurve(name, _curve_points(of_run, key)) for name, of_run in zip(names, records, strict=True)]
    if not any(y for curve in curves for _, y in curve.points if math.isfinite(y)):
        return ""
    title = plan.title if len(plan.keys) == 1 else f"{plan.title}: {plan.keys[key]}"
    return _figure_html(plan, title, curves)


def _figure_html(plan: ChartPlan, title: str, curves: Sequence[ChartCurve]) -> str:
    svg = line_chart(curves, x_label="images seen", y_label=plan.unit, guide=plan.guide, from_zero=plan.from_zero)
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def _lay_out(charts: Iterable[str]) -> str:
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else note_html("There is nothing to draw yet.")
