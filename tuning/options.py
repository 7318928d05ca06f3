"""The command line of a sweep, and the plan that it makes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
from dataclasses import dataclass
from typing import Any, get_args

from ali_dist.cli import CommandParser, number_type, whole_number_type
from ali_dist.config import Config
from ali_dist.config.loading import Preset, flatten_mapping, from_mapping, preset_names
from ali_dist.errors import InputError
from ali_dist.launchers.ray_storage import check_results_stay, with_absolute_paths
from ali_dist.preset_option import add_preset_option, build_config, load_preset_option
from tuning.score import SCORE_METRICS, find_score_metric
from tuning.spaces import Space, check_space, grid_settings, load_space, space_names, space_to_mapping, without_settings
from tuning.sweep_plan import Scheduler, Search, SweepPlan

_DEFAULT_TRIALS = 12
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}

_DESCRIPTION = """\
Search hyper-parameters: `python -m tuning.sweep [--preset NAME|FILE.yaml] [options] [--section.key value ...]`.

Every trial is a whole training run in its own folder below the sweep's, `runs/sweep-NAME/trials/NNN`. The answer is
best.yaml (a preset for `python -m ali_dist.train --preset .../best.yaml`), results.csv and sweep.html.

`--section.key value` is a setting for all trials, as in python -m ali_dist.train; run.name names the sweep.

Exit codes: 0 done, 2 wrong input, 1 failure, 75 stopped with --resume to go on, 130 ended by a second Ctrl-C.

examples:
  python -m tuning.sweep --preset digits --trials 12              on this machine
  python -m tuning.sweep --preset digits --trials 12 --resume     go on after a kill, or with more trials
  python -m tuning.sweep --preset cifar10 --time-budget 8h --space mine.yaml --run.dir s3://bucket/runs
  python -m tuning.sweep --preset cifar10 --help optim            one group of settings, with that preset's values"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """The options of the command line; None where one is not given. Their help texts are those of the parser."""

    preset: str = "digits"
    space: str | None = None
    trials: int | None = None
    metric: str | None = None
    search: Search = "random"
    scheduler: Scheduler = "asha"
    sweep_seed: int = 0
    workers_per_trial: int | None = None
    gpus_per_trial: float | None = None
    time_budget: float | None = None
    """In seconds."""
    resume: bool = False
    dry_run: bool = False


def parse_arguments(arguments: list[str]) -> tuple[SweepOptions, dict[str, Any]]:
    """The sweep's own options, and the settings for all trials as text by dotted name.

    Raises:
        InputError: An unknown option or setting, or a bad value of an option.
    """
    options, settings = make_parser().parse_with_settings(arguments)
    return SweepOptions(**vars(options)), settings


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("tuning.sweep", _DESCRIPTION, _describe_names(), takes_settings=True)
    add_preset_option(parser)
    parser.suggestions.update(preset=preset_names(), space=space_names(), metric=list(SCORE_METRICS))
    parser.add_argument(
        "--space", metavar="NAME|FILE", help="what is searched: a name or a YAML file (that of the preset or its data)"
    )
    parser.add_argument(
        "--trials",
        metavar="N",
        type=whole_number_type(1),
        help=f"how many trials ({_DEFAULT_TRIALS}; a grid: all of it); the first one is the preset itself",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="what trials are compared by (coverage for mixtures, fidelity for labeled images)",
    )
    parser.add_argument("--search", choices=get_args(Search), default="random", help="how settings are chosen (random)")
    parser.add_argument(
        "--scheduler",
        choices=get_args(Scheduler),
        default="asha",
        help="asha: stop the worse trials early (asha)",
    )
    parser.add_argument(
        "--sweep-seed", metavar="N", type=whole_number_type(0), default=0, help="seed of the choice of settings (0)"
    )
    parser.add_argument(
        "--workers-per-trial",
        metavar="N",
        type=whole_number_type(1),
        help="Ray Train workers of each trial; 1: it trains in one process (1)",
    )
    parser.add_argument(
        "--gpus-per-trial",
        metavar="N",
        type=number_type(least=0),
        help="GPUs of each trial, up to 1 or whole; 0: CPU (1 where the cluster has GPUs)",
    )
    parser.add_argument(
        "--time-budget",
        metavar="T",
        type=parse_duration,
        help="end after 90s, 30m or 2h; trials that run then are saved for --resume",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a sweep of this name; ended trials are not run again"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, and run nothing")
    return parser


