"""What a page says of a run in a few words and numbers: names, key figures, and the metrics that it is judged by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ali_dist.config.loading import flatten_mapping
from ali_dist.runs.run_reader import Record, RunReader

_PLACES = ("run.name", "run.dir")  # two runs always differ in these


def run_name(run: RunReader, otherwise: str) -> str:
    """The run's name, as its summary or else its config has it; `otherwise` where neither does."""
    return str(run.summary.get("run") or find_setting(run.config, "run", "name") or otherwise)


def key_figures(run: RunReader) -> list[tuple[str, str]]:
    """Label and value of each of the headline's boxes; without a summary, from the last training record."""
    last = run.train[-1] if run.train else {}
    known: Record = {**{k: last[k] for k in ("images", "seconds", "images_per_second", "data_wait") if k in last}}
    known = {**known, "step": last.get("step"), **run.summary}
    boxes: dict[str, tuple[str, Callable[[Any], str]]] = {
        "images": ("images seen", lambda v: f"{v:,.0f}"),
        "step": ("updates", lambda v: f"{v:,.0f}"),
        "seconds": ("wall time", format_duration),
        "images_per_second": ("images per second", lambda v: f"{v:,.0f}"),
        "data_wait": ("waiting for data", format_share),
        "world_size": ("processes", str),
        "device": ("device", str),
        "precision": ("precision", str),
        "restarts": ("restarts", str),
        "rollbacks": ("rollbacks", str),
    }
    return [(label, _show(known[key], show)) for key, (label, show) in boxes.items() if known.get(key) is not None]


_TIME_LABELS = {
    "compute": "computing",
    "data": "waiting for data",
    "evaluation": "evaluating",
    "drawing": "drawing",
    "saving": "saving",
    "start": "starting",
}


def time_shares(run: RunReader) -> list[tuple[str, float, float]]:
    """What the time of a run went to: label, seconds, and share of all from 0 to 1; empty where that is unknown."""
    time = run.summary.get("time")
    seconds = only_numbers(time) if isinstance(time, dict) else {}
    spent = [(label, seconds[key]) for key, label in _TIME_LABELS.items() if 0 < seconds.get(key, 0.0) < math.inf]
    total = sum(value for _, value in spent)
    return [(label, value, value / total) for label, value in spent]


def format_share(share: float) -> str:
    """A share from 0 to 1 in percent; one that is not 0 is never shown as 0."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    return f"{share:.1%}".replace("%", " %")


def _show(value: Any, show: Callable[[Any], str]) -> str:
    """A figure as text; one that is of another type than it should be as it is: files come from anywhere."""
    try:
        return show(value)
    except (TypeError, ValueError):
        return str(value)


def format_duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def run_metrics(run: RunReader) -> tuple[Mapping[str, float], str]:
    """The final metrics, else those of the last evaluation, and a sentence on where they come from."""
    final = run.summary.get("metrics")
    if isinstance(final, dict) and final:
        split = run.summary.get("metrics_split")
        return only_numbers(final), f"Of the split {split}, as the run stands." if split else "At the end of the run."
    if run.evaluations:
        last = run.evaluations[-1]
        rest = {k: v for k, v in last.items() if k not in ("images", "step", "seconds")}
        on = f" on the split {last['split']}" if last.get("split") else ""
        return only_numbers(rest), f"From the last evaluation{on}, after {last['images']:,} images."
    return {}, "There has been no evaluation yet."


def only_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers: files come from anywhere."""
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """The settings that are not the same in all runs, by dotted name: each run's value as text, None where it has none.

    Args:
        configs: What config.json of each run holds, nested; names and folders of runs do not count.
    """
    settings = [dict(flatten_mapping(config)) for config in configs]
    found = {}
    for key in dict.fromkeys(key for of_run in settings for key in of_run):
        texts = [_setting_text(of_run[key]) if key in of_run else None for of_run in settings]
        if key not in _PLACES and len(set(texts)) > 1:
            found[key] = texts
    return found


def _setting_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def find_setting(config: Mapping[str, Any], section: str, name: str) -> Any:
    """The setting `config[section][name]`; None if it is missing."""
    values = config.get(section)
    return values.get(name) if isinstance(values, Mapping) else None
