"""Train ALI: `python -m ali_dist.train [--preset NAME|FILE.yaml] [--section.key value ...]`.

With no arguments, it trains on scikit-learn's digits, in this process, on the GPU if there is one. The same command
continues a run that was interrupted. `--scale.workers 2` trains on two Ray workers; `s3://` URLs stream from S3.

Exit codes: 0 done, 2 wrong input, 1 failure, 75 stopped on request with a checkpoint saved, 130 interrupted by a second
Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ali_dist.cli import CommandParser
from ali_dist.config import Config
from ali_dist.config.loading import preset_names
from ali_dist.errors import InputError, exit_code
from ali_dist.launchers.ray_storage import check_results_stay
from ali_dist.launchers.signals import stop_at_once
from ali_dist.loading_note import collector_paused, load_meanwhile
from ali_dist.preset_option import add_preset_option, build_config, load_preset_option
from ali_dist.process_end import run_to_the_end
from ali_dist.storage import is_local

if TYPE_CHECKING:
    from ali_dist.runs.trackers import Record


_EXAMPLES = """\
examples:
  python -m ali_dist.train                                       digits, here, on the GPU if there is one
  python -m ali_dist.train --preset mixture --run.name mine      a preset, as a run of a name of its own
  python -m ali_dist.train --preset images --data.url data/mine  your own pictures (python -m ali_dist.prepare first)
  python -m ali_dist.train --preset cifar10 --dry-run            what would be done; nothing is trained
  python -m ali_dist.train --preset cifar10 --help objective     one group of settings, with that preset's values"""


def parse_arguments(arguments: list[str]) -> tuple[Config, bool]:
    """Parse the command line.

    Returns:
        The config that the arguments describe, and whether it is only to be shown.

    Raises:
        InputError: An unknown preset, option or setting, or a bad value.
    """
    options, settings = make_parser().parse_with_settings(arguments)
    if not all(is_local(str(settings.get(place, ""))) for place in ("data.url", "run.dir")):
        # Two threads that run Python take each other's time: this helps only where one of them waits for a storage.
        load_meanwhile("torch")
    preset = load_preset_option(options.preset, settings)
    return build_config(preset, settings, run_name=preset.name), options.dry_run


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    description = (__doc__ or "").strip()
    parser = CommandParser("ali_dist.train", description, _EXAMPLES, takes_settings=True, lists_settings=True)
    add_preset_option(parser)
    parser.suggestions["preset"] = preset_names()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the plan (data, sizes, memory, time, place) and all settings; train nothing",
    )
    return parser


def choose_launcher(config: Config) -> Callable[[Config], Record | None]:
    """Choose what trains the run: this process (one of torchrun's, too), a child that is started again, or Ray workers.

    Ray is chosen where `scale.workers` asks for workers and, with `auto`, inside a Ray job or beside a Ray cluster.
    Only then is Ray imported.

    Returns:
        A function from the config to the summary of the run (None on ranks other than 0). It raises InputError,
        TrainingError or StorageError where the run cannot go on, and Stopped once it has saved a checkpoint on request.

    Raises:
        InputError: Ray is needed, and cannot be imported.
    """
    workers = config.scale.worker_range()
    if workers is not None:
        on_ray = workers != (0, 0)
    else:
        on_ray = "RANK" not in os.environ and any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_JOB_ID"))
    if on_ray:
        try:
            from ali_dist.launchers.ray_train import run_on_ray
        except ImportError as error:
            raise InputError(
                f"scale.workers is {config.scale.workers!r}, which needs Ray, but Ray cannot be imported ({error}): "
                "install ray[default,train], or train in this process with --scale.workers 0."
            ) from error
        return run_on_ray
    if config.scale.max_failures and "RANK" not in os.environ:
        from ali_dist.launchers.supervisor import run_supervised

        return run_supervised
    from ali_dist.launchers.local import run_local

    return run_local


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("ali_dist.train", lambda: _run_command(words))


def _run_command(arguments: list[str]) -> None:
    with stop_at_once("Stopped on request before training went on; run the same command to go on."):
        with collector_paused():
            config, dry_run = parse_arguments(arguments)
            check_results_stay(config)
            launch = None if dry_run else choose_launcher(config)
        if launch is not None:
            launch(config)
            return
        from ali_dist.training.dry_run import describe_run

        print(describe_run(config, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


if __name__ == "__main__":
    run_to_the_end(main)
