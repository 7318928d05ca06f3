"""What the pages of the documentation hold: code, commands, and whether these would be accepted."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ali_dist.cli import CommandParser
from ali_dist.config.loading import from_mapping, load_preset
from cluster.__main__ import parse_request

ROOT = Path(__file__).resolve().parents[2]
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))

PARSED_MODULES = {
    *(
        f"ali_dist.{command}"
        for command in (
            "train",
            "prepare",
            "evaluate",
            "generate",
            "encode",
            "export",
            "explore",
            "list_runs",
            "fetch",
            "report",
        )
    ),
    *(
        f"tests.bench.{bench}"
        for bench in (
            "cpu_paths",
            "curves",
            "data",
            "evaluation",
            "first_line",
            "floor",
            "goodput",
            "growth",
            "host_memory",
            "identical",
            "kills",
        )
    ),
    *(
        f"tests.bench.{bench}"
        for bench in ("launch", "lifecycle", "machines", "penalised", "pictures", "promises", "quality", "ratios")
    ),
    *(
        f"tests.bench.{bench}"
        for bench in ("ray_kills", "recipes", "search", "shared_machine", "soak", "step", "sweep")
    ),
    *("tests.gpu.check", "tuning.sweep"),
}
"""Modules that parse their command line by argparse, before they do anything."""
_TAKES_FILES = ("cluster.checks", "tests.gpu.check.document")


class Parsed(BaseException):
    """A command line was parsed to its end; it is not run."""


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """The language and the content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def without_blocks(text: str) -> str:
    """The text of a page outside of its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    """The content of every code span outside of fenced blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(text))]


def command_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every `-m MODULE` of a page, in code spans and in shell blocks, with the words that follow it."""
    blocks = [content for language, content in fenced_blocks(text) if language == "sh"]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + inline_code(text):
        words = _split_words(line)
        for place, word in enumerate(words[:-1]):
            if word == "-m" and re.fullmatch(r"[a-z_.]+", words[place + 1]):
                yield words[place + 1], words[place + 2 :]


def _split_words(line: str) -> list[str]:
    """The words of the first command of a line that is a `python -m`, up to a comment, a pipe or the next command."""
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word not in ("&&", "||", "|", "&", ";"):
            words.append(word)
        elif "-m" in words:
            break
        else:
            words = []
    return words


def check_command_lines(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that every `python -m ...` of a page would be accepted by its parser; nothing is run."""
    for module, words in command_lines(page.read_text(encoding="utf-8")):
        check_line(module, words, page.name, monkeypatch)


def check_line(module: str, words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that a `python -m MODULE ...` would be accepted by its parser; nothing is run.

    Args:
        module: What is run.
        words: What follows.
        where: The page or the help that it is from.
        monkeypatch: Keeps the module from running.
    """
    line = f"python -m {module} {' '.join(words)}"
    assert importlib.util.find_spec(module) is not None, f"{where}: there is no module for {line!r}"
    if not words:  # the command is only named
        return
    if module == "cluster":
        if not words[0].isupper():  # as in `python -m cluster COMMAND FILE`
            parse_request(words)
    elif module in _TAKES_FILES:
        assert not any(word.startswith("--") for word in words), line
    else:
        assert module in PARSED_MODULES, f"{where}: {line!r}: add {module} to PARSED_MODULES if argparse parses it"
        _check_by_parser(module, words, f"{where}: {line!r} is refused", monkeypatch)


def _check_by_parser(module: str, words: list[str], refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the module with parsers that check settings, too, and raise `Parsed` when they are done."""
    parse_args = argparse.ArgumentParser.parse_args
    parse_with_settings = CommandParser.parse_with_settings
    settings_follow = False

    def parse_and_stop(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> argparse.Namespace:
        own_options = parse_args(parser, *arguments, **options)
        if settings_follow:
            return own_options
        raise Parsed

    def check_settings_and_stop(parser: CommandParser, arguments: list[str]) -> None:
        nonlocal settings_follow
        settings_follow = True
        own_options, settings = parse_with_settings(parser, arguments)
        preset = own_options.preset or "digits"
        is_placeholder = preset.isupper() or preset.endswith((".yaml", ".yml"))
        from_mapping({} if is_placeholder else load_preset(preset), settings)
        raise Parsed

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module has been imported already
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(CommandParser, "parse_with_settings", check_settings_and_stop)
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises((Parsed, SystemExit)) as ended:
            runpy.run_module(module, run_name="__main__")
    assert ended.type is Parsed or "--help" in words, refusal
