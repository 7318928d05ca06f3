"""`sweep.html`: one self-contained page about a sweep, for any browser, online or not."""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.evaluation.catalog import METRICS
from ali_dist.report.moments import CAPTIONS
from ali_dist.report.page import write_page
from ali_dist.report.run_facts import format_duration
from ali_dist.report.template import note_html, page_html, section_html
from ali_dist.storage.base import Store
from tuning.charts import STYLE, ChartAxis, PointMark, learning_curves, parallel_coordinates, scatter_plot
from tuning.live_table import format_value
from tuning.results import describe_result, find_baseline
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, find_best_record, trial_name

_BEST_TRIALS = 3  # how many trials' pictures are shown
_PICTURE_KINDS = ("samples", "reconstructions", "mixture", "conditions")
_LOG_RATIO = 30  # values that span more than this factor, as errors and distances do, get a logarithmic axis


def write_sweep_page(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> None:
    """Write `sweep.html` into the sweep's folder."""
    store.put("sweep.html", sweep_page_html(plan, records, store).encode("utf-8", "surrogateescape"))


def write_trial_page(store: Store, record: TrialRecord) -> None:
    """Give a trial that was ended from outside the page that a run otherwise writes itself when it ends."""
    trial_store = store.child(f"trials/{trial_name(record.number)}")
    if record.state == "finished" or trial_store.stat("metrics.jsonl") is None:
        return
    page_inputs = ("config.json", "metrics.jsonl", "summary.json", "images/")
    with tempfile.TemporaryDirectory(prefix="ali-dist-page-") as folder:
        for item in trial_store.list():
            if item.key.startswith(page_inputs):
                path = Path(folder) / item.key
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(trial_store.get(item.key))
        trial_store.put("report.html", write_page(Path(folder)))


def sweep_page_html(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> str:
    """The page as HTML.

    Args:
        plan: The plan of the sweep.
        records: The records of its trials.
        store: The sweep's folder, for pictures and for links to the trials' own pages.
    """
    scored = [record for record in records if record.score is not None]
    name = str(plan.base["run"]["name"])
    parts = [f"<style>{STYLE}</style>", _headline_html(name, plan, records)]
    if scored:
        metric = plan.score_metric.title
        title = f"{metric[0].upper()}{metric[1:]} against each setting"
        parts.append(section_html("Trials across settings", _legend_html(plan, records) + _parallel_html(plan, scored)))
        parts.append(section_html(title, _scatters_html(plan, scored)))
        parts.append(section_html("Learning curves", _curves_html(plan, scored)))
        parts.append(_gallery_html(plan, scored, store))
    parts.append(section_html("All trials", _table_html(plan, records, store)))
    parts.append(section_html("What it cost", _cost_html(plan, records)))
    parts.append(section_html("What was searched", _space_html(plan)))
    return page_html(f"{name} · sweep", "\n".join(part for part in parts if part))


def _best_record(plan: SweepPlan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    return find_best_record(records, higher_is_better=plan.score_metric.higher_is_better)


def _is_same_trial(record: TrialRecord | None, other: TrialRecord | None) -> bool:
    return record is not None and other is not None and record.number == other.number


def _headline_html(name: str, plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    states = [record.state for record in records]
    images = sum(record.images for record in records)
    facts = [
        ("trials", f"{len(records)} of {plan.trials}"),
        *((state, str(states.count(state))) for state in dict.fromkeys(states)),
        ("images seen", f"{images:,} of {plan.trials * plan.budget:,}"),
        ("time of trials", format_duration(sum(record.seconds for record in records))),
    ]
    boxes = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    metric = plan.score_metric
    direction = "higher" if metric.higher_is_better else "lower"
    subtitle = (
        f"Preset {plan.preset} · {plan.search} search · scheduler {plan.scheduler} · {plan.budget:,} images a trial"
        f" · {metric.title} from {', '.join(map(_part_title, metric.parts))}, {direction} is better"
    )
    has_best = _best_record(plan, records) is not None
    command = plan.best_command if has_best else "There is no best.yaml yet."
    return (
        f'<header><h1>{escape(name)}</h1><p class="soft">{escape(subtitle)}</p>'
        f'<p class="answer">{escape(describe_result(plan, records))}</p><p><code>{escape(command)}</code></p>'
        f'<dl class="facts">{boxes}</dl></header>'
    )


def _legend_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    baseline = find_baseline(plan, records)
    if _is_same_trial(baseline, _best_record(plan, records)):
        best_key = "best: the preset's own settings"
        baseline_key = ""
    else:
        best_key = "best"
        baseline_key = '<span class="key-line own">the preset\'s own settings</span>' if baseline is not None else ""
    styles = _choose_styles(plan, records)
    drawn = {styles[record.number] for record in records if record.score is not None}
    other_keys = '<span class="key-line">finished or running</span>' if "" in drawn else ""
    other_keys += '<span class="key-line early">ended early</span>' if "early" in drawn else ""
    return (
        f'<p class="soft"><span class="key-line best">{best_key}</span>{baseline_key}{other_keys}'
        "Hover over a line to see its trial.</p>"
    )


def _choose_styles(plan: SweepPlan, records: Sequence[TrialRecord]) -> dict[int, str]:
    """The CSS class of each trial's mark, by its number: best, own (the preset's), early or empty.

    Of all trials at once: to look for the best anew for each mark would take the square of their number.
    """
    styles = {record.number: "" if record.state in ("finished", "running") else "early" for record in records}
    for record, style in ((find_baseline(plan, records), "own"), (_best_record(plan, records), "best")):
        if record is not None:
            styles[record.number] = style
    return styles


def _make_mark(plan: SweepPlan, style: str, record: TrialRecord, values: Sequence[Any]) -> PointMark:
    settings = ", ".join(f"{name} {format_value(value)}" for name, value in record.settings.items())
    score = f"{plan.score_metric.title} {format_value(record.score)}"
    opacity = {"": 0.7, "early": 0.55}.get(style, 1.0)
    return PointMark(f"trial {record.number} ({record.state}), {score}: {settings}", style, opacity, tuple(values))


def _make_marks(plan: SweepPlan, records: Sequence[TrialRecord], values: Sequence[Sequence[Any]]) -> list[PointMark]:
    """The marks of all trials with the values of each; early ends come first and the best last, to be drawn on top."""
    styles = _choose_styles(plan, records)
    order = ("early", "", "own", "best")
    drawn = sorted(zip(records, values, strict=True), key=lambda pair: order.index(styles[pair[0].number]))
    return [_make_mark(plan, styles[record.number], record, own_values) for record, own_values in drawn]


def _setting_axis(plan: SweepPlan, records: Sequence[TrialRecord], name: str) -> ChartAxis:
    dimension = next(d for d in plan.dimensions if d.name == name)
    values = [*dimension.extreme_values(), *(r.settings.get(name) for r in records)]
    label = name.partition(".")[2]
    return ChartAxis.from_values(label, values, log=dimension.kind == "loguniform", choice=dimension.kind == "choice")


def _value_axis(label: str, values: Sequence[float]) -> ChartAxis:
    low = min(values)
    return ChartAxis.from_values(label, values, log=low > 0 and max(values) > _LOG_RATIO * low)


def _score_axis(plan: SweepPlan, records: Sequence[TrialRecord]) -> ChartAxis:
    return _value_axis(plan.score_metric.title, [r.score for r in records if r.score is not None])


def _parallel_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    names = [dimension.name for dimension in plan.dimensions]
    axes = [_setting_axis(plan, records, name) for name in names]
    axes.append(_score_axis(plan, records))
    marks = _make_marks(plan, records, [[*(r.settings.get(name) for name in names), r.score] for r in records])
    return f'<figure class="chart">{parallel_coordinates(axes, marks)}</figure>'


def _scatters_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    y_axis = _score_axis(plan, records)
    figures = []
    for name in (dimension.name for dimension in plan.dimensions):
        marks = _make_marks(plan, records, [(r.settings.get(name), r.score) for r in records])
        chart = scatter_plot(_setting_axis(plan, records, name), y_axis, marks)
        without_value = sum(r.settings.get(name) is None for r in records)
        note = f' <span class="soft">({without_value} without a value)</span>' if without_value else ""
        figures.append(f'<figure class="chart"><figcaption>{escape(name)}{note}</figcaption>{chart}</figure>')
    return f'<div class="charts">{"".join(figures)}</div>'


def _curves_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    metric = plan.score_metric
    parts = metric.parts if len(metric.parts) > 1 else ()
    keys = ["score", *(part for part in parts if not part.endswith("_reference"))]
    x_axis = ChartAxis("images seen", 0.0, float(plan.budget))
    figures = []
    for key in keys:
        values = [e[key] for r in records for e in r.evaluations if math.isfinite(e.get(key, math.nan))]
        if not values:
            continue
        title = metric.title if key == "score" else _part_title(key)
        marks = _make_marks(
            plan, records, [[(e["images"], e[key]) for e in r.evaluations if key in e] for r in records]
        )
        chart = learning_curves(x_axis, _value_axis(title, values), marks)
        figures.append(f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{chart}</figure>')
    return f'<div class="charts">{"".join(figures)}</div>'


def _part_title(key: str) -> str:
    """What a metric that a score is made of is called; a reference has no row of its own in the catalog."""
    return METRICS[key].title if key in METRICS else key


def _gallery_html(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> str:
    """The newest pictures of the best trials, and of the preset's own."""
    metric = plan.score_metric
    baseline = find_baseline(plan, records)
    sign = -1 if metric.higher_is_better else 1
    best_first = sorted(records, key=lambda r: (r.state != "finished", sign * (r.score or 0.0)))
    shown = best_first[:_BEST_TRIALS]
    if baseline is not None and baseline not in shown:
        shown.append(baseline)
    figures = []
    for record in shown:
        newest = _newest_pictures(store, record)
        for kind in (kind for kind in _PICTURE_KINDS if kind in newest):
            settings = "the preset's own settings, " if _is_same_trial(record, baseline) else ""
            score = f"{metric.title} {format_value(record.score)}"
            caption = escape(f"Trial {record.number}, {settings}{score}: {CAPTIONS[kind]}")
            data = base64.b64encode(store.get(newest[kind])).decode()
            wide = ' class="wide"' if kind not in ("samples", "reconstructions") else ""
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            figures.append(f"<figure{wide}>{image}<figcaption>{caption}</figcaption></figure>")
    if not figures:
        return ""
    return section_html("Pictures of the best trials", f'<div class="images">{"".join(figures)}</div>')


def _newest_pictures(store: Store, record: TrialRecord) -> dict[str, str]:
    """Keys of the newest picture of each kind, by kind; a picture is named after its kind and the images seen."""
    keys = [item.key for item in store.list(f"trials/{trial_name(record.number)}/images/")]
    return {key.rpartition("/")[2].rpartition("-")[0]: key for key in keys if key.endswith(".png")}


def _table_html(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> str:
    metric = plan.score_metric
    names = [dimension.name for dimension in plan.dimensions]
    heads = ["trial", "state", metric.title, "images", "time", *(n.partition(".")[2] for n in names), "why it ended"]
    sign = -1 if metric.higher_is_better else 1
    best_first = sorted(records, key=lambda r: (r.score is None, sign * (r.score or 0.0)))
    rows = []
    for record in best_first:
        page = f"trials/{trial_name(record.number)}/report.html"
        link = f'<a href="{page}">{record.number}</a>' if store.stat(page) is not None else str(record.number)
        preset = " (preset)" if record.number == 0 and plan.has_baseline else ""
        cells = [record.state, "" if record.score is None else format_value(record.score), f"{record.images:,}"]
        cells += [format_duration(record.seconds), *(format_value(record.settings.get(name)) for name in names)]
        cells_html = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><td>{link}{preset}</td>{cells_html}<td class="soft">{escape(record.reason)}</td></tr>')
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f'<div class="scroll"><table class="trials"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div>{note_html('Best first. All metrics of each trial are in results.csv.')}"
    )


def _cost_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """For each way in which trials ended: how many, their images, their time, and what they held for so long."""
    states = list(dict.fromkeys(record.state for record in records))
    groups = [(state, [r for r in records if r.state == state]) for state in states] + [("all", list(records))]
    rows = []
    for name, group in groups:
        images = sum(r.images for r in group)
        kinds = sorted({kind for r in group for kind in r.held})
        held = [(kind, sum(r.seconds * r.held.get(kind, 0.0) for r in group)) for kind in kinds]
        cells = [
            str(len(group)),
            f"{images:,} ({images / max(1, len(group) * plan.budget):.0%} of their budgets)",
            format_duration(sum(r.seconds for r in group)),
            ", ".join(f"{format_duration(seconds)} of one {kind}" for kind, seconds in held),
        ]
        rows.append(f"<tr><th>{name}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{text}</th>" for text in ("", "trials", "images seen", "time of trials", "held"))
    return f'<div class="scroll"><table class="trials"><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _space_html(plan: SweepPlan) -> str:
    ranges = {d.name: f"{d.kind} {', '.join(map(format_value, d.values))}" for d in plan.dimensions}
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in ranges.items())
    return f'<div class="scroll"><table class="config">{rows}</table></div>'
