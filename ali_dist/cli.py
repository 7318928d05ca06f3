"""What the commands that use a trained model share: their first arguments, and progress."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from ali_dist.config import StorageConfig
from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError

if TYPE_CHECKING:
    import torch


class CommandParser(argparse.ArgumentParser):
    """argparse whose complaints are `InputError`s, with the nearest option where one is misspelt."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = did_you_mean(unknown[1], known).removesuffix("?") if unknown else ""
        raise InputError(f"{message}{hint}; see {self.prog} --help.")


def make_run_parser(command: str, description: str, epilog: str = "") -> CommandParser:
    """A parser with the arguments that name a run and say how it is used.

    Args:
        command: Name of the command's module in `ali_dist`.
        description: First paragraphs of --help, as they are to be shown.
        epilog: Its last ones.
    """
    parser = CommandParser(
        prog=f"python -m ali_dist.{command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", metavar="RUN", help="run folder, a checkpoint in one, or a name under runs/; or s3://..."
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights", choices=("auto", "ema", "raw"), default="auto", help="auto: the average (ema) if the run has one"
    )
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    model.add_argument("--endpoint-url", metavar="URL", help="S3 endpoint; default: AWS_ENDPOINT_URL or AWS")
    return parser


def storage_from_arguments(arguments: argparse.Namespace) -> StorageConfig:
    """How to reach S3, as the arguments of `run_parser` say."""
    return StorageConfig(endpoint_url=arguments.endpoint_url)


def device_from_arguments(arguments: argparse.Namespace) -> torch.device:
    """The device the arguments name; under torchrun, this rank's GPU.

    Raises:
        InputError: A GPU was asked for and there is none.
    """
    import torch  # here, because `prepare` does without it, and so do the processes that it starts

    from ali_dist.distributed import World, choose_device

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch sees no GPU here: use cpu or auto.")
    return choose_device(arguments.device, (World.from_torchrun() or World()).local_rank)


def whole_number_type(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number from `least` to `most`."""
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,15}", text) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return int(text)

    return parse