def _describe_names() -> str:
    """What --space and --metric may name."""
    lines = [f"search spaces: {', '.join(space_names())}", "", "metrics:"]
    for metric in SCORE_METRICS.values():
        direction = "higher" if metric.higher_is_better else "lower"
        lines.append(f"  {metric.name:<22} {' and '.join(metric.parts)}, {direction} is better")
    return "\n".join(lines)


def parse_duration(text: str) -> float:
    """The option type of durations: seconds from text such as 90, 90s, 1.5m or 2h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a time such as 90s, 30m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def load_base_config(options: SweepOptions, settings: dict[str, Any]) -> tuple[Config, Preset]:
    """The config that trials start from: the preset with the user's settings; its run folder is the sweep's.

    Its paths are absolute, because trials run in folders of their own.

    Returns:
        The config, and the preset.

    Raises:
        InputError: An unknown preset or setting, a bad value, or a setting that the sweep decides.
    """
    for name in ("scale.workers", "scale.gpus_per_worker"):
        if name in settings:
            raise InputError(f"--{name} is decided by --workers-per-trial and --gpus-per-trial in a sweep: use those.")
    preset = load_preset_option(options.preset, settings)
    settings_of_preset = {name: value for name, value in preset.settings.items() if name != "run.name"}
    preset = dataclasses.replace(preset, settings=settings_of_preset)  # that is the name of a run, not of a sweep
    config = build_config(preset, settings, run_name=f"sweep-{preset.name}")
    if config.report.evaluation == "none":
        raise InputError("report.evaluation is 'none', but a sweep compares evaluations: set it to auto.")
    check_results_stay(config)
    return with_absolute_paths(config), preset


def default_space(preset: str, source: str, config: Config) -> Space:
    """What is searched unless the user says it: the space of the preset's name, or of its kind of data, or `default`.

    Terms of the objective that the preset has switched off are left out, also where the space is one of another preset
    of the same data: a term that is off stays off.
    """
    candidates = [preset, *(name for name in space_names() if source.startswith(name)), "default"]
    space = load_space(next(name for name in candidates if name in space_names()))
    base = dict(flatten_mapping(config.to_mapping()))
    return tuple(
        dimension for dimension in space if base[dimension.name] or not dimension.name.startswith("objective.")
    )


def make_plan(options: SweepOptions, settings: dict[str, Any]) -> SweepPlan:
    """The whole plan; its metric may be left open ("") until the data are seen.

    Args:
        options: The options of the sweep.
        settings: Settings for all trials, by dotted name.

    Raises:
        InputError: Something in it cannot work.
    """
    config, preset = load_base_config(options, settings)
    base = config.to_mapping()
    default = default_space(options.preset, config.data.source or preset.source, config)
    whole_space = default if options.space is None else load_space(options.space)
    space = without_settings(whole_space, settings)
    check_space(space, [base])
    if options.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError(
            "--search optuna needs Optuna, which is not installed: pip install 'ali-dist[sweep]', or use random."
        )
    return SweepPlan(
        preset=options.preset,
        base=base,
        space=space_to_mapping(space),
        trials=_count_trials(options, space),
        metric="" if options.metric is None else find_score_metric(options.metric).name,
        search=options.search,
        scheduler=options.scheduler,
        seed=options.sweep_seed,
        preset_images=from_mapping(preset.settings).run.images,
    )


def _count_trials(options: SweepOptions, space: Space) -> int:
    """How many trials the sweep has.

    Raises:
        InputError: It is a grid, which decides that itself, and --trials says something else.
    """
    if options.search != "grid":
        return options.trials or _DEFAULT_TRIALS
    whole_grid = len(grid_settings(space))
    if options.trials not in (None, whole_grid):
        product = " x ".join(str(len(dimension.grid_values())) for dimension in space)
        raise InputError(
            f"--trials is {options.trials}, but the grid has {product} = {whole_grid} trials: leave --trials out, or "
            "write a --space with fewer values."
        )
    return whole_grid
