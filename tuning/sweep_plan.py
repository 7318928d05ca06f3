"""What a sweep is: everything that `sweep.json` keeps, so that a resumed sweep is the same sweep. Pure."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal

from ali_dist.config import Config
from ali_dist.config.loading import flatten_mapping, from_mapping
from ali_dist.config.wording import format_count
from ali_dist.errors import InputError
from tuning.score import ScoreMetric, find_score_metric
from tuning.spaces import Space, draw_settings, grid_settings, parse_space, searched_values
from tuning.trial_record import trial_name

Search = Literal["random", "optuna", "grid"]
Scheduler = Literal["asha", "none"]

EVALUATIONS = 8
"""Evaluations of a trial, unless report.evaluate_every says otherwise: ASHA's rungs are the 2nd and the 4th."""
REDUCTION = 2
"""Of the trials that reach a rung, ASHA lets the better half go on. Harsher and earlier cuts would be blind here:
averaged weights and late learning-rate decay make scores before a quarter of the budget say little."""
FORMAT = 1
_PLACES = ("trials", "fingerprint", "preset_images", "base.run.dir", "base.run.name", "base.data.source")
"""What may differ where a sweep is resumed: more trials, where things lie (a project may have been moved), and what
earlier versions did not keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep. The names of its attributes are those of the file.

    Attributes:
        preset: Name or file of the preset that trials start from.
        base: All settings of the preset with the user's own, nested.
        space: What is searched, as `space_to_mapping` gives it.
        trials: How many trials there are.
        metric: Name of the metric that trials are compared by.
        search: How the settings of trials are chosen.
        scheduler: With `asha`, trials that are behind are stopped early.
        seed: Seed of the choice of settings.
        fingerprint: Of the training data's index; empty until they are opened, and in sweeps of earlier versions.
        preset_images: Length of the preset itself, maybe more than a trial's; 0 in sweeps of earlier versions.
    """

    preset: str
    base: Mapping[str, Any]
    space: Mapping[str, Any]
    trials: int
    metric: str
    search: Search
    scheduler: Scheduler
    seed: int
    fingerprint: str = ""
    preset_images: int = 0

    @property
    def folder(self) -> str:
        """The sweep's folder: its base's run folder; trials lie below it."""
        return f"{str(self.base['run']['dir']).rstrip('/')}/{self.base['run']['name']}"

    @property
    def best_command(self) -> str:
        """The command that trains with the best settings, as a shell takes it."""
        return f"python -m ali_dist.train --preset {shlex.quote(f'{self.folder}/best.yaml')}"

    @property
    def dimensions(self) -> Space:
        """The search space."""
        return parse_space(self.space)

    @property
    def score_metric(self) -> ScoreMetric:
        """The metric that trials are compared by."""
        return find_score_metric(self.metric)

    @property
    def budget(self) -> int:
        """Images of a full trial."""
        return from_mapping(self.base).run.images

    @property
    def evaluate_every(self) -> int:
        """Images between two evaluations of a trial, after each of which it may be stopped."""
        config = from_mapping(self.base)
        return config.report.evaluate_every or max(1, math.ceil(config.run.images / EVALUATIONS))

    @property
    def has_baseline(self) -> bool:
        """Whether trial 0 is the preset itself: the best settings have to beat it under the same budget."""
        return self.search != "grid"

    def settings_for_trial(self, number: int) -> dict[str, Any] | None:
        """Searched settings of a trial; None where a `Suggester` has to be asked."""
        if self.search == "grid":
            return grid_settings(self.dimensions)[number]
        if number == 0:
            return searched_values(self.dimensions, self.base)
        return draw_settings(self.dimensions, self.seed, number) if self.search == "random" else None

    def config_for_trial(self, number: int, settings: Mapping[str, Any], scale: Mapping[str, Any]) -> Config:
        """What a trial trains: the base, the searched settings, and what the sweep decides for all trials.

        Args:
            number: The trial's number.
            settings: Searched settings by dotted name.
            scale: Settings of `scale` by dotted name: how a trial is placed.

        Raises:
            InputError: The settings do not go together.
        """
        every = self.evaluate_every
        report = {"report.evaluate_every": every}
        # As often as evaluations: a trial that is stopped then leaves pictures, and a killed one loses little.
        for name in ("gallery_every", "checkpoint_every"):
            base_value = self.base["report"][name]
            report[f"report.{name}"] = min(base_value, every) if base_value else every
        run = {"run.dir": f"{self.folder}/trials", "run.name": trial_name(number)}
        return from_mapping(self.base, settings, report, run, scale)

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        rows = [f"  {d.name}: {d.kind} {', '.join(str(v) for v in d.values)}" for d in self.dimensions]
        title = (
            f"{format_count(self.trials, 'trial')} of {self.preset!r}, {self.budget:,} images each, evaluated every "
            f"{self.evaluate_every:,}, by {self.metric or 'the metric of the data'}; {self.search} search, scheduler "
            f"{self.scheduler}:"
        )
        return "\n".join([title, *rows, f"Results go to {self.folder}."])

    def to_mapping(self) -> dict[str, Any]:
        """The plan as JSON has it; `from_json` reads it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, loaded: Any, place: str) -> SweepPlan:
        """The plan that a sweep.json holds.

        Args:
            loaded: The content of the file.
            place: Where the file lies, for messages.

        Raises:
            InputError: It holds no plan, or one of another version.
        """
        if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
            raise InputError(f"{place} is of another version of tuning.sweep: choose another --run.name.")
        try:
            return cls(**{name: value for name, value in loaded.items() if name != "format"})
        except TypeError as error:
            raise InputError(f"{place} cannot be read ({error}): choose another --run.name.") from error

    def check_resumable_as(self, other: SweepPlan) -> None:
        """Refuse to resume this sweep as another one; only more trials may be asked for.

        Raises:
            InputError: The plans differ; the message names the first difference.
        """
        if self.fingerprint and other.fingerprint not in ("", self.fingerprint):
            raise InputError(
                f"This sweep was begun on other data (index {self.fingerprint}) than those in "
                f"{other.base['data']['url']} (index {other.fingerprint}): give those, or choose another --run.name."
            )
        mine, theirs = (dict(flatten_mapping(plan.to_mapping())) for plan in (self, other))
        for values in (mine, theirs):  # of the preset's file, the content counts, which is in the base
            values["preset"] = PurePath(str(values["preset"])).stem
        free = _PLACES + (("base.data.url",) if self._has_data_of(other) else ())
        for name in dict.fromkeys([*mine, *theirs]):
            if name not in free and mine.get(name) != theirs.get(name):
                raise InputError(
                    f"This sweep was begun with {name.removeprefix('base.')} {mine.get(name)!r}, not "
                    f"{theirs.get(name)!r}: give --resume with the same command, or choose another --run.name."
                )
        if other.trials < self.trials:
            raise InputError(
                f"This sweep has {format_count(self.trials, 'trial')}: --trials {other.trials} cannot take any back."
            )

    def _has_data_of(self, other: SweepPlan) -> bool:
        """Whether both plans are of the same data, wherever these lie now.

        Earlier versions kept no fingerprint: then the data must lie where they lay, as seen from the sweep.
        """
        if self.fingerprint:
            return True  # other data have been refused
        here, there = (os.path.relpath(plan.base["data"]["url"], plan.base["run"]["dir"]) for plan in (self, other))
        return here == there
