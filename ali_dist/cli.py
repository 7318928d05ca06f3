"""The parser that the commands share: one kind of complaint, and the options that several commands have.

A command makes a `CommandParser` (or, where it uses a trained model, calls `make_run_parser`), adds its own options
with the option types below, and calls `parse_args`. A command that also takes settings of a run, such as
`--optim.lr_d 1e-4`, calls `parse_with_settings`. Importing this module imports neither torch nor ray.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ali_dist.config import StorageConfig
from ali_dist.config.loading import did_you_mean, parse_overrides, setting_infos
from ali_dist.config.settings_help import describe_settings, find_help_topic, section_titles
from ali_dist.errors import InputError
from ali_dist.loading_note import say_if_loading
from ali_dist.preset_option import read_preset_option

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
            calls `parse_with_settings`; complaints then name the nearest setting, too, and `--help SECTION` shows one
            group of settings, with the values of the preset that is named.
        lists_settings: Whether --help ends with all settings.

    Attributes:
        takes_settings: As given.
        suggestions: Words that a shell offers for an argument, by its `dest`, where these are not its choices.
    """

    def __init__(
        self,
        module: str,
        description: str,
        epilog: str = "",
        *,
        takes_settings: bool = False,
        lists_settings: bool = False,
    ) -> None:
        super().__init__(
            prog=f"python -m {module}",
            usage="%(prog)s [options] [--section.key value ...]" if takes_settings else None,
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.takes_settings = takes_settings
        self.suggestions: dict[str, Sequence[str]] = {}
        self._lists_settings = lists_settings

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
        topic: str | None = None
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name, equals, _ = word.partition("=")
            if not name.startswith("--") or "." not in name:
                own.append(word)
                if word in ("-h", "--help"):
                    topic = rest.pop(0) if rest and not rest[0].startswith("-") else ""
                continue
            settings.append(word)
            if not equals and rest and not rest[0].startswith("--"):
                settings.append(rest.pop(0))
        if topic is not None:
            self._show_help(own, parse_overrides(settings), topic)
        return self.parse_args(own), parse_overrides(settings)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse the command's own options; what a command does after that begins with loading PyTorch."""
        options = super().parse_args(args, namespace)
        say_if_loading("torch", "Loading PyTorch.")
        return options

    def _show_help(self, own: list[str], settings: Mapping[str, Any], topic: str) -> NoReturn:
        """Show the help as the run would be, or one group of settings, and exit.

        Args:
            own: The command's own options, of which the preset counts.
            settings: The user's settings, by dotted name.
            topic: A group of settings or a setting; empty: everything.
        """
        keys = find_help_topic(topic) if topic else list(setting_infos())
        name = _last_value("--preset", own, self.get_default("preset"))
        preset = read_preset_option(name, settings)
        width = self._get_formatter()._width
        shown = describe_settings(keys, [{"run.name": preset.name}, preset.settings, settings], width=width)
        sized = "; what it takes from the data differs, see --dry-run" if preset.sized_by else ""
        heading = f"settings, as of preset {preset.name}{sized}"
        if topic:
            self._print_message(f"{heading}:\n\n{shown}\n", sys.stdout)
        else:
            if self._lists_settings:
                groups = f"{heading}; --help GROUP shows one group of {', '.join(section_titles())}:"
                self.epilog = f"{self.epilog}\n\n{textwrap.fill(groups, width)}\n\n{shown}"
            self.print_help()
        self.exit()

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
            beside = "; settings are given as --section.key value" if self.takes_settings else ""
            return f"{word!r} was not expected{beside}"
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = did_you_mean(word, known)
        if not hint and self.takes_settings:
            hint = did_you_mean(word.removeprefix("--"), setting_infos())
        return f"There is no option {word}{hint.removesuffix('?')}"

    def _explain_choice(self, option: str, value: str) -> str:
        action = next(action for action in self._actions if option in (*action.option_strings, action.metavar))
        choices = [str(choice) for choice in action.choices or ()]
        hint = did_you_mean(value, choices).removesuffix("?")
        return f"{option} is {value!r}, but must be one of {', '.join(choices)}{hint}"


def _last_value(option: str, words: Sequence[str], default: str) -> str:
    """The value that an option has on a command line of which not everything may be right."""
    value = default
    for place, word in enumerate(words):
        name, equals, after = word.partition("=")
        if name == option:
            value = after if equals else next(iter(words[place + 1 : place + 2]), default)
    return value


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
