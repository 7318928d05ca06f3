"""`report.html`: one self-contained page about one run, for any browser, with or without a network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.config.loading import flatten_mapping, setting_infos
from ali_dist.evaluation.catalog import METRICS
from ali_dist.report.charts import ChartCurve, line_chart
from ali_dist.report.metric_rows import metric_rows
from ali_dist.report.template import note_html, page_html, section_html
from ali_dist.runs.run_reader import Record, RunReader

CAPTIONS = {
    "samples": "Decoder samples G(z), z from the prior",
    "reconstructions": "Reconstructions of holdout images: original left, G(z) with z ~ q(z|x) right",
    "conditions": "One z in every row, under one condition after another",
    "interpolations": "Straight lines in latent space between two holdout images, the originals set apart at the ends",
    "mixture": "Samples over the true modes, reconstructions, and latent codes over the prior",
}


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
    ChartPlan("Learning rate", "", dict(zip(("lr_d", "lr_g"), _NETWORKS, strict=True)), from_zero=True),
    ChartPlan("Throughput", "images per second", {"images_per_second": "all processes"}, from_zero=True),
)


def write_page(run_folder: Path) -> Path:
    """Write `report.html` from what a run folder holds, and return its path.

    It is made of config.json, summary.json, metrics.jsonl and images/*.png; the page says which of them are missing.
    """
    run = RunReader.read(run_folder)
    name = str(run.summary.get("run") or _find_setting(run.config, "run", "name") or run_folder.name)
    metrics, source = _metrics_html(run)
    sections = [
        _headline_html(name, run),
        _alarms_html(run),
        "".join(note_html(problem) for problem in run.problems),
        _gallery_html(run),
        section_html("Metrics", _metric_table(metrics, source)),
        section_html("Curves", _charts_html(run)),
        section_html("Configuration", _config_table(run.config)),
    ]
    path = run_folder / "report.html"
    page = page_html(f"{name} · ALI", "\n".join(section for section in sections if section))
    path.write_bytes(page.encode("utf-8", "surrogateescape"))  # paths of the C locale get their own bytes
    return path


def _headline_html(name: str, run: RunReader) -> str:
    status = str(run.summary.get("status", "running or broken off"))
    settings = [("preset", run.summary.get("preset")), ("data", _find_setting(run.config, "data", "url"))]
    settings += [("networks", _find_setting(run.config, "model", "architecture"))]
    settings += [("weights", run.summary.get("weights")), ("update", run.summary.get("update"))]
    line = " · ".join(f"{label} {value}" for label, value in settings if value)
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _key_figures(run))
    return (
        f'<header><h1>{escape(name)}<span class="status">{escape(status)}</span></h1>'
        f'<p class="soft">{escape(line)}</p><dl class="facts">{facts}</dl></header>'
    )


def _alarms_html(run: RunReader) -> str:
    """What was raised of trouble, with what was done and is to be done about it; empty where nothing was."""
    items = []
    for alarm in run.alarms:
        images = alarm.get("alarm_images", alarm["images"])
        done = {
            "rollback": f"; the run was rolled back to {alarm['images']:,} images",
            "alarm": "; the run was stopped" if alarm.get("response") == "stop" else "",
        }[alarm["event"]]
        text = f"after {images:,} images: {alarm.get('meaning')}{done}. {alarm.get('advice')}"
        items.append(f"<li><strong>{escape(str(alarm.get('alarm')))}</strong> {escape(text)}</li>")
    return section_html("Alarms", f"<ul>{''.join(items)}</ul>") if items else ""


def _key_figures(run: RunReader) -> list[tuple[str, str]]:
    """Label and value of each of the headline's boxes; without a summary, from the last training record."""
    last = run.train[-1] if run.train else {}
    known: Record = {**{k: last[k] for k in ("images", "seconds", "images_per_second", "data_wait") if k in last}}
    known = {**known, "step": last.get("step"), **run.summary}
    boxes: dict[str, tuple[str, Callable[[Any], str]]] = {
        "images": ("images seen", lambda v: f"{v:,.0f}"),
        "step": ("updates", lambda v: f"{v:,.0f}"),
        "seconds": ("wall time", format_duration),
        "images_per_second": ("images per second", lambda v: f"{v:,.0f}"),
        "data_wait": ("waiting for data", lambda v: f"{v:.1%}".replace("%", " %")),
        "world_size": ("processes", str),
        "device": ("device", str),
        "precision": ("precision", str),
        "restarts": ("restarts", str),
        "rollbacks": ("rollbacks", str),
    }
    return [(label, show(known[key])) for key, (label, show) in boxes.items() if known.get(key) is not None]


def format_duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _gallery_html(run: RunReader) -> str:
    figures = []
    for kind, path in run.images.items():
        data = base64.b64encode(path.read_bytes()).decode()
        caption = escape(CAPTIONS.get(kind, kind))
        wide = ' class="wide"' if kind not in ("samples", "reconstructions") else ""
        figures.append(
            f'<figure{wide}><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption} ({escape(path.name)})</figcaption></figure>"
        )
    return section_html("Images", f'<div class="images">{"".join(figures)}</div>') if figures else ""


def _metrics_html(run: RunReader) -> tuple[Mapping[str, float], str]:
    """The final metrics, else those of the last evaluation, and a sentence on where they come from."""
    final = run.summary.get("metrics")
    if isinstance(final, dict) and final:
        split = run.summary.get("metrics_split")
        return _only_numbers(final), f"Of the split {split}, as the run stands." if split else "At the end of the run."
    if run.evaluations:
        last = run.evaluations[-1]
        rest = {k: v for k, v in last.items() if k not in ("images", "step", "seconds")}
        on = f" on the split {last['split']}" if last.get("split") else ""
        return _only_numbers(rest), f"From the last evaluation{on}, after {last['images']:,} images."
    return {}, "There has been no evaluation yet."


def _only_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _metric_table(metrics: Mapping[str, float], source: str) -> str:
    if not metrics:
        return note_html(source)
    rows = "".join(
        f'<tr><th>{escape(row.title)}</th><td class="number">{escape(row.value)}{_caveat_html(row.caveat)}</td>'
        f'<td>{escape(row.reference)}</td><td class="soft">{escape(row.text)}</td></tr>'
        for row in metric_rows(metrics)
    )
    header = "<thead><tr><th>metric</th><th>value</th><th>reference</th><th>meaning</th></tr></thead>"
    return f'{note_html(source)}<div class="scroll"><table class="metrics">{header}<tbody>{rows}</tbody></table></div>'


def _caveat_html(caveat: str) -> str:
    return f'<br><span class="soft">{escape(caveat)}</span>' if caveat else ""


def _charts_html(run: RunReader) -> str:
    charts = [_chart_html(plan, run.train) for plan in CHARTS]
    if len(run.evaluations) > 1:
        for key, info in METRICS.items():
            if info.is_charted:
                plan = ChartPlan(info.title, "share" if info.is_share else "", {key: info.title})
                charts.append(_chart_html(plan, run.evaluations))
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else note_html("There is nothing to draw yet.")


def _chart_html(plan: ChartPlan, records: list[Record]) -> str:
    """Draw the plan's curves that have a finite point; empty where none has."""
    curves = [ChartCurve(legend, _curve_points(records, key)) for key, legend in plan.keys.items()]
    curves = [curve for curve in curves if any(math.isfinite(y) for _, y in curve.points)]
    if not curves:
        return ""
    svg = line_chart(curves, x_label="images seen", y_label=plan.unit, guide=plan.guide, from_zero=plan.from_zero)
    return f'<figure class="chart"><figcaption>{escape(plan.title)}</figcaption>{svg}</figure>'


def _curve_points(records: Iterable[Record], key: str) -> list[tuple[float, float]]:
    return [(r["images"], float(r[key])) for r in records if isinstance(r.get(key), int | float)]


def _config_table(config: Mapping[str, Any]) -> str:
    if not config:
        return note_html("There is no config.json.")
    known = setting_infos()
    rows = []
    for key, value in flatten_mapping(config):
        changed = key in known and known[key].default != value
        text = value if isinstance(value, str) else json.dumps(value)
        help_text = known[key].help if key in known else ""
        mark = ' class="changed"' if changed else ""
        rows.append(
            f'<tr{mark}><th>{escape(key)}</th><td>{escape(text)}</td><td class="soft">{escape(help_text)}</td></tr>'
        )
    table = f'<div class="scroll"><table class="config">{"".join(rows)}</table></div>'
    return note_html("Highlighted: different from the default.") + table


def _find_setting(config: Mapping[str, Any], section: str, name: str) -> Any:
    """The setting `config[section][name]`; None if it is missing."""
    values = config.get(section)
    return values.get(name) if isinstance(values, dict) else None
