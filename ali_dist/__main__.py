"""python -m ali_dist: lists the commands; `python -m ali_dist COMMAND ...` runs one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import NoReturn

from ali_dist import __version__
from ali_dist.errors import WRONG_INPUT, InputError, exit_code
from ali_dist.process_end import run_to_the_end

COMMANDS = {
    "train": ("ali_dist.train", "train a model, or go on with one: here, under torchrun, or on Ray"),
    "prepare": ("ali_dist.prepare", "write pictures as shards that can be trained on, or index those that there are"),
    "evaluate": ("ali_dist.evaluate", "measure a trained model"),
    "generate": ("ali_dist.generate", "draw samples, reconstructions, interpolations and changes of condition"),
    "encode": ("ali_dist.encode", "write the features of a data set"),
    "export": ("ali_dist.export", "take a trained model away: weights, graphs and a model card"),
    "explore": ("ali_dist.explore", "move through a trained model's latent space in the browser"),
    "runs": ("ali_dist.list_runs", "list the runs in a folder or in S3, and compare some of them"),
    "fetch": ("ali_dist.fetch", "bring the report of a run here, from S3 or another folder"),
    "report": ("ali_dist.report", "compare runs on one page: settings, curves, metrics, pictures"),
    "sweep": ("tuning.sweep", "search hyper-parameters with Ray Tune"),
    "cluster": ("cluster", "start clusters, submit jobs to them, and stop them"),
}
"""Module and purpose of every command, by name."""


def main(argv: list[str] | None = None) -> int:
    """List the commands, show the version, or run the command that is named; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return exit_code("ali_dist", lambda: _run(words))


def _run(words: list[str]) -> int:
    if words and words[0] == "help" and len(words) > 1:
        return _run_command(words[1], ["--help", *words[2:]])
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"ali_dist {__version__}")
        return 0
    if words[0] == "completion":
        return _print_completion(words[1:])
    return _run_command(words[0], words[1:])


def _print_completion(words: list[str]) -> int:
    from ali_dist.completion import HOW_TO_USE, write_script

    if len(words) != 1 or words[0] in ("-h", "--help"):
        print(HOW_TO_USE)
        return 0 if words and len(words) == 1 else WRONG_INPUT
    print(write_script(words[0], {name: module for name, (module, _) in COMMANDS.items()}), end="")
    return 0


def _run_command(name: str, words: list[str]) -> int:
    if name not in COMMANDS:
        from ali_dist.config.suggestions import did_you_mean

        hint = did_you_mean(name, COMMANDS).removesuffix("?")
        raise InputError(f"There is no command {name!r}{hint}; the commands are: {', '.join(COMMANDS)}.")
    module = COMMANDS[name][0]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise InputError(f"The command {name} needs the whole project, and only ali_dist is installed: run it there.")
    from ali_dist.completion import entry_of

    return int(importlib.import_module(entry_of(module)).main(words) or 0)


def _overview() -> str:
    width = max(len(f"python -m {module}") for module, _ in COMMANDS.values())
    lines = [f"  {f'python -m {module}':<{width}}  {purpose}" for module, purpose in COMMANDS.values()]
    return "\n".join(
        [
            f"ali_dist {__version__}: Adversarially Learned Inference, from one core to a cluster.",
            "",
            *lines,
            "",
            "Each takes --help. `python -m ali_dist COMMAND ...` runs one by its short name:",
            f"{', '.join(COMMANDS)}.",
            "From Python: ali_dist.load(RUN).",
            "`ali` is the same, `ali help COMMAND` shows its help, and `ali completion bash` (or zsh) completes it.",
        ]
    )


def run() -> NoReturn:
    """The script `ali`."""
    run_to_the_end(main)


if __name__ == "__main__":
    run()
