"""python -m ali_dist.fetch: bring the report of a run here, from S3 or from another folder."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ali_dist.cli import CommandParser, add_storage_options, parse_path, storage_from_arguments
from ali_dist.config.wording import format_count
from ali_dist.errors import InputError, exit_code
from ali_dist.launchers.signals import interrupt_on_sigterm

if TYPE_CHECKING:
    from ali_dist.storage.base import ObjectInfo, Store

_DESCRIPTION = """\
Bring what a run tells of itself to a folder of this machine: report.html (one page with everything on it),
summary.json, config.json, metrics.jsonl and images/. With --all, checkpoints and TensorBoard's files come, too.
What is here already and has the same size is not read again, but for the files that a running run changes."""
_EXAMPLES = """\
examples:
  python -m ali_dist.fetch s3://bucket/runs/cifar10                into fetched/cifar10
  python -m ali_dist.fetch s3://bucket/runs/cifar10 reports/cifar10
  python -m ali_dist.fetch s3://bucket/runs/cifar10 here --all     with the model, for ali_dist.load("here")"""
_REPORT_FILES = ("report.html", "summary.json", "config.json", "metrics.jsonl")
_REPORT_FOLDERS = ("images/",)
_NEVER = ("lease.json",)  # it says who trains the run where it lies, which is not here
_CHANGING = (*_REPORT_FILES, "tensorboard/")


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("ali_dist.fetch", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="s3://bucket/prefix/NAME, a run folder, or a name under runs/")
    parser.add_argument(
        "out", metavar="DIR", nargs="?", type=parse_path, help="folder on a disk (fetched/ with the run's name)"
    )
    parser.add_argument("--all", action="store_true", help="bring checkpoints and TensorBoard's files, too")
    add_storage_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    with interrupt_on_sigterm():
        interrupted = "Interrupted; the same command goes on."
        return exit_code("ali_dist.fetch", lambda: _run_command(make_parser().parse_args(argv)), interrupted)


def _run_command(arguments: argparse.Namespace) -> None:
    from ali_dist.report.terminal import show_progress
    from ali_dist.runs.find_run import find_run
    from ali_dist.storage import open_store

    run, _ = find_run(arguments.run, storage_from_arguments(arguments))
    out: Path = arguments.out or Path("fetched") / run.url.rstrip("/").rpartition("/")[2]
    _check_place(out, run)
    here = open_store(str(out))
    wanted = [info for info in run.list() if _is_wanted(info.key, everything=arguments.all)]
    missing = [info for info in wanted if _is_missing(info, here)]
    with show_progress("Fetching", len(missing)) as advance:
        for info in missing:
            here.put(info.key, run.get(info.key))
            advance(1)
    megabytes = sum(info.size for info in missing) / 1e6
    print(f"{format_count(len(missing), 'file')} ({megabytes:,.1f} MB) of {run.url} in {out}")
    names = {info.key for info in wanted}
    if "report.html" in names:
        print(f"Open {out / 'report.html'} in a browser.")
    else:
        print("The run has no report.html yet: it is written with the first pictures, and at the end.")


def _check_place(out: Path, run: Store) -> None:
    """Refuse the run's own folder, what is no folder of this machine, and a folder that holds something else."""
    if "://" in str(out) or str(out).startswith("s3:/"):
        raise InputError(f"DIR is {str(out)!r}, but a report is brought to a folder on a disk: give one.")
    if os.path.realpath(out) == os.path.realpath(run.url):
        raise InputError(f"DIR is {str(out)!r}, which is the run's own folder: give another one.")
    known = (*_REPORT_FILES, *(folder.rstrip("/") for folder in _REPORT_FOLDERS))
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in known)):
        raise InputError(f"DIR is {str(out)!r}, which holds something else than a report: give a new folder.")


def _is_wanted(key: str, *, everything: bool) -> bool:
    if key in _NEVER:
        return False
    return everything or key in _REPORT_FILES or key.startswith(_REPORT_FOLDERS)


def _is_missing(info: ObjectInfo, here: Store) -> bool:
    """Whether a file has to be read: it is not here, has another size, or may have changed without a change of size."""
    is_final = info.key.startswith(_REPORT_FOLDERS) and not re.search(r"\d", info.key)  # not of a moment of the run
    if info.key.startswith(_CHANGING) or is_final:
        return True
    known = here.stat(info.key)
    return known is None or known.size != info.size


if __name__ == "__main__":
    sys.exit(main())
