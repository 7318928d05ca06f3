"""How long each command takes to say something: `python -m tests.bench.first_line [--against COMMIT] [options]`.

Every command is started at a terminal of its own, on a small run of the digits that is trained first. The time is that
from its start to the first words that it shows; then it is ended. With --against, the commands of that commit take
turns with those of the working tree, on the same run, where they have it; one that it lacks has no figure.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ali_dist.cli import parse_path, whole_number_type
from ali_dist.errors import InputError, exit_code
from tests.bench.step import describe_conditions
from tests.helpers.documents import replace_marked
from tests.helpers.processes import ROOT, kill_tree

COMMANDS = {
    "ali_dist.train": ("--run.name=new", "--run.images=100000", "--scale.device=cpu"),
    "ali_dist.train --help": ("--help",),
    "ali_dist.train --dry-run": ("--dry-run",),
    "ali_dist.prepare": ("digits", "prepared"),
    "ali_dist.evaluate": ("{run}",),
    "ali_dist.generate": ("{run}", "--out", "pictures"),
    "ali_dist.encode": ("{run}", "--out", "features.npz"),
    "ali_dist.export": ("{run}", "exported", "--format", "torch"),
    "ali_dist.explore": ("{run}",),
    "ali_dist.report": ("{run}", "{run}"),
    "ali_dist.list_runs": ("--dir", "runs"),
    "tuning.sweep": ("--preset", "mixture", "--trials", "2"),
    "cluster": ("status", "{root}/cluster/local.yaml"),
}
"""The words after the module, by the name in the table, which begins with the module."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\s")
_LONGEST_SILENCE = 120.0
_MARKER = "first lines"


def seconds_to_first_words(root: Path, module: str, words: Sequence[str], folder: Path) -> float | None:
    """Start a command at a terminal, and end it as soon as it shows anything; None if there is no such command.

    Args:
        root: The tree whose command it is.
        module: Its module.
        words: Its arguments.
        folder: Where it runs.

    Raises:
        InputError: It shows nothing for `_LONGEST_SILENCE` seconds, or ends without a word.
    """
    place = root.joinpath(*module.split("."))
    if (
        not place.with_suffix(".py").is_file() and not (place / "__main__.py").is_file()
    ):  # an installed one would be found in its place
        return None
    ours, theirs = pty.openpty()
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = ""
        while not _ESCAPES.sub("", shown):
            words_shown = _read_within(ours, began + _LONGEST_SILENCE - time.monotonic())
            if words_shown is None:
                raise InputError(f"python -m {module} shows nothing, or not for {_LONGEST_SILENCE:.0f} s.")
            shown += words_shown
        return time.monotonic() - began
    finally:
        kill_tree(process)
        os.close(ours)


def _read_within(terminal: int, seconds: float) -> str | None:
    """What a command shows next; None if that is nothing within so many seconds, or if it has ended."""
    if seconds <= 0 or not select.select([terminal], [], [], seconds)[0]:
        return None
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # it has ended
        return None


def measure_commands(roots: Sequence[Path], folder: Path, rounds: int) -> dict[str, list[float | None]]:
    """The median seconds of each command, by its name, for each tree.

    Args:
        roots: Trees with the commands.
        folder: An empty one.
        rounds: Turns of every tree and command.
    """
    train = [sys.executable, "-m", "ali_dist.train", "--run.name=digits", "--run.images=640", "--scale.device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(train, cwd=folder, env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    found: dict[str, list[float | None]] = {}
    for name, arguments in COMMANDS.items():
        words = [word.format(run=folder / "runs" / "digits", root=ROOT) for word in arguments]
        module = name.split()[0]
        turns = [[seconds_to_first_words(root, module, words, folder) for root in roots] for _ in range(rounds)]
        found[name] = [
            None if None in of_tree else median(seconds for seconds in of_tree if seconds is not None)
            for of_tree in zip(*turns, strict=True)
        ]
        print(name, *found[name], file=sys.stderr, flush=True)
    return found


def format_table(found: dict[str, list[float | None]], commit: str | None) -> str:
    """Format as Markdown: now, and before if a commit is given."""
    heads = ["now"] if commit is None else ["now", f"at {commit}"]
    lines = [f"| `python -m` | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, seconds in found.items():
        cells = ["-" if each is None else f"{each:.1f} s" for each in seconds]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _run_command(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="ali-first-line-") as name:
        folder = Path(name) / "work"
        folder.mkdir()
        roots = [ROOT]
        if options.against is not None:
            roots.append(Path(name) / "before")
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", options.against], capture_output=True, check=False
            )
            if archive.returncode:
                raise InputError(f"--against is {options.against!r}, which is no commit of this repository.")
            roots[1].mkdir()
            subprocess.run(["tar", "-x", "-C", str(roots[1])], input=archive.stdout, check=True)
        table = format_table(measure_commands(roots, folder, options.rounds), options.against)
    conditions = _describe_conditions()
    text = f"{conditions}\n\n{table}"
    print(text)
    if options.table is not None:
        document = options.table.read_text(encoding="utf-8")
        options.table.write_text(replace_marked(document, _MARKER, text, "the times are"), encoding="utf-8")


def _describe_conditions() -> str:
    """One sentence on where and when it was measured."""
    import torch

    conditions = describe_conditions(torch.device("cpu"), "fp32")
    return (
        f"Measured on {conditions['date']}: {conditions['cpu']}, {conditions['cores']} cores, torch "
        f"{conditions['torch']}, Python {conditions['python']}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.first_line", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--against", metavar="COMMIT", help="measure the commands of an earlier commit, too")
    parser.add_argument("--rounds", type=whole_number_type(1), default=3, help="turns of every command (3)")
    parser.add_argument("--table", metavar="PAGE", type=parse_path, help="put the table between the page's markers")
    options = parser.parse_args(arguments)
    return exit_code("tests.bench.first_line", lambda: _run_command(options))


if __name__ == "__main__":
    sys.exit(main())
