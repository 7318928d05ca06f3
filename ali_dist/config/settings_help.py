"""All settings, or some of them, as --help shows them: in groups, with the values that a run would have.

Pure: whoever calls says how wide the page is.
"""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ali_dist.config.loading import flatten_mapping, from_mapping, setting_infos
from ali_dist.config.schema import Config
from ali_dist.config.suggestions import did_you_mean
from ali_dist.errors import InputError

_INDENT = 8


def section_titles() -> dict[str, str]:
    """The groups of settings, and what each is about."""
    classes = typing.get_type_hints(Config)
    return {
        section.name: (classes[section.name].__doc__ or "").strip().partition("\n")[0]
        for section in dataclasses.fields(Config)
    }


def find_help_topic(word: str) -> list[str]:
    """The settings that `--help WORD` is about: a group, such as `objective`, or one setting, such as `optim.lr_d`.

    Raises:
        InputError: There is no such group or setting; the message names the nearest.
    """
    name = word.removeprefix("--").removesuffix(".")
    if name in setting_infos():
        return [name]
    if name in section_titles():
        return [key for key in setting_infos() if key.startswith(f"{name}.")]
    hint = did_you_mean(name, [*section_titles(), *setting_infos()]).removesuffix("?")
    raise InputError(
        f"--help {word}: there is no group of settings or setting of that name{hint}; groups: "
        f"{', '.join(section_titles())}."
    )


def describe_settings(keys: Sequence[str], layers: Sequence[Mapping[str, Any]], *, width: int) -> str:
    """Each setting with its value, its meaning and what is allowed, in groups with titles.

    Args:
        keys: Dotted names of the settings.
        layers: What stands above the defaults, later ones on top: a preset, what the user gives.
        width: Characters of a line, at most.

    Raises:
        InputError: Something in the layers is unknown or has a bad value.
    """
    values = dict(flatten_mapping(from_mapping(*layers).to_mapping()))
    titles = section_titles()
    lines: list[str] = []
    section = ""
    for key in keys:
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines += ["", *textwrap.wrap(f"{section}: {titles[section]}", width)]
        info = setting_infos()[key]
        value, default = (_format_value(each) for each in (values[key], info.default))
        without = "" if value == default else f"; default {default}"
        lines.append(f"  --{key} ({value}{without})")
        indent = " " * _INDENT
        text = f"{info.help} [{info.allowed()}]"
        lines += textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        )
    return "\n".join(lines).lstrip("\n")


def _format_value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
