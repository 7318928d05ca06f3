"""`sweep.html`: one self-contained page about a sweep, for any browser, online or not."""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.report.page import CAPTIONS, format_duration, write_page
from ali_dist.report.template import note_html, page_html, section_html
from ali_dist.storage.base import Store
from tuning.charts import STYLE, ChartAxis, PointMark, learning_curves, parallel_coordinates, scatter_plot
from tuning.live_table import format_value
from tuning.results import describe_result, find_baseline
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, best_record, trial_name

_BEST = 3  # trials whose pictures are shown
_PICTURES = ("samples", "reconstructions", "mixture", "conditions")


def write_sweep_page(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> None:
    """Write `sweep.html` into the sweep's folder."""
    store.put("sweep.html", sweep_page_html(plan, records, store).encode())


def write_trial_page(store: Store, record: TrialRecord) -> None:
    """Give a trial that was ended from outside the page that a run writes itself when it ends."""
    mine = store.child(f"trials/{trial_name(record.number)}")
    if record.state == "finished" or mine.stat("metrics.jsonl") is None:
        return
    wanted = ("config.json", "metrics.jsonl", "summary.json", "images/")
    with tempfile.TemporaryDirectory(prefix="ali-dist-page-") as folder:
        for item in mine.list():
            if item.key.startswith(wanted):
                path = Path(folder) / item.key
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(mine.get(item.key))
        mine.put("report.html", write_page(Path(folder)))


def sweep_page_html(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> str:
    """The page as HTML; `store` is the sweep's folder, for pictures and links to the trials' own pages."""
    scored = [record for record in records if record.score is not None]
    name = str(plan.base["run"]["name"])
    parts = [f"<style>{STYLE}</style>", _headline_html(name, plan, records)]
    if scored:
        parts.append(section_html("Trials across settings", _legend_html(plan, records) + _parallel_html(plan, scored)))
        parts.append(
            section_html(f"{plan.judge().title.capitalize()} against each setting", _scatters_html(plan, scored))
        )
        parts.append(section_html("Learning curves", _curves_html(plan, scored)))
        parts.append(_gallery_html(plan, scored, store))
    parts.append(section_html("All trials", _table_html(plan, records, store)))
    parts.append(section_html("What it cost", _cost_html(plan, records)))
    parts.append(section_html("What was searched", _plan_table(plan)))
    return page_html(f"{name} · sweep", "\n".join(part for part in parts if part))


def _headline_html(name: str, plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    states = [record.state for record in records]
    images = sum(record.images for record in records)
    facts = [
        ("trials", f"{len(records)} of {plan.trials}"),
        *((state, str(states.count(state))) for state in dict.fromkeys(states)),
        ("images seen", f"{images:,} of {plan.trials * plan.budget():,}"),
        ("time of trials", format_duration(sum(record.seconds for record in records))),
    ]
    boxes = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    metric = plan.judge()
    soft = (
        f"Preset {plan.preset} · {plan.search} search · scheduler {plan.scheduler} · {plan.budget():,} images a trial"
        f" · {metric.title} from {', '.join(metric.parts)}, {'higher' if metric.higher else 'lower'} is better"
    )
    use = f"python -m ali_dist.train --preset {plan.folder}/best.yaml"
    use = use if best_record(records, higher=metric.higher) is not None else "There is no best.yaml yet."
    return (
        f'<header><h1>{escape(name)}</h1><p class="soft">{escape(soft)}</p>'
        f'<p class="answer">{escape(describe_result(plan, records))}</p><p><code>{escape(use)}</code></p>'
        f'<dl class="facts">{boxes}</dl></header>'
    )


def _legend_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    own, best = find_baseline(plan, records), best_record(records, higher=plan.judge().higher)
    same = own is not None and best is not None and own.number == best.number
    name = "best: the preset's own settings" if same else "best"
    apart = '<span class="key-line own">the preset\'s own settings</span>' if own is not None and not same else ""
    others = '<span class="key-line">finished or running</span><span class="key-line early">ended early</span>'
    return (
        f'<p class="soft"><span class="key-line best">{name}</span>{apart}{others}'
        "Hover over a line to see its trial.</p>"
    )


def _style_html(plan: SweepPlan, records: Sequence[TrialRecord], record: TrialRecord) -> str:
    best, own = best_record(records, higher=plan.judge().higher), find_baseline(plan, records)
    if best is not None and record.number == best.number:
        return "best"
    if own is not None and record.number == own.number:
        return "own"
    return "" if record.state in ("finished", "running") else "early"


def _mark_class(
    plan: SweepPlan, records: Sequence[TrialRecord], record: TrialRecord, values: Sequence[Any]
) -> PointMark:
    settings = ", ".join(f"{name} {format_value(value)}" for name, value in record.settings.items())
    title = f"trial {record.number} ({record.state}), {plan.judge().title} {format_value(record.score)}: {settings}"
    style = _style_html(plan, records, record)
    return PointMark(title, style, {"": 0.7, "early": 0.55}.get(style, 1.0), tuple(values))


def _order_records(plan: SweepPlan, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Early ends first and the best last, so that what matters is drawn on top."""
    order = ("early", "", "own", "best")
    return sorted(records, key=lambda record: order.index(_style_html(plan, records, record)))


def _setting_axis(plan: SweepPlan, records: Sequence[TrialRecord], name: str) -> ChartAxis:
    dimension = next(d for d in plan.dimensions() if d.name == name)
    values = [*dimension.extremes(), *(r.settings.get(name) for r in records)]
    short = name.partition(".")[2]
    return ChartAxis.of(short, values, log=dimension.kind == "loguniform", choice=dimension.kind == "choice")


def _score_axis(plan: SweepPlan, scores: Sequence[float]) -> ChartAxis:
    """Logarithmic where scores span more than a factor of 30, as errors and distances do."""
    low, high = min(scores), max(scores)
    return ChartAxis.of(plan.judge().title, scores, log=low > 0 and high > 30 * low)


def _parallel_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    names = [dimension.name for dimension in plan.dimensions()]
    axes = [_setting_axis(plan, records, name) for name in names]
    axes.append(_score_axis(plan, [r.score for r in records if r.score is not None]))
    marks = [
        _mark_class(plan, records, r, [*(r.settings.get(name) for name in names), r.score])
        for r in _order_records(plan, records)
    ]
    return f'<figure class="chart">{parallel_coordinates(axes, marks)}</figure>'


def _scatters_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    y_axis = _score_axis(plan, [r.score for r in records if r.score is not None])
    figures = []
    for dimension in plan.dimensions():
        marks = [
            _mark_class(plan, records, r, (r.settings.get(dimension.name), r.score))
            for r in _order_records(plan, records)
        ]
        drawn = scatter_plot(_setting_axis(plan, records, dimension.name), y_axis, marks)
        without = sum(r.settings.get(dimension.name) is None for r in records)
        absent = f' <span class="soft">({without} without a value)</span>' if without else ""
        figures.append(
            f'<figure class="chart"><figcaption>{escape(dimension.name)}{absent}</figcaption>{drawn}</figure>'
        )
    return f'<div class="charts">{"".join(figures)}</div>'


def _curves_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    metric = plan.judge()
    parts = metric.parts if len(metric.parts) > 1 else ()
    keys = ["score", *(part for part in parts if not part.endswith("_reference"))]
    figures = []
    for key in keys:
        values = [e[key] for r in records for e in r.evaluations if math.isfinite(e.get(key, math.nan))]
        if not values:
            continue
        title = metric.title if key == "score" else key
        log = min(values) > 0 and max(values) > 30 * min(values)
        y_axis, x_axis = ChartAxis.of(title, values, log=log), ChartAxis("images seen", 0.0, float(plan.budget()))
        marks = [
            _mark_class(plan, records, r, [(e["images"], e[key]) for e in r.evaluations if key in e])
            for r in _order_records(plan, records)
        ]
        drawn = learning_curves(x_axis, y_axis, marks)
        figures.append(f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{drawn}</figure>')
    return f'<div class="charts">{"".join(figures)}</div>'


def _gallery_html(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> str:
    """Newest pictures of the best trials, and of the preset's own."""
    metric, own = plan.judge(), find_baseline(plan, records)
    order = sorted(records, key=lambda r: (r.state != "finished", (r.score or 0.0) * (-1 if metric.higher else 1)))
    chosen = order[:_BEST] + ([own] if own is not None and own not in order[:_BEST] else [])
    figures = []
    for record in chosen:
        newest = {item.key.rpartition("/")[2].rpartition("-")[0]: item.key for item in _newest_pictures(store, record)}
        for kind in (kind for kind in _PICTURES if kind in newest):
            whose = "the preset's own settings, " if own is not None and record.number == own.number else ""
            caption = escape(
                f"Trial {record.number}, {whose}{metric.title} {format_value(record.score)}: {CAPTIONS[kind]}"
            )
            data = base64.b64encode(store.get(newest[kind])).decode()
            wide = ' class="wide"' if kind not in ("samples", "reconstructions") else ""
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            figures.append(f"<figure{wide}>{image}<figcaption>{caption}</figcaption></figure>")
    return (
        section_html("Pictures of the best trials", f'<div class="images">{"".join(figures)}</div>') if figures else ""
    )


def _newest_pictures(store: Store, record: TrialRecord) -> Sequence[Any]:
    """Of a trial, the newest of a kind last."""
    return [item for item in store.list(f"trials/{trial_name(record.number)}/images/") if item.key.endswith(".png")]


def _table_html(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> str:
    metric = plan.judge()
    names = [dimension.name for dimension in plan.dimensions()]
    heads = ["trial", "state", metric.title, "images", "time", *(n.partition(".")[2] for n in names), "why it ended"]
    sign = -1 if metric.higher else 1
    order = sorted(records, key=lambda r: (r.score is None, sign * (r.score or 0.0)))
    rows = []
    for record in order:
        page = f"trials/{trial_name(record.number)}/report.html"
        link = f'<a href="{page}">{record.number}</a>' if store.stat(page) is not None else str(record.number)
        own = " (preset)" if record.number == 0 and plan.search != "grid" else ""
        cells = [record.state, "" if record.score is None else format_value(record.score), f"{record.images:,}"]
        cells += [format_duration(record.seconds), *(format_value(record.settings.get(name)) for name in names)]
        drawn = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><td>{link}{own}</td>{drawn}<td class="soft">{escape(record.reason)}</td></tr>')
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f'<div class="scroll"><table class="trials"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div>{note_html('Best first. All metrics of each trial are in results.csv.')}"
    )


def _cost_html(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """By how trials ended: how many, their images, their time, and what they held for so long."""
    rows = []
    states = list(dict.fromkeys(record.state for record in records))
    groups = [(state, [r for r in records if r.state == state]) for state in states] + [("all", list(records))]
    for name, group in groups:
        images, kinds = sum(r.images for r in group), sorted({kind for r in group for kind in r.held})
        held = [(kind, sum(r.seconds * r.held.get(kind, 0.0) for r in group)) for kind in kinds]
        cells = [str(len(group)), f"{images:,} ({images / max(1, len(group) * plan.budget()):.0%} of their budgets)"]
        cells += [
            format_duration(sum(r.seconds for r in group)),
            ", ".join(f"{format_duration(s)} of one {k}" for k, s in held),
        ]
        rows.append(f"<tr><th>{name}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{text}</th>" for text in ("", "trials", "images seen", "time of trials", "held"))
    return f'<div class="scroll"><table class="trials"><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _plan_table(plan: SweepPlan) -> str:
    rows = "".join(
        f"<tr><th>{escape(d.name)}</th><td>{d.kind}</td><td>{escape(', '.join(map(format_value, d.values)))}</td></tr>"
        for d in plan.dimensions()
    )
    return f'<div class="scroll"><table class="config">{rows}</table></div>'
