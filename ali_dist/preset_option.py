"""`--preset` of the commands that train: what it names, and the config that follows from it and the user's settings.

Importing this module imports neither torch nor ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ali_dist.config import Config
from ali_dist.config.loading import Preset, from_mapping, preset_names, read_preset, without_foreign_source
from ali_dist.storage.local_copy import copy_to_local


def add_preset_option(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--preset` to a parser or a group of one; `load_preset_option` reads it."""
    group.add_argument(
        "--preset",
        metavar="NAME|FILE",
        default="digits",
        help=f"what to start from: {', '.join(preset_names())}, or a .yaml file (digits)",
    )


def read_preset_option(preset: str, given: Mapping[str, Any]) -> Preset:
    """Read what `--preset` names, without a look at any data; `load_preset_option` also sizes it by its data.

    Args:
        preset: Name or file.
        given: The user's settings, by dotted name.

    Raises:
        InputError: There is no such preset or file, or it cannot be read.
    """
    with copy_to_local(preset) as path:
        loaded = read_preset(path)
    return dataclasses.replace(loaded, settings=without_foreign_source(loaded.settings, given))


def load_preset_option(preset: str, given: Mapping[str, Any]) -> Preset:
    """Load what `--preset` names: a preset that ships, or a file on this machine or in S3.

    Its built-in data go where the user gives other data. Where it is sized by its data, these are looked at, and `note`
    says what follows.

    Args:
        preset: Name or file.
        given: The user's settings, by dotted name.

    Raises:
        InputError: There is no such preset or file, it cannot be read, or there are no data to size it by.
    """
    loaded = read_preset_option(preset, given)
    if loaded.sized_by is None:
        return loaded
    from ali_dist.runs.image_sizes import settings_from_data

    sizes, note = settings_from_data({"run.name": loaded.name, **loaded.settings}, given)
    return dataclasses.replace(loaded, settings={**loaded.settings, **sizes}, note=note)


def build_config(preset: Preset, given: Mapping[str, Any], *, run_name: str) -> Config:
    """Build the config of a command that takes a preset and settings, and say what the preset has to say.

    Args:
        preset: The preset.
        given: The user's settings, by dotted name.
        run_name: Name of the run, unless one of them has it.

    Raises:
        InputError: A setting is unknown or has a bad value, or the preset does not suit the data.
    """
    config = from_mapping({"run.name": run_name}, preset.settings, given)
    if config.data.image_size is not None:
        from ali_dist.runs.image_sizes import check_shrink

        check_shrink(config, preset.name, preset.users_own | given.keys())
    if preset.note:
        sys.stderr.write(f"{preset.note}\n")
    return config
