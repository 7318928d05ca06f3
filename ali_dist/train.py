"""Train ALI: `python -m ali_dist.train [--preset NAME|FILE.yaml] [--section.key value ...]`.

With no arguments: scikit-learn's digits, in this process, on the GPU if there is one. The same command continues
a run that was interrupted. `--scale.workers 2` trains on two Ray workers, `s3://` urls stream from S3.

Exit codes: 0 done, 2 wrong input, 1 failure, 75 stopped on request with a checkpoint saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset, parse_overrides, preset_names, setting_infos
from ali_dist.errors import InputError, exit_code
from ali_dist.storage.local_copy import copy_to_local


def parse_arguments(arguments: list[str]) -> tuple[Config, bool]:
    """The config that the arguments describe, and whether it is only to be shown.

    Raises:
        InputError: An unknown preset or setting, or a bad value.
    """
    rest, preset, dry_run = list(arguments), "digits", False
    for word in arguments:
        if word == "--dry-run":
            dry_run = True
            rest.remove(word)
        elif word == "--preset" or word.startswith("--preset="):
            at = rest.index(word)
            _, equals, preset = rest.pop(at).partition("=")
            if not equals:
                if at == len(rest):
                    raise InputError(f"--preset needs a name or a .yaml file; presets: {', '.join(preset_names())}.")
                preset = rest.pop(at)
    name = Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset
    with copy_to_local(preset) as path:
        settings = load_preset(path)
    return from_mapping({"run": {"name": name}}, settings, parse_overrides(rest)), dry_run


def _format_default(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def help_text() -> str:
    """Usage, presets, and every setting with its meaning, allowed values and default."""
    lines = [(__doc__ or "").strip(), "", f"Presets: {', '.join(preset_names())}.", "", "Settings (default):"]
    section = ""
    for info in setting_infos().values():
        if info.key.partition(".")[0] != section:
            section = info.key.partition(".")[0]
            lines.append("")
        lines.append(f"  --{info.key} ({_format_default(info.default)})\n        {info.help} [{info.allowed()}]")
    return "\n".join(
        [*lines, "", "  --dry-run\n        show the resolved settings, sizes and an estimate; train nothing"]
    )


def uses_ray(config: Config) -> bool:
    """Whether this run goes to Ray workers: asked for, or inside a Ray job or beside a Ray cluster."""
    workers = config.scale.worker_range()
    if workers is not None:
        return workers != (0, 0)
    return "RANK" not in os.environ and any(os.environ.get(v) for v in ("RAY_ADDRESS", "RAY_JOB_ID"))


def train(config: Config) -> None:
    """Prepare built-in data if needed and train, here or on Ray workers.

    Raises:
        InputError, TrainingError, StorageError: It cannot be done.
        Stopped: It was asked to stop and has saved a checkpoint.
    """
    from ali_dist.launchers.local import run_local

    if uses_ray(config):
        try:
            from ali_dist.launchers.ray_train import run_on_ray  # the only way to an import of ray
        except ImportError as error:
            raise InputError(
                f"scale.workers is {config.scale.workers!r}, which needs Ray, but cannot be imported ({error}): "
                "install ray[default,train], or train in this process with --scale.workers 0."
            ) from error
        run_on_ray(config)
    else:
        run_local(config)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    return exit_code("ali_dist.train", lambda: _run_command(arguments))


def _run_command(arguments: list[str]) -> None:
    config, dry_run = parse_arguments(arguments)
    if dry_run:
        from ali_dist.training.dry_run import describe_run

        print(describe_run(config))
    else:
        train(config)


if __name__ == "__main__":
    sys.exit(main())
