"""The parser that the commands share: one kind of complaint, and the options that several commands have.

A command makes a `CommandParser` (or, where it uses a trained model, calls `make_run_parser`), adds its own options
with the option types below, and calls `parse_args`. A command that also takes settings of a run, such as
`--optim.lr_d 1e-4`, calls `parse_with_settings`. Importing this module imports neither torch nor ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ali_dist.config import Config, StorageConfig
from ali_dist.config.loading import (
    Preset,
    did_you_mean,
    from_mapping,
    parse_overrides,
    preset_names,
    read_preset,
    setting_infos,
    without_foreign_source,
)
from ali_dist.errors import InputError
from ali_dist.storage.local_copy import copy_to_local

if TYPE_CHECKING:
    import torch

OptionGroup = argparse.ArgumentParser | argparse._ArgumentGroup


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and breaks no name at its hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class CommandParser(argparse.ArgumentParser):
    """argparse whose complaints are `InputError`s of one sentence, with the nearest option where one is misspelt.

    Abbreviated options are refused.

    Args:
        module: What `python -m` runs, such as `ali_dist.evaluate`; stands in the usage line and in complaints.
        description: First paragraphs of --help; line breaks are kept.
        epilog: Last paragraphs of --help, likewise.
        takes_settings: Whether the command takes `--section.key value` beside its own options, that is, whether it
            calls `parse_with_settings`; complaints then name the nearest setting, too.
    """

    def __init__(self, module: str, description: str, epilog: str = "", *, takes_settings: bool = False) -> None:
        super().__init__(
            prog=f"python -m {module}",
            usage="%(prog)s [options] [--section.key value ...]" if takes_settings else None,
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self._takes_settings = takes_settings

    def parse_with_settings(self, words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
        """Parse the command's own options, and the settings of a run that stand beside them in any order.

        Args:
            words: The command line. A word that starts with `--` and has a dot in its name is a setting; its value
                follows after `=` or as the next word.

        Returns:
            The command's own options, and the settings as text by dotted name, as `from_mapping` takes them.

        Raises:
            InputError: An option or a setting is unknown, lacks its value, or has a bad one. (Values of settings are
                checked by `from_mapping`.)
        """
        own: list[str] = []
        settings: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name, equals, _ = word.partition("=")
            if not name.startswith("--") or "." not in name:
                own.append(word)
                continue
            settings.append(word)
            if not equals and rest and not rest[0].startswith("--"):
                settings.append(rest.pop(0))
        return self.parse_args(own), parse_overrides(settings)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as an `InputError`, in the words of our other messages."""
        raise InputError(f"{self._explain_complaint(message)}; see {self.prog} --help.")

    def _explain_complaint(self, message: str) -> str:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            return self._explain_unknown(unknown[1].partition("=")[0])
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            names = missing[1].split(", ")
            return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing"
        if concerned := re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL):
            option, complaint = concerned.groups()
            if complaint == "expected one argument":
                return f"{option} needs a value"
            if choice := re.match(r"invalid choice: '(.*)' \(choose from", complaint):
                return self._explain_choice(option, choice[1])
            if complaint.startswith("is "):  # written by one of the option types below
                return f"{option} {complaint}"
        return message

    def _explain_unknown(self, word: str) -> str:
        if not word.startswith("-"):
            beside = "; settings are given as --section.key value" if self._takes_settings else ""
            return f"{word!r} was not expected{beside}"
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = did_you_mean(word, known)
        if not hint and self._takes_settings:
            hint = did_you_mean(word.removeprefix("--"), setting_infos())
        return f"There is no option {word}{hint.removesuffix('?')}"

    def _explain_choice(self, option: str, value: str) -> str:
        action = next(action for action in self._actions if option in (*action.option_strings, action.metavar))
        choices = [str(choice) for choice in action.choices or ()]
        hint = did_you_mean(value, choices).removesuffix("?")
        return f"{option} is {value!r}, but must be one of {', '.join(choices)}{hint}"


def make_run_parser(command: str, description: str, epilog: str = "") -> CommandParser:
    """Make the parser of a command that uses a trained model: it names a run and says how the model is used.

    Args:
        command: Name of the command's module in `ali_dist`.
        description: First paragraphs of --help; line breaks are kept.
        epilog: Last paragraphs of --help, likewise.
    """
    parser = CommandParser(f"ali_dist.{command}", description, epilog)
    parser.add_argument(
        "run", metavar="RUN", help="run folder, a checkpoint in one, or a name under runs/; or s3://..."
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights", choices=("auto", "ema", "raw"), default="auto", help="auto: the average (ema) if the run has one"
    )
    add_device_options(model)
    add_storage_options(model)
    return parser


def add_preset_option(group: OptionGroup) -> None:
    """Add `--preset` to a parser or a group of one; `load_preset_option` reads it."""
    group.add_argument(
        "--preset",
        metavar="NAME|FILE",
        default="digits",
        help=f"what to start from: {', '.join(preset_names())}, or a .yaml file (digits)",
    )


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
    with copy_to_local(preset) as path:
        loaded = read_preset(path)
    loaded = dataclasses.replace(loaded, settings=without_foreign_source(loaded.settings, given))
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


def add_device_options(group: OptionGroup) -> None:
    """Add `--device` to a parser or a group of one; `device_from_arguments` reads it."""
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")


def device_from_arguments(arguments: argparse.Namespace) -> torch.device:
    """Choose the device that `--device` names; under torchrun, this rank's GPU.

    Raises:
        InputError: A GPU was asked for and there is none.
    """
    import torch  # here, because `prepare` does without it, and so do the processes that it starts

    from ali_dist.distributed import World, choose_device

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch sees no GPU here: use cpu or auto.")
    return choose_device(arguments.device, (World.from_torchrun() or World()).local_rank)


def add_storage_options(group: OptionGroup) -> None:
    """Add `--endpoint-url` and `--anonymous` to a parser or a group of one; `storage_from_arguments` reads them."""
    group.add_argument("--endpoint-url", metavar="URL", help="S3 endpoint; default: AWS_ENDPOINT_URL or AWS")
    group.add_argument("--anonymous", action="store_true", help="read public buckets without credentials")


def storage_from_arguments(arguments: argparse.Namespace) -> StorageConfig:
    """Say how S3 is reached: by `--endpoint-url` and `--anonymous`, everything else as by default."""
    return StorageConfig(endpoint_url=arguments.endpoint_url, anonymous=arguments.anonymous)


def whole_number_type(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make the option type of whole numbers from `least` to `most` (None: without an upper bound)."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,15}", text) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"is {text!r}, but must be a whole number {bounds}")
        return int(text)

    return parse


def number_type(
    *, least: float | None = None, above: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    """Make the option type of finite numbers.

    Args:
        least: Smallest number allowed.
        above: A bound that the number itself must exceed.
        most: Largest number allowed.
    """
    limits = (("of at least", least), ("above", above), ("up to", most))
    bounds = " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)

    def is_allowed(number: float) -> bool:
        return (
            math.isfinite(number)
            and (least is None or number >= least)
            and (above is None or number > above)
            and (most is None or number <= most)
        )

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not is_allowed(number):
            raise argparse.ArgumentTypeError(f"is {text!r}, but must be a number {bounds}".rstrip())
        return number

    return parse


def parse_path(text: str) -> Path:
    """The option type of paths on this machine; a leading ~ is the user's home."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, but must be a path")
    return Path(text).expanduser()


def parse_comma_list(text: str) -> tuple[str, ...]:
    """The option type of comma-separated words, `a,b, c`; blanks around a word do not count."""
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be words with commas between them, such as a,b")
    return words
