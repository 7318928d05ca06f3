"""The answer of a sweep: `results.csv`, `best.yaml`, and the sentence that says what came out."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any

from ali_dist.config.loading import flatten_mapping, from_mapping, setting_infos
from ali_dist.storage import is_local
from ali_dist.storage.base import Store
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, find_best_record, trial_name

_NOT_IN_PRESET = ("run.name", "run.dir")  # a preset says what is learned, not where one of its runs lies


def format_results_csv(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """The text of results.csv: for each trial how it ended, its score, settings, and metrics of its last evaluation."""
    names = [dimension.name for dimension in plan.dimensions]
    metrics = sorted({key for record in records for key in record.metrics} - {"images", "score", plan.metric})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "images", "seconds", plan.metric, *names, *metrics, "folder", "reason"])
    for record in records:
        settings = ["none" if record.settings.get(n) is None else record.settings[n] for n in names]
        metric_values = [record.metrics.get(key, "") for key in metrics]
        score = "" if record.score is None else record.score
        row = [record.number, record.state, record.images, round(record.seconds, 1), score, *settings, *metric_values]
        writer.writerow([*row, f"trials/{trial_name(record.number)}", record.reason])
    return text.getvalue()


def format_best_yaml(plan: SweepPlan, record: TrialRecord) -> str:
    """The text of best.yaml, a preset for `python -m ali_dist.train`: all that differs from the schema's defaults.

    It is as long as the sweep's preset, even if trials were shorter, and its data lie where they lay, as seen from the
    current folder: it can be taken to another machine.
    """
    url = from_mapping(plan.base).data.url
    whole = {"run.images": max(plan.budget, plan.preset_images), "data.url": _seen_from_here(url)}
    config = from_mapping(plan.base, record.settings, whole)
    score = (
        "" if record.score is None else f", {plan.score_metric.title} {record.score:.4g} at {record.images:,} images"
    )
    lines = [f"# Trial {record.number} of a sweep over preset {json.dumps(plan.preset)}{score}."]
    if config.run.images > plan.budget:
        lines.append(f"# Trials saw {plan.budget:,} images; run.images is the preset's own length.")
    defaults = {name: info.default for name, info in setting_infos().items()}
    sections: dict[str, list[str]] = {}
    for name, value in flatten_mapping(config.to_mapping()):
        section, _, key = name.partition(".")
        if name not in _NOT_IN_PRESET and value != defaults[name]:
            mark = "  # searched" if name in record.settings else ""
            sections.setdefault(section, []).append(f"  {key}: {_to_yaml(value)}{mark}")
    for section, rows in sections.items():
        lines += [f"{section}:", *rows]
    return "\n".join(lines) + "\n"


def _seen_from_here(url: str) -> str:
    """A folder below the current one by its relative path; all others, and urls, as they are."""
    if not is_local(url):
        return url
    relative = os.path.relpath(url)
    return url if relative.startswith(os.pardir) else relative


def _to_yaml(value: Any) -> str:
    """A value as presets are read: text that `from_mapping` parses, quoted where YAML would see more in it."""
    if value is None:
        return "none"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)


def find_baseline(plan: SweepPlan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial of the preset's own settings, if it has a score."""
    if not plan.has_baseline:
        return None
    return next((r for r in records if r.number == 0 and r.score is not None), None)


def describe_result(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """What came out, in one or two sentences."""
    metric = plan.score_metric
    best = find_best_record(records, higher_is_better=metric.higher_is_better)
    baseline = find_baseline(plan, records)
    if best is None or best.score is None:
        return "No trial came through: see the reasons in results.csv."
    if best.state == "finished":
        reservation = ""
    else:
        reservation = f"; it has not finished ({best.images:,} of {plan.budget:,} images)"
    if baseline is None:
        return f"Trial {best.number} is best, {metric.title} {best.score:.4g}{reservation}."
    if best.number == baseline.number:
        return (
            f"The preset's own settings stand: no other trial has a better {metric.title} than its "
            f"{baseline.score:.4g}{reservation}."
        )
    same_budget = " under the same budget" if baseline.state == "finished" == best.state else ""
    return (
        f"Trial {best.number} is best, {metric.title} {best.score:.4g}, against {baseline.score:.4g} of the preset's "
        f"own settings{same_budget}{reservation}."
    )


def write_results(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> None:
    """Leave results.csv and, if any trial has a score, best.yaml in the sweep's folder."""
    store.put("results.csv", format_results_csv(plan, records).encode("utf-8", "surrogateescape"))
    best = find_best_record(records, higher_is_better=plan.score_metric.higher_is_better)
    if best is not None:
        store.put("best.yaml", format_best_yaml(plan, best).encode("utf-8", "surrogateescape"))
