"""`report.html`: one self-contained page about one run, for any browser, with or without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.config.closest_preset import find_closest_preset
from ali_dist.config.loading import flatten_mapping, setting_infos
from ali_dist.config.wording import format_count
from ali_dist.report.metric_rows import MetricRow, headline_rows, metric_rows
from ali_dist.report.moments import galleries_html
from ali_dist.report.run_charts import charts_html
from ali_dist.report.run_facts import (
    find_setting,
    format_duration,
    format_share,
    key_figures,
    run_metrics,
    run_name,
    time_shares,
)
from ali_dist.report.template import note_html, page_html, section_html
from ali_dist.runs.run_reader import RunReader


def write_page(run_folder: Path) -> Path:
    """Write `report.html` from what a run folder holds, and return its path.

    It is made of config.json, summary.json, metrics.jsonl and images/*.png; the page says which of them are missing.
    """
    run = RunReader.read(run_folder)
    name = run_name(run, run_folder.name)
    metrics, source = run_metrics(run)
    sections = [
        _headline_html(name, run),
        _alarms_html(run),
        "".join(note_html(problem) for problem in run.problems),
        galleries_html(run.galleries),
        section_html("Metrics", _metric_table(metrics, source)),
        section_html("Curves", charts_html(run)),
        _time_html(run),
        _starts_html(run),
        section_html("Configuration", _config_table(run.config)),
    ]
    path = run_folder / "report.html"
    page = page_html(f"{name} · ALI", "\n".join(section for section in sections if section))
    path.write_bytes(page.encode("utf-8", "surrogateescape"))  # paths of the C locale get their own bytes
    return path


def _headline_html(name: str, run: RunReader) -> str:
    status = str(run.summary.get("status", "begun"))
    settings = [("preset", _preset(run)), ("data", find_setting(run.config, "data", "url"))]
    settings += [("networks", find_setting(run.config, "model", "architecture"))]
    settings += [("weights", run.summary.get("weights")), ("update", run.summary.get("update"))]
    settings += [("as of", str(run.summary.get("updated", "")).replace("T", " ").replace("+00:00", " UTC"))]
    settings += [("ali_dist", run.summary.get("version")), ("torch", run.summary.get("torch"))]
    line = " · ".join(f"{label} {value}" for label, value in settings if value)
    reason = run.summary.get("reason")
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in key_figures(run))
    return (
        f'<header><h1>{escape(name)}<span class="status">{escape(status)}</span></h1>'
        f'<p class="soft">{escape(line)}</p>{note_html(f"It ended here: {reason}") if reason else ""}'
        f'{_judged_html(run)}<dl class="facts">{facts}</dl></header>'
    )


def _preset(run: RunReader) -> str:
    """The preset that a run was made from, as far as its settings tell; empty where they are far from all."""
    closest = find_closest_preset(run.config)
    if closest is None:
        return ""
    name, changes = closest
    return f"{name} ({format_count(changes, 'setting')} changed)" if changes else name


def _judged_html(run: RunReader) -> str:
    """The numbers that matter most, each above what it is held against; empty before the first evaluation."""
    metrics, _ = run_metrics(run)
    boxes = "".join(
        f"<div><dt>{escape(row.title)}</dt><dd>{escape(row.value)}</dd>"
        f'<dd class="soft">{escape(_beside(row))}</dd></div>'
        for row in headline_rows(metrics)
    )
    return f'<dl class="facts judged">{boxes}</dl>' if boxes else ""


def _beside(row: MetricRow) -> str:
    """What limits a number, and what it is held against."""
    return "; ".join(part for part in (row.caveat, f"reference {row.reference}" if row.reference else "") if part)


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


def _time_html(run: RunReader) -> str:
    """What the time went to, as one bar; empty where the summary does not say it."""
    shares = time_shares(run)
    if not shares:
        return ""
    bar = "".join(
        f'<span class="c{index}" style="flex-grow: {share:.4f}" title="{escape(label)}"></span>'
        for index, (label, _, share) in enumerate(shares)
    )
    legend = "".join(
        f'<span class="key c{index}">{escape(label)} {format_share(share)} '
        f'<span class="soft">({format_duration(seconds)})</span></span>'
        for index, (label, seconds, share) in enumerate(shares)
    )
    note = note_html("Of all starts together, from the first update's preparation on, as rank 0 has it.")
    return section_html("Time", f'<div class="parts">{bar}</div><div class="legend">{legend}</div>{note}')


def _starts_html(run: RunReader) -> str:
    """Where the weights come from; empty where the summary does not say it."""
    starts = run.summary.get("starts")
    rows = (
        "".join(_start_html(start) for start in starts if isinstance(start, dict)) if isinstance(starts, list) else ""
    )
    if not rows:
        return ""
    ended = str(run.summary.get("updated", "")).replace("T", " ").replace("+00:00", " UTC")
    status = str(run.summary.get("status", ""))
    end = note_html(f"{'Going on' if status == 'running' else status.capitalize()} as of {ended}.") if ended else ""
    return section_html("Where it comes from", f'<div class="scroll"><table class="starts">{rows}</table></div>{end}')


def _start_html(start: Mapping[str, Any]) -> str:
    """A start: when and where, and below it by which code and command."""
    when = str(start.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    images = start.get("images")
    after = f", after {images:,} images" if isinstance(images, int) and images else ""
    place = f" on {start['host']}" if start.get("host") else ""
    versions = [f"{key} {start[key]}" for key in ("ali_dist", "commit", "torch", "python") if start.get(key)]
    command = f"<br><code>{escape(str(start['command']))}</code>" if start.get("command") else ""
    return (
        f"<tr><td>{escape(f'Started {when}{place}{after}')}{command}"
        f'<br><span class="soft">{escape(", ".join(versions))}</span></td></tr>'
    )


def _caveat_html(caveat: str) -> str:
    return f'<br><span class="soft">{escape(caveat)}</span>' if caveat else ""


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
