"""python -m ali_dist.report: several runs on one page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from ali_dist.cli import CommandParser, add_storage_options, parse_path, storage_from_arguments
from ali_dist.config import StorageConfig
from ali_dist.errors import InputError, exit_code
from ali_dist.launchers.signals import interrupt_on_sigterm
from ali_dist.report.comparison import MOST_RUNS, ComparedRun, comparison_html
from ali_dist.runs.find_run import find_run
from ali_dist.runs.run_copy import copy_report_files
from ali_dist.runs.run_reader import RunReader
from ali_dist.storage.local import write_file

MODULE = "ali_dist.report"
_DESCRIPTION = f"""\
Compare 2 to {MOST_RUNS} runs on one page: settings that differ, curves over each other, metrics and pictures side by
side. The page is one HTML file without scripts, which needs no network. Runs that still train are compared as they are.
The page of a single run is report.html in its folder."""
_EPILOG = """\
examples:
  python -m ali_dist.report digits digits-2
  python -m ali_dist.report runs/demo s3://bucket/runs/demo --out demo.html"""


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser(MODULE, _DESCRIPTION, _EPILOG)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder, or a name under runs/; or s3://...")
    parser.add_argument(
        "--out", metavar="FILE", type=parse_path, default=Path("comparison.html"), help="the page (comparison.html)"
    )
    add_storage_options(parser)
    return parser


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    arguments = make_parser().parse_args(argv)
    count = len(arguments.runs)
    if not 2 <= count <= MOST_RUNS:
        one = " The page of a single run is report.html in its folder." if count == 1 else ""
        given = f"{count} {'is' if count == 1 else 'are'} given"
        raise InputError(f"A comparison is of 2 to {MOST_RUNS} runs, but {given}: give others.{one}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    with interrupt_on_sigterm():
        return exit_code(MODULE, lambda: _run_command(_parse_arguments(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    storage = storage_from_arguments(arguments)
    with ExitStack() as stack:
        page = comparison_html([_read_run(place, storage, stack) for place in arguments.runs])
        if out.is_dir():
            raise InputError(f"--out is {str(out)!r}, which is a folder: give the name of a file in it.")
        write_file(out, page.encode("utf-8", "surrogateescape"))
    print(out)


def _read_run(place: str, storage: StorageConfig, stack: ExitStack) -> ComparedRun:
    """Read a run; what is in an object store is brought here until `stack` is closed."""
    store, _ = find_run(place, storage)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ali-dist-report-")))
    run = RunReader.read(copy_report_files(store, scratch))
    if not run.summary and not run.train and not run.evaluations:
        raise InputError(
            f"The run {place!r} has no records yet: wait until it has trained for a while, or name another run."
        )
    return ComparedRun(place, run)


if __name__ == "__main__":
    sys.exit(main())
