"""The words of the sweep's command line, and the plan that they make."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, cast

from ali_dist.config import Config
from ali_dist.config.loading import (
    did_you_mean,
    flatten_mapping,
    from_mapping,
    load_preset,
    parse_overrides,
    setting_infos,
)
from ali_dist.errors import InputError
from ali_dist.storage.local_copy import copy_to_local
from tuning.score import find_score_metric
from tuning.spaces import Space, check_space, grid_settings, load_space, space_names, space_to_mapping, without_settings
from tuning.sweep_plan import Scheduler, Search, SweepPlan, check_choice

_VALUES = (
    "preset",
    "space",
    "trials",
    "metric",
    "search",
    "scheduler",
    "sweep-seed",
    "workers-per-trial",
    "gpus-per-trial",
    "time-budget",
)
_FLAGS = ("resume", "dry-run")
_TRIALS = 12
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_arguments(arguments: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The sweep's own options, and settings for all trials.

    Raises:
        InputError: A word that is neither.
    """
    options: dict[str, str] = {}
    rest: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in _FLAGS and not equals:
            options[name] = "yes"
        elif word.startswith("--") and name in _VALUES:
            if not equals and (not words or words[0].startswith("--")):
                raise InputError(f"--{name} needs a value; see python -m tuning.sweep --help.")
            options[name] = value if equals else words.pop(0)
        elif word.startswith("--") and "." not in name:
            known = [f"--{option}" for option in (*_VALUES, *_FLAGS)]
            hint = did_you_mean(f"--{name}", known).removesuffix("?") or did_you_mean(
                name, setting_infos()
            ).removesuffix("?")
            raise InputError(f"There is no option --{name}{hint}; see python -m tuning.sweep --help.")
        else:
            rest.append(word)
    return options, parse_overrides(rest)


def whole_number_option(options: dict[str, str], name: str, default: int | None, least: int = 1) -> int | None:
    """A whole number among the options."""
    if name not in options:
        return default
    if not re.fullmatch(r"\d{1,9}", options[name]) or int(options[name]) < least:
        raise InputError(f"--{name} is {options[name]!r}, but must be a whole number of at least {least}.")
    return int(options[name])


def share_option(options: dict[str, str], name: str) -> float | None:
    """A number of at least 0 among the options."""
    if name not in options:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?|\.\d+", options[name]):
        raise InputError(f"--{name} is {options[name]!r}, but must be a number of at least 0.")
    return float(options[name])


def seconds_option(options: dict[str, str]) -> float | None:
    """The time budget."""
    text = options.get("time-budget")
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or not float(found[1]):
        raise InputError(f"--time-budget is {text!r}, but must be a time such as 90s, 30m or 2h.")
    return float(found[1]) * _UNITS[found[2]]


def base_config(options: dict[str, str], overrides: dict[str, Any]) -> Config:
    """The preset with the user's settings, its places absolute; its run folder is the sweep's.

    Raises:
        InputError: An unknown preset or setting, or a bad value.
    """
    preset = options.get("preset", "digits")
    for name in ("scale.workers", "scale.gpus_per_worker"):
        if name in overrides:
            raise InputError(f"--{name} is decided by --workers-per-trial and --gpus-per-trial in a sweep: use those.")
    name = Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset
    with copy_to_local(preset) as path:
        settings = load_preset(path)
    config = from_mapping(settings, {"run.name": f"sweep-{name}"}, overrides)
    if config.report.evaluation == "none":
        raise InputError("report.evaluation is 'none', but a sweep compares evaluations: set it to auto.")
    return from_mapping(
        config.to_mapping(), {"run.dir": _absolute_url(config.run.dir), "data.url": _absolute_url(config.data.url)}
    )


def _absolute_url(url: str) -> str:
    return url if "://" in url else str(Path(url).absolute())


def default_space(preset: str, config: Config) -> Space:
    """What is searched unless the user says it: the space of the preset's name, or of its kind of data, or `default`.

    Without those terms of the objective that another preset of the same data has: who is off stays off.
    """
    names = [preset, *(name for name in space_names() if (config.data.source or "").startswith(name)), "default"]
    space, base = (
        load_space(next(name for name in names if name in space_names())),
        dict(flatten_mapping(config.to_mapping())),
    )
    return tuple(d for d in space if base[d.name] or not d.name.startswith("objective."))


def make_plan(options: dict[str, str], overrides: dict[str, Any]) -> SweepPlan:
    """The whole plan; its metric may be left open ("") until the data are seen.

    Raises:
        InputError: Something in it cannot work.
    """
    preset = options.get("preset", "digits")
    config = base_config(options, overrides)
    base = config.to_mapping()
    chosen = load_space(options["space"]) if "space" in options else default_space(preset, config)
    space = without_settings(chosen, overrides)
    check_space(space, [base])
    search = cast(Search, check_choice("--search", options.get("search", "random"), Search))
    scheduler = cast(Scheduler, check_choice("--scheduler", options.get("scheduler", "asha"), Scheduler))
    if search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError(
            "--search optuna needs Optuna, which is not installed: pip install 'ali-dist[sweep]', or use random."
        )
    trials = whole_number_option(options, "trials", len(grid_settings(space)) if search == "grid" else _TRIALS)
    assert trials is not None, "it has a default"
    if search == "grid" and trials != len(grid_settings(space)):
        raise InputError(
            f"--trials is {trials}, but the grid has {' x '.join(str(len(d.grid())) for d in space)} = "
            f"{len(grid_settings(space))} trials: leave --trials out, or write a --space with fewer values."
        )
    return SweepPlan(
        preset=preset,
        base=base,
        space=space_to_mapping(space),
        trials=trials,
        metric=find_score_metric(options["metric"]).name if "metric" in options else "",
        search=search,
        scheduler=scheduler,
        seed=whole_number_option(options, "sweep-seed", 0, least=0) or 0,
    )
