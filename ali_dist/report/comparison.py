"""One self-contained page about several runs: what differs in their settings, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ali_dist.config.loading import flatten_mapping, setting_infos
from ali_dist.evaluation.catalog import METRICS
from ali_dist.report.embedding import embed_pictures
from ali_dist.report.metric_rows import MetricRow, headline_rows, metric_rows
from ali_dist.report.moments import CAPTIONS, moment_text
from ali_dist.report.run_charts import compared_charts_html
from ali_dist.report.run_facts import (
    differing_settings,
    find_setting,
    format_share,
    key_figures,
    run_metrics,
    run_name,
    time_shares,
)
from ali_dist.report.template import note_html, page_html, section_html
from ali_dist.runs.run_reader import IMAGE_KINDS, RunReader

MOST_RUNS = 4
"""Runs on one page, at most: so many colors are told apart."""
_MOST_BYTES = 3_000_000  # of all pictures
_NOTHING = "–"  # where a run lacks what others have
_UNLIKE = {"data.url": "data", "data.source": "source of data", "report.evaluation_samples": "number of samples"}


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs on a page.

    Attributes:
        place: Where it is, as the user gave it.
        run: Its files.
    """

    place: str
    run: RunReader


def comparison_html(compared: Sequence[ComparedRun]) -> str:
    """The page about 2 to `MOST_RUNS` runs. It loads nothing from the network, and runs no scripts."""
    names = _names(compared)
    runs = [one.run for one in compared]
    caveats = _caveats(names, runs)
    sections = [
        _header_html(names, compared),
        "".join(note_html(sentence) for sentence in caveats),
        _judged_html(names, runs),
        note_html(_of_lengths(runs)) if _of_lengths(runs) else "",
        section_html("Settings that differ", _settings_table(names, runs)),
        _pictures_html(names, runs),
        section_html("Curves", compared_charts_html(names, runs)),
        section_html("Metrics", _metrics_table(names, runs, marks_best=not caveats)),
        section_html("Runs", _facts_table(names, runs)),
    ]
    return page_html(f"{' and '.join(names)} · ALI", "\n".join(section for section in sections if section))


def _names(compared: Sequence[ComparedRun]) -> list[str]:
    """What the runs are called: by their names or, where two have the same one, by their places."""
    names = [run_name(one.run, one.place) for one in compared]
    return names if len(set(names)) == len(names) else [one.place for one in compared]


def _header_html(names: Sequence[str], compared: Sequence[ComparedRun]) -> str:
    title = " <span>and</span> ".join(_key_html(index, name) for index, name in enumerate(names))
    places = "".join(note_html(f"{name}: {one.place}") for name, one in zip(names, compared, strict=True))
    problems = "".join(
        note_html(f"{name}: {problem}")
        for name, one in zip(names, compared, strict=True)
        for problem in one.run.problems
    )
    return f'<header><h1 class="compared">{title}</h1>{places}{problems}</header>'


def _key_html(index: int, text: str) -> str:
    """A run's name, or a number of it, beside the run's color."""
    return f'<span class="key c{index}">{escape(text)}</span>'


def _caveats(names: Sequence[str], runs: Sequence[RunReader]) -> list[str]:
    """Why the numbers of the runs do not tell which is better, a sentence each."""
    settings = [dict(flatten_mapping(run.config)) for run in runs]
    sentences = []
    for key, what in _UNLIKE.items():
        values = [values.get(key) for values in settings]
        if any(value != values[0] for value in values) and any(settings):
            sentences.append(f"The runs differ in their {what} ({key}), so their metrics may not be comparable.")
    splits = [_split(run) for run in runs]
    if len({split for split in splits if split}) > 1:
        of = ", ".join(f"{name} on {split or 'none'}" for name, split in zip(names, splits, strict=True))
        sentences.append(f"The runs were measured on different splits ({of}), so their metrics may not be comparable.")
    return sentences


def _of_lengths(runs: Sequence[RunReader]) -> str:
    """A sentence where the runs are not equally long; empty where they are."""
    if len({str(run.summary.get("images")) for run in runs}) == 1:
        return ""
    return "The runs have seen different numbers of images: the curves show them at equal numbers."


