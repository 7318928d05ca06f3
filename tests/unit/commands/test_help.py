"""--help shows the values of the run that the command line describes, whole or one group of settings at a time."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

from ali_dist import __main__ as overview
from ali_dist import train
from ali_dist.completion import entry_of
from ali_dist.config.loading import from_mapping, load_preset, preset_names, setting_infos
from ali_dist.config.settings_help import describe_settings, section_titles
from tests.docs.pages import Parsed, check_line


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the train command shows for a command line with --help in it."""
    with pytest.raises(SystemExit) as ended:
        train.main(list(words))
    assert ended.value.code == 0
    return capsys.readouterr().out


def refusal_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert train.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def shown_values(text: str) -> dict[str, str]:
    """The values in a help, by setting."""
    return dict(re.findall(r"^  --([a-z]+\.\w+) \((.*?)(?:; default .*)?\)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", preset_names())
def test_help_shows_the_values_of_the_preset_in_force(name, capsys):
    shown = shown_values(help_of(capsys, "--preset", name, "--help"))
    assert list(shown) == list(setting_infos())
    config = from_mapping(load_preset(name), {"run.name": name}).to_mapping()
    for key, text in shown.items():
        section, _, field = key.partition(".")
        value = config[section][field]
        assert text == ("none" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


def test_what_the_user_gives_stands_above_the_preset_and_beside_the_default(capsys):
    text = help_of(capsys, "--optim.lr_d", "0.5", "--help", "--preset=cifar10")
    assert "--optim.lr_d (0.5; default 0.0001)\n" in text
    assert "--model.latent_size (64; default 16)\n" in text
    assert "--optim.lr_g (0.0001)\n" in text


@pytest.mark.parametrize("group", section_titles())
def test_a_group_is_shown_alone(group, capsys):
    text = help_of(capsys, "--help", group)
    assert list(shown_values(text)) == [key for key in setting_infos() if key.startswith(f"{group}.")]
    assert "usage" not in text


def test_one_setting_is_shown_alone(capsys):
    assert list(shown_values(help_of(capsys, "--help", "optim.lr_d"))) == ["optim.lr_d"]


def test_an_unknown_group_or_preset_is_refused_with_the_nearest(capsys):
    assert "did you mean objective;" in refusal_of(capsys, "--help", "objectives")
    assert "did you mean cifar10;" in refusal_of(capsys, "--preset", "cifar", "--help")


def test_settings_that_the_data_decide_are_said_to_differ(capsys):
    assert "from the data" in help_of(capsys, "--preset", "images", "--help", "model")
    assert "from the data" not in help_of(capsys, "--preset", "digits", "--help", "model")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_are_as_wide_as_the_page(width):
    lines = describe_settings(list(setting_infos()), [], width=width).splitlines()
    texts = [line for line in lines if not line.startswith("  --")]
    assert width - 20 < max(map(len, texts)) <= width


def test_help_of_a_command_by_its_short_name(capsys):
    with pytest.raises(SystemExit):
        overview.main(["help", "train", "optim"])
    assert "--optim.lr_d" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in overview.COMMANDS if name != "cluster"])
def test_every_help_has_examples_that_its_own_parser_takes(name, capsys, monkeypatch):
    module = overview.COMMANDS[name][0]
    with pytest.raises((SystemExit, Parsed)):
        importlib.import_module(entry_of(module)).main(["--help"])
    lines = re.findall(rf"^  python -m {module} (.*?)(?:  .*)?$", capsys.readouterr().out, re.MULTILINE)
    assert lines
    for line in lines:
        check_line(module, shlex.split(line), f"the help of {name}", monkeypatch)
