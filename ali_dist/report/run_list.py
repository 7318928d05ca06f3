"""The runs below a folder, as rows of a table, and some of them side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ali_dist.config.closest_preset import find_closest_preset
from ali_dist.errors import InputError
from ali_dist.report.metric_rows import format_metric, headline_rows, metric_rows
from ali_dist.report.run_clock import format_elapsed
from ali_dist.report.run_facts import differing_settings, find_setting, only_numbers
from ali_dist.storage.base import Store

Row = tuple[str, ...]
MISSING = "-"
_FILES = ("config.json", "summary.json")


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run, as far as its config and its summary tell it.

    Attributes:
        name: Its folder's name.
        config: config.json; empty if it is missing or damaged.
        summary: summary.json, likewise.
        problem: What cannot be read of it; empty if everything can.
    """

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    problem: str = ""

    @property
    def status(self) -> str:
        """How it stands: running, finished, stopped or failed; `begun` before its first summary."""
        return str(self.summary.get("status", "begun"))

    @property
    def updated(self) -> str:
        """When its summary was written, in UTC to the minute; empty if it has none."""
        return str(self.summary.get("updated", "")).replace("T", " ")[:16]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of its last evaluation."""
        found = self.summary.get("metrics")
        return only_numbers(found) if isinstance(found, Mapping) else {}

    @property
    def preset(self) -> str:
        """The preset it was made from and how many settings differ from it, such as `digits +2`."""
        if isinstance(known := self.summary.get("preset") or self.config.get("preset"), str):
            return known
        found = find_closest_preset(self.config) if self.config else None
        if found is None:
            return MISSING
        name, changes = found
        return f"{name} +{changes}" if changes else name

    @property
    def images(self) -> str:
        """Images seen, of those planned where these are more."""
        seen, planned = self.summary.get("images"), find_setting(self.config, "run", "images")
        if not isinstance(seen, int):
            return MISSING if not isinstance(planned, int) else f"? of {planned:,}"
        return f"{seen:,} of {planned:,}" if isinstance(planned, int) and planned > seen else f"{seen:,}"

    def to_json(self) -> dict[str, Any]:
        """What the table shows, for programs."""
        return {
            "name": self.name,
            "preset": self.preset,
            "status": self.status,
            "images": self.summary.get("images"),
            "planned_images": find_setting(self.config, "run", "images"),
            "metrics": self.metrics,
            "updated": self.summary.get("updated"),
            **({"problem": self.problem} if self.problem else {}),
        }


def find_runs(store: Store) -> tuple[list[ListedRun], list[str]]:
    """Read the runs right below a folder, the one that was updated last first.

    Returns:
        The runs, and the folders of runs that lie deeper, such as the trials of sweeps.
    """
    paths = [info.key.split("/") for info in store.list()]
    names = {path[0] for path in paths if len(path) == 2 and path[1] in _FILES}
    deeper = {"/".join(path[:-2]) for path in paths if len(path) > 2 and path[-1] == _FILES[0]}
    runs = [run for name in sorted(names) if (run := _read_run(store, name)) is not None]
    return sorted(runs, key=lambda run: run.updated, reverse=True), sorted(deeper)


def choose_runs(runs: Sequence[ListedRun], names: Sequence[str], place: str) -> list[ListedRun]:
    """Pick runs by their names, in the order of the names.

    Raises:
        InputError: There is no run of one of the names.
    """
    from ali_dist.config.suggestions import did_you_mean

    known = {run.name: run for run in runs}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known).removesuffix("?")
            have = f"the runs there are: {', '.join(sorted(known))}" if known else "there are no runs there"
            raise InputError(f"There is no run {name!r} in {place}{hint}; {have}.")
    return [known[name] for name in names]


def list_rows(runs: Sequence[ListedRun]) -> list[Row]:
    """The table of runs, its headings first; a column for every number that one of the runs is judged by."""
    judged = {row.key: row.title for run in runs for row in headline_rows(run.metrics)}
    rows: list[Row] = [("Run", "Preset", "Status", "Images", *judged.values(), "Updated (UTC)")]
    for run in runs:
        numbers = [format_metric(key, run.metrics[key]) if key in run.metrics else MISSING for key in judged]
        rows.append((run.name, run.preset, run.status, run.images, *numbers, run.updated or MISSING))
    return rows


def comparison_rows(runs: Sequence[ListedRun]) -> tuple[list[Row], list[Row]]:
    """Runs side by side: how they stand and what was measured, and the settings that differ; headings first."""
    heading = tuple(run.name for run in runs)
    results: list[Row] = [("", *heading)]
    for label, values in _facts(runs).items():
        results.append((label, *values))
    titles = {row.key: row.title for run in runs for row in metric_rows(run.metrics)}
    for key, title in titles.items():
        results.append((title, *(format_metric(key, r.metrics[key]) if key in r.metrics else MISSING for r in runs)))
    settings: list[Row] = [("Setting", *heading)]
    for key, texts in differing_settings([run.config for run in runs]).items():
        settings.append((key, *(MISSING if text is None else text for text in texts)))
    return results, settings


def _facts(runs: Sequence[ListedRun]) -> dict[str, list[str]]:
    """What is known of runs beside their metrics, by label; what none of them has is left out."""
    facts = {
        "Preset": [run.preset for run in runs],
        "Status": [run.status for run in runs],
        "Images": [run.images for run in runs],
        "Time": [_show(run.summary.get("seconds"), format_elapsed) for run in runs],
        "Images per second": [_show(run.summary.get("images_per_second"), "{:,.0f}".format) for run in runs],
        "Processes": [_show(run.summary.get("world_size"), str) for run in runs],
        "Device": [_show(run.summary.get("device"), str) for run in runs],
        "Alarms": [_show(run.summary.get("alarms"), lambda alarms: str(len(alarms))) for run in runs],
        "Updated (UTC)": [run.updated or MISSING for run in runs],
    }
    return {label: values for label, values in facts.items() if set(values) != {MISSING}}


def _show(value: Any, show: Any) -> str:
    return MISSING if value is None else str(show(value))


def _read_run(store: Store, name: str) -> ListedRun | None:
    """Read one run; None where the files are none of a run, as those of an exported model."""
    problems: list[str] = []
    contents: list[Mapping[str, Any]] = []
    for key in _FILES:
        try:
            loaded = json.loads(store.get(f"{name}/{key}")) if store.stat(f"{name}/{key}") else {}
            if not isinstance(loaded, dict):
                raise ValueError("it holds no mapping")
        except (ValueError, RecursionError) as error:
            loaded = {}
            problems.append(f"{key} of {name!r} cannot be read ({error}).")
        contents.append(loaded)
    config, summary = contents
    if "model_type" in config:
        return None
    return ListedRun(name, config, summary, " ".join(problems))