def _split(run: RunReader) -> str:
    """The split that a run's metrics are of; empty where that is unknown."""
    if run.summary.get("metrics"):
        return str(run.summary.get("metrics_split") or "")
    return str(run.evaluations[-1].get("split") or "") if run.evaluations else ""


def _judged_html(names: Sequence[str], runs: Sequence[RunReader]) -> str:
    """The numbers that the runs are judged by, each with the values of all runs; empty where no run has one."""
    rows = [{row.key: row for row in headline_rows(run_metrics(run)[0])} for run in runs]
    titles = {key: row.title for of_run in rows for key, row in of_run.items()}
    boxes = []
    for key in [key for key in METRICS if key in titles]:
        values = [_key_html(index, of_run[key].value) for index, of_run in enumerate(rows) if key in of_run]
        better = METRICS[key].better
        boxes.append(
            f"<div><dt>{escape(titles[key])}</dt>{''.join(f'<dd>{value}</dd>' for value in values)}"
            f'<dd class="soft">{f"{better} is better" if better else ""}</dd></div>'
        )
    return f'<dl class="facts judged">{"".join(boxes)}</dl>' if boxes else ""


def _table_html(first: str, names: Sequence[str], rows: Sequence[str], *, last: str = "") -> str:
    """A table with a column for each run, and one for remarks behind them where `last` is their heading."""
    heads = "".join(f"<th>{_key_html(index, name)}</th>" for index, name in enumerate(names))
    end = f'<th class="remark">{escape(last)}</th>' if last else ""
    return (
        f'<div class="scroll"><table class="across"><thead><tr><th>{escape(first)}</th>{heads}{end}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _facts_table(names: Sequence[str], runs: Sequence[RunReader]) -> str:
    """Status, key figures and versions of every run."""
    facts: list[dict[str, str]] = []
    for run in runs:
        beside = {key: run.summary.get(key) for key in ("preset", "weights", "update")}
        beside |= {"ali_dist": run.summary.get("version"), "torch": run.summary.get("torch")}
        beside |= {"networks": find_setting(run.config, "model", "architecture")}
        beside |= _last_start(run)
        alarms = {"alarms": ", ".join(sorted({str(alarm.get("alarm")) for alarm in run.alarms}))}
        time = {"time": ", ".join(f"{label} {format_share(share)}" for label, _, share in time_shares(run))}
        shown = {"status": run.summary.get("status", "begun"), **dict(key_figures(run)), **time, **beside, **alarms}
        facts.append({key: str(value) for key, value in shown.items() if value})
    return _table_html("", names, [_row_html(key, [of.get(key) for of in facts]) for key in _union(facts)])


def _last_start(run: RunReader) -> dict[str, Any]:
    """Commit, host and command of a run's newest start."""
    starts = run.summary.get("starts")
    last = starts[-1] if isinstance(starts, list) and starts else {}
    return {key: last.get(key) for key in ("commit", "host", "command")} if isinstance(last, dict) else {}


def _row_html(
    title: str,
    values: Sequence[str | None],
    remark: str | None = None,
    *,
    beside: Sequence[str] = (),
    best: int | None = None,
) -> str:
    """A line of a table.

    Args:
        title: What it is about.
        values: What each run has; None: nothing.
        remark: What stands behind them; None where the table has no remarks.
        beside: What stands below each value, if anything.
        best: The run whose value stands out.
    """
    cells = "".join(
        f"<td{' class=best' if index == best else ''}>{_NOTHING if value is None else escape(value)}"
        f"{_beside_html(beside[index]) if beside else ''}</td>"
        for index, value in enumerate(values)
    )
    end = "" if remark is None else f'<td class="soft remark">{escape(remark)}</td>'
    return f"<tr><th>{escape(title)}</th>{cells}{end}</tr>"


def _beside_html(text: str) -> str:
    together = escape(text).replace(" %", "&nbsp;%")  # columns are narrow on a phone
    return f'<br><span class="soft">{together}</span>' if text else ""


def _union(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys, in the order in which they come first."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _settings_table(names: Sequence[str], runs: Sequence[RunReader]) -> str:
    """The settings that are not the same in all runs; their names are known already."""
    known = setting_infos()
    configs = [run.config for run in runs]
    rows = [
        _row_html(key, texts, known[key].help if key in known else "")
        for key, texts in differing_settings(configs).items()
    ]
    if not rows:
        return note_html("None, beside their names." if all(configs) else "There is no config.json to compare.")
    return _table_html("setting", names, rows, last="what it is")


def _metrics_table(names: Sequence[str], runs: Sequence[RunReader], *, marks_best: bool) -> str:
    """Every metric of every run; the best of those with a direction stands out, where they may be compared."""
    metrics = [run_metrics(run)[0] for run in runs]
    rows = [{row.key: row for row in metric_rows(of_run)} for of_run in metrics]
    if not any(rows):
        return note_html("There has been no evaluation yet.")
    order = [key for key in METRICS if any(key in of_run for of_run in rows)]
    order += [key for key in _union(rows) if key not in METRICS]
    shown = []
    for key in order:
        of_runs = [of_run.get(key) for of_run in rows]
        row = next(row for row in of_runs if row is not None)
        values = [None if one is None else one.value for one in of_runs]
        beside = ["" if one is None else _beside(one) for one in of_runs]
        best = _best(key, metrics) if marks_best else None
        shown.append(_row_html(row.title, values, row.text, beside=beside, best=best))
    sources = [run_metrics(run)[1] for run in runs]
    if len(set(sources)) == 1:
        notes = note_html(sources[0].replace("the run stands", "the runs stand"))
    else:
        notes = "".join(note_html(f"{name}: {source}") for name, source in zip(names, sources, strict=True))
    return notes + _table_html("metric", names, shown, last="meaning")


def _beside(row: MetricRow) -> str:
    """What limits a value, and what it is held against where that depends on the run."""
    info = METRICS.get(row.key)
    depends = row.reference and (info is None or info.reference is not None)
    reference = f"reference {row.reference.partition(' (')[0]}" if depends else ""
    return "; ".join(part for part in (row.caveat, reference) if part)


def _best(key: str, metrics: Sequence[Mapping[str, float]]) -> int | None:
    """The run with the best value of a metric; None where no way is better, or where two are equally good."""
    better = METRICS[key].better if key in METRICS else None
    finite = (index for index, of_run in enumerate(metrics) if math.isfinite(of_run.get(key, math.nan)))
    found = sorted((metrics[index][key], index) for index in finite)
    if better is None or len(found) < 2:
        return None
    if better == "higher":
        found.reverse()
    return found[0][1] if found[0][0] != found[1][0] else None


def _pictures_html(names: Sequence[str], runs: Sequence[RunReader]) -> str:
    """The newest picture of every kind, those of all runs beside each other."""
    every = _union([run.galleries for run in runs])
    kinds = [kind for kind in IMAGE_KINDS if kind in every] + [kind for kind in every if kind not in IMAGE_KINDS]
    found = [_newest(run, kind)[1] for run in runs for kind in run.galleries]
    urls = embed_pictures(found, _MOST_BYTES)
    parts = []
    for kind in kinds:
        caption = escape(CAPTIONS.get(kind, kind))
        figures = []
        for index, (name, run) in enumerate(zip(names, runs, strict=True)):
            if kind not in run.galleries:
                continue
            moment, path = _newest(run, kind)
            figures.append(
                f"<figure><figcaption>{_key_html(index, name)} after {moment_text(moment)} images</figcaption>"
                f'<img alt="{caption}" src="{urls[path]}"></figure>'
            )
        parts.append(f'<p class="soft">{caption}</p><div class="images pairs">{"".join(figures)}</div>')
    return section_html("Images", "".join(parts)) if parts else ""


def _newest(run: RunReader, kind: str) -> tuple[float, Path]:
    """The newest picture of a kind, with the number of images seen by then."""
    return max(run.galleries[kind].items())
