"""Train ALI: `python -m ali_dist.train [--preset NAME|FILE.yaml] [--section.key value ...]`.

With no arguments, it trains on scikit-learn's digits, in this process, on the GPU if there is one. The same command
continues a run that was interrupted. `--scale.workers 2` trains on two Ray workers; `s3://` URLs stream from S3.

Exit codes: 0 done, 2 wrong input, 1 failure, 75 stopped on request with a checkpoint saved, 130 interrupted by a second
Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ali_dist.cli import CommandParser, add_preset_option, build_config, load_preset_option
from ali_dist.config import Config
from ali_dist.config.loading import setting_infos
from ali_dist.errors import InputError, exit_code
from ali_dist.launchers.signals import stop_at_once

if TYPE_CHECKING:
    from ali_dist.runs.trackers import Record


def parse_arguments(arguments: list[str]) -> tuple[Config, bool]:
    """Parse the command line.

    Returns:
        The config that the arguments describe, and whether it is only to be shown.

    Raises:
        InputError: An unknown preset, option or setting, or a bad value.
    """
    options, settings = _make_parser().parse_with_settings(arguments)
    preset = load_preset_option(options.preset, settings)
    return build_config(preset, settings, run_name=preset.name), options.dry_run


def _make_parser() -> CommandParser:
    parser = CommandParser("ali_dist.train", (__doc__ or "").strip(), _describe_settings(), takes_settings=True)
    add_preset_option(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the resolved settings, sizes and an estimate; train nothing"
    )
    return parser


def _describe_settings() -> str:
    """Every setting with its meaning, allowed values and default."""
    lines = ["settings (default):"]
    section = ""
    for info in setting_infos().values():
        if info.key.partition(".")[0] != section:
            section = info.key.partition(".")[0]
            lines.append("")
        lines.append(f"  --{info.key} ({_format_default(info.default)})\n        {info.help} [{info.allowed()}]")
    return "\n".join(lines)


def _format_default(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def choose_launcher(config: Config) -> Callable[[Config], Record | None]:
    """Choose what trains the run: this process (one of torchrun's, too), or Ray workers.

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
    from ali_dist.launchers.local import run_local

    return run_local


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("ali_dist.train", lambda: _run_command(words))


def _run_command(arguments: list[str]) -> None:
    with stop_at_once("Stopped on request before training went on; run the same command to go on."):
        config, dry_run = parse_arguments(arguments)
        if dry_run:
            from ali_dist.training.dry_run import describe_run

            print(describe_run(config))
        else:
            choose_launcher(config)(config)


if __name__ == "__main__":
    sys.exit(main())
