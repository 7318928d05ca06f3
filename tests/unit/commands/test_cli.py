"""The parser that all commands share: what is wrong on a command line is one sentence that names the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.cli import CommandParser, number_type, parse_comma_list, parse_path, whole_number_type
from ali_dist.errors import InputError


def make_parser(*, takes_settings: bool = False) -> CommandParser:
    parser = CommandParser("some.command", "Does something.", takes_settings=takes_settings)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--trials", type=whole_number_type(1, 99))
    parser.add_argument("--share", type=number_type(above=0, most=1))
    parser.add_argument("--what", choices=("metrics", "svm"), default="metrics")
    parser.add_argument("--only", type=parse_comma_list)
    parser.add_argument("--from", dest="path", type=parse_path)
    parser.add_argument("--resume", action="store_true")
    return parser


def test_options_have_their_types() -> None:
    words = ["digits", "--trials", "7", "--share", "2.5e-1", "--only", "a, b", "--from", "~/data"]
    arguments = make_parser().parse_args(words)
    assert (arguments.trials, arguments.share, arguments.only) == (7, 0.25, ("a", "b"))
    assert arguments.path == Path.home() / "data"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trails", "3"], "There is no option --trails; did you mean --trials"),
        (["--trails=3"], "There is no option --trails; did you mean --trials"),
        (["--tri", "3"], "There is no option --tri; did you mean --trials"),
        (["more"], "'more' was not expected"),
        (["--trials"], "--trials needs a value"),
        (["--trials", "0"], "--trials is '0', but must be a whole number from 1 to 99"),
        (["--trials", "1.5"], "--trials is '1.5', but must be a whole number from 1 to 99"),
        (["--share", "0"], "--share is '0', but must be a number above 0 and up to 1"),
        (["--share", "nan"], "--share is 'nan', but must be a number above 0 and up to 1"),
        (["--share", "much"], "--share is 'much', but must be a number above 0 and up to 1"),
        (["--what", "metric"], "--what is 'metric', but must be one of metrics, svm; did you mean metrics"),
        (["--only", "a,,b"], "--only is 'a,,b', but must be words with commas between them, such as a,b"),
        (["--from", ""], "--from is empty, but must be a path"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_remedy(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as refusal:
        make_parser().parse_args(["digits", *words])
    assert str(refusal.value) == f"{sentence}; see python -m some.command --help."


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(InputError, match="^SOURCE is missing; see python -m some.command --help"):
        make_parser().parse_args([])


def test_numbers_without_bounds_are_finite_numbers() -> None:
    assert number_type()("-3e4") == -3e4
    parser = CommandParser("some.command", "")
    parser.add_argument("--share", type=number_type())
    with pytest.raises(InputError, match="--share is 'inf', but must be a number; see"):
        parser.parse_args(["--share", "inf"])


def test_settings_stand_anywhere_beside_the_options() -> None:
    words = ["--optim.lr_d", "1e-4", "--trials", "3", "digits", "--run.name=x.y", "--resume", "--model.width", "-1"]
    arguments, settings = make_parser(takes_settings=True).parse_with_settings(words)
    assert (arguments.trials, arguments.source, arguments.resume) == (3, "digits", True)
    assert settings == {"optim.lr_d": "1e-4", "run.name": "x.y", "model.width": "-1"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optim.lrd", "1"], "did you mean optim.lr_d"),
        (["--lr_d", "1"], "There is no option --lr_d; did you mean optim.lr_d"),
        (["--trails", "3"], "did you mean --trials"),
        (["--optim.lr_d", "--resume"], "--optim.lr_d needs a value"),
        (["more"], "'more' was not expected; settings are given as --section.key value"),
    ],
)
def test_a_mistake_among_settings_is_named_likewise(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as refusal:
        make_parser(takes_settings=True).parse_with_settings(["digits", *words])
    assert sentence in str(refusal.value)
