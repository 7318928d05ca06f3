"""`ali completion bash` and `ali completion zsh`: a script by which the shell completes commands, options and values.

It is written from the commands' own parsers, so it knows what this version knows, and runs nothing when Tab is pressed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin

from ali_dist.cli import CommandParser
from ali_dist.config.loading import setting_infos
from ali_dist.config.settings_help import section_titles
from ali_dist.config.suggestions import did_you_mean
from ali_dist.errors import InputError

SHELLS = ("bash", "zsh")
HOW_TO_USE = """\
usage: ali completion bash|zsh

Write a script that completes commands, options, settings, presets and other values of `ali`:

  bash   ali completion bash > ~/.local/share/bash-completion/completions/ali     (then open a new shell)
  zsh    ali completion zsh > ~/.ali-completion.zsh, and in ~/.zshrc after compinit: source ~/.ali-completion.zsh

Write it again after an update. Where no value is known, file names are completed."""
_PLAIN = re.compile(r"[\w.,:+/=-]+")  # what means the same in a script with and without quotes


@dataclass(frozen=True, slots=True)
class Completions:
    """What a shell offers for one command.

    Attributes:
        options: Options, settings among them.
        values: Values by option; an option that takes no value, or any, is not in here.
        first: Words for the first argument that is no option.
    """

    options: list[str]
    values: Mapping[str, list[str]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)


_PACKAGES = ("cluster", "ali_dist.report")


def list_completions(parser: CommandParser) -> Completions:
    """Collect what a parser takes."""
    options: list[str] = []
    values: dict[str, list[str]] = {}
    first: list[str] = []
    for action in parser._actions:
        words = list(map(str, action.choices or parser.suggestions.get(action.dest, ())))
        if not action.option_strings:
            first = first or words
            continue
        names = [name for name in action.option_strings if name.startswith("--")]
        options += names
        if words and action.nargs != 0:
            values |= dict.fromkeys(names, words)
    if parser.takes_settings:
        values["--help"] = list(section_titles())
        for key, info in setting_infos().items():
            options.append(f"--{key}")
            if words := _words_of_type(info.type):
                values[f"--{key}"] = words
    return Completions(options, values, first)


def _words_of_type(kind: object) -> list[str]:
    """The words that a setting may have; empty where it may have any value."""
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    if kind is bool:
        return ["true", "false"]
    return [*_words_of_type(known[0]), "none"] if (known := [k for k in get_args(kind) if _words_of_type(k)]) else []


def write_script(shell: str, commands: Mapping[str, str]) -> str:
    """Write the script.

    Args:
        shell: One of SHELLS.
        commands: The module of every command, by name; those that are not installed are left out.

    Raises:
        InputError: There is no such shell.
    """
    if shell not in SHELLS:
        hint = did_you_mean(shell, SHELLS).removesuffix("?")
        raise InputError(f"There is no completion for {shell!r}{hint}; shells: {', '.join(SHELLS)}.")
    known = {name: list_completions(_parser_of(module)) for name, module in commands.items() if _is_installed(module)}
    names = [*known, "completion", "help"]
    values = [
        f'"completion completion") choices="{" ".join(SHELLS)}" ;;',
        f'"help help") choices="{_join(list(known))}" ;;',
    ]
    options = []
    for name, found in known.items():
        values += [f'"{name} {option}") choices="{_join(words)}" ;;' for option, words in found.values.items()]
        if found.first:
            values.append(f'"{name} {name}") choices="{_join(found.first)}" ;;')
        options.append(f'{name}) choices="{_join(found.options)}" ;;')
    start = "" if shell == "bash" else "autoload -U +X bashcompinit && bashcompinit\n"
    return start + _SCRIPT.format(
        names=_join(names), values="\n      ".join(values), options="\n        ".join(options)
    )


# Words stand in quotes and are all plain (see `_join`), because compgen -W expands them once more.
_SCRIPT = """\
# Completion of `ali`, written by `ali completion`.
_ali() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}" choices=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    choices="{names} --help --version"
  else
    case "$verb $prev" in
      {values}
    esac
    case "$cur" in
      -*)
        case "$verb" in
        {options}
        esac
        ;;
    esac
  fi
  if [ -n "$choices" ]; then
    COMPREPLY=($(compgen -W "$choices" -- "$cur"))
  fi
}}
complete -o default -F _ali ali
"""


def _join(words: list[str]) -> str:
    return " ".join(word for word in words if _PLAIN.fullmatch(word))


def entry_of(module: str) -> str:
    """The module that has `main` and `make_parser` of the command `python -m MODULE`: packages have another one."""
    return f"{module}.__main__" if module in _PACKAGES else module


def _is_installed(module: str) -> bool:
    found = importlib.util.find_spec(module.partition(".")[0])
    return found is not None and found.origin is not None  # else it is any folder of that name


def _parser_of(module: str) -> CommandParser:
    entry = importlib.import_module(entry_of(module))
    parser: CommandParser = entry.make_parser()
    return parser
