"""What a sweep is: everything that `sweep.json` keeps, so that a resumed sweep is the same sweep. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ali_dist.config import Config
from ali_dist.config.loading import flatten_mapping, from_mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep.

    Attributes:
        preset: Name or file of the preset that trials start from.
        base: Its settings with the user's overrides, all of them, nested.
        space: What is searched, as `spaces.to_mapping` gives it.
        trials: How many.
        metric: Name of what they are compared by.
        search: How their settings are chosen.
        scheduler: asha: stop those early that are behind.
        seed: Of the choice of settings.
    """

    preset: str
    base: Mapping[str, Any]
    space: Mapping[str, Any]
    trials: int
    metric: str
    search: Search
    scheduler: Scheduler
    seed: int

    @property
    def folder(self) -> str:
        """The sweep's folder: its base's run folder; trials lie below it."""
        return f"{str(self.base['run']['dir']).rstrip('/')}/{self.base['run']['name']}"

    def dimensions(self) -> Space:
        """The space."""
        return parse_space(self.space)

    def judge(self) -> ScoreMetric:
        """The metric."""
        return find_score_metric(self.metric)

    def budget(self) -> int:
        """Images of a full trial."""
        return from_mapping(self.base).run.images

    def evaluate_every(self) -> int:
        """Images between evaluations of a trial: what decides whether it may go on."""
        config = from_mapping(self.base)
        return config.report.evaluate_every or max(1, math.ceil(config.run.images / EVALUATIONS))

    def settings(self, number: int) -> dict[str, Any] | None:
        """Searched settings of trial `number`; None where the search has to be asked.

        Trial 0 is the preset itself (but in a grid): what is found has to beat it under the same budget.
        """
        if self.search == "grid":
            return grid_settings(self.dimensions())[number]
        if number == 0:
            return searched_values(self.dimensions(), self.base)
        return draw_settings(self.dimensions(), self.seed, number) if self.search == "random" else None

    def config(self, number: int, settings: Mapping[str, Any], scale: Mapping[str, Any]) -> Config:
        """What trial `number` trains: the base, the searched settings, and what the sweep decides for all trials.

        Args:
            number: Of the trial.
            settings: Searched settings by dotted name.
            scale: `scale.*` by dotted name: how a trial is placed.

        Raises:
            InputError: The settings do not go together.
        """
        every = self.evaluate_every()
        report = {"report.evaluate_every": every}
        for name in (
            "gallery_every",
            "checkpoint_every",
        ):  # a trial that is stopped leaves pictures, a killed one little
            given = self.base["report"][name]
            report[f"report.{name}"] = min(given, every) if given else every
        place = {"run.dir": f"{self.folder}/trials", "run.name": trial_name(number)}
        return from_mapping(self.base, settings, report, place, scale)

    def described(self) -> str:
        """In a few lines, for people."""
        rows = [f"  {d.name}: {d.kind} {', '.join(str(v) for v in d.values)}" for d in self.dimensions()]
        title = (
            f"{self.trials} trials of {self.preset!r}, {self.budget():,} images each, evaluated every "
            f"{self.evaluate_every():,}, by {self.metric or 'the metric of the data'}; {self.search} search, scheduler "
            f"{self.scheduler}:"
        )
        return "\n".join([title, *rows, f"Results go to {self.folder}."])

    def to_mapping(self) -> dict[str, Any]:
        """JSON-able; `from_json` reads it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, loaded: Any, where: str) -> SweepPlan:
        """The plan that a sweep.json holds.

        Raises:
            InputError: It holds none, or one of another version.
        """
        if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
            raise InputError(f"{where} is of another version of tuning.sweep: choose another --run.name.")
        try:
            return cls(**{name: value for name, value in loaded.items() if name != "format"})
        except TypeError as error:
            raise InputError(f"{where} cannot be read ({error}): choose another --run.name.") from error

    def check_same(self, other: SweepPlan) -> None:
        """Refuse to resume `self` as something else; only more trials may be asked for.

        Raises:
            InputError: The first difference.
        """
        mine, theirs = dict(flatten_mapping(self.to_mapping())), dict(flatten_mapping(other.to_mapping()))
        for name in [*mine, *(n for n in theirs if n not in mine)]:
            if name not in ("trials", "base.run.dir", "base.run.name") and mine.get(name) != theirs.get(name):
                raise InputError(
                    f"This sweep was begun with {name.removeprefix('base.')} {mine.get(name)!r}, not "
                    f"{theirs.get(name)!r}: give --resume with the same command, or choose another --run.name."
                )
        if other.trials < self.trials:
            raise InputError(f"This sweep has {self.trials} trials: --trials {other.trials} cannot take any back.")


def check_choice(option: str, value: str, kind: Any) -> str:
    """`value` if the literal type allows it.

    Raises:
        InputError: It does not.
    """
    if value not in get_args(kind):
        raise InputError(f"{option} is {value!r}, but must be one of {', '.join(get_args(kind))}.")
    return value
