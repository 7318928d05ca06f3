"""The answer of a sweep: `results.csv`, `best.yaml`, and the sentence that says what was found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from ali_dist.config.loading import flatten_mapping, from_mapping, setting_infos
from ali_dist.storage.base import Store
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, best_record, trial_name

_NOT_LEARNT = ("run.name", "run.dir")  # a preset says what is learnt, not where one of its runs lies


def results_csv(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """One row for each trial: how it ended, its score, its settings, and the metrics of its last evaluation."""
    names = [dimension.name for dimension in plan.dimensions()]
    metrics = sorted({key for record in records for key in record.metrics} - {"images", "score", plan.metric})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "images", "seconds", plan.metric, *names, *metrics, "folder", "reason"])
    for record in records:
        settings = ["none" if record.settings.get(n) is None else record.settings[n] for n in names]
        found = [record.metrics.get(key, "") for key in metrics]
        score = "" if record.score is None else record.score
        row = [record.number, record.state, record.images, round(record.seconds, 1), score, *settings, *found]
        writer.writerow([*row, f"trials/{trial_name(record.number)}", record.reason])
    return text.getvalue()


def best_yaml(plan: SweepPlan, record: TrialRecord) -> str:
    """A preset for `python -m ali_dist.train --preset best.yaml`: all that differs from the schema's defaults."""
    config = from_mapping(plan.base, record.settings)
    score = "" if record.score is None else f", {plan.judge().title} {record.score:.4g} at {record.images:,} images"
    lines = [f"# Trial {record.number} of a sweep over preset {json.dumps(plan.preset)}{score}."]
    defaults = {name: info.default for name, info in setting_infos().items()}
    sections: dict[str, list[str]] = {}
    for name, value in flatten_mapping(config.to_mapping()):
        section, _, key = name.partition(".")
        if name not in _NOT_LEARNT and value != defaults[name]:
            mark = "  # searched" if name in record.settings else ""
            sections.setdefault(section, []).append(f"  {key}: {_to_yaml(value)}{mark}")
    for section, rows in sections.items():
        lines += [f"{section}:", *rows]
    return "\n".join(lines) + "\n"


def _to_yaml(value: Any) -> str:
    """A value as presets are read: text that `settings` parses, quoted where YAML would see more in it."""
    if value is None:
        return "none"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)


def find_baseline(plan: SweepPlan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial of the preset's own settings, if it has a score."""
    if plan.search == "grid":
        return None
    return next((r for r in records if r.number == 0 and r.score is not None), None)


def describe_result(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """What was found, in one or two sentences."""
    metric, best, own = plan.judge(), best_record(records, higher=plan.judge().higher), find_baseline(plan, records)
    if best is None or best.score is None:
        return "No trial came through: see the reasons in results.csv."
    still = f"; it has not finished ({best.images:,} of {plan.budget():,} images)" if best.state != "finished" else ""
    if own is not None and best.number == own.number:
        stand = f"The preset's own settings stand: no other trial has a better {metric.title} than its {own.score:.4g}"
        return f"{stand}{still}."
    said = f"Trial {best.number} is best, {metric.title} {best.score:.4g}"
    if own is not None:
        whole = own.state == "finished" and best.state == "finished"
        said += f", against {own.score:.4g} of the preset's own settings" + (" under the same budget" if whole else "")
    return f"{said}{still}."


def write_results(plan: SweepPlan, records: Sequence[TrialRecord], store: Store) -> None:
    """Leave results.csv and, if any trial has a score, best.yaml in the sweep's folder."""
    store.put("results.csv", results_csv(plan, records).encode())
    best = best_record(records, higher=plan.judge().higher)
    if best is not None:
        store.put("best.yaml", best_yaml(plan, best).encode())
