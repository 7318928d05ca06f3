"""python -m ali_dist.list_runs: the runs in a folder or in S3, as a table, and some of them side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ali_dist.cli import CommandParser, add_storage_options, parse_comma_list, parse_path, storage_from_arguments
from ali_dist.errors import InputError, exit_code
from ali_dist.storage.local import write_file

_DESCRIPTION = """\
List the runs in a folder: name, preset, status, images seen, the numbers that a run is judged by, and when it was
updated, the latest first. `digits +2` is a run that differs from the preset in 2 settings of those that decide what is
learned."""
_EXAMPLES = """\
examples:
  python -m ali_dist.list_runs                                     the runs in runs/
  python -m ali_dist.list_runs s3://bucket/runs                    those in S3
  python -m ali_dist.list_runs --compare demo,wide                 two of them: metrics, and settings that differ
  python -m ali_dist.list_runs runs/sweep-digits/trials --json trials.json"""


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("ali_dist.list_runs", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("place", metavar="PLACE", nargs="?", default="runs", help="folder or s3:// of runs (runs)")
    parser.add_argument(
        "--compare", type=parse_comma_list, metavar="A,B", help="show these side by side: metrics, differing settings"
    )
    parser.add_argument("--json", type=parse_path, metavar="FILE", help="also write what is shown as JSON to FILE")
    add_storage_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    return exit_code("ali_dist.list_runs", lambda: _run_command(make_parser().parse_args(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    from ali_dist.report.run_list import choose_runs, comparison_rows, find_runs, list_rows
    from ali_dist.report.tables import print_rows
    from ali_dist.runs.datasets import open_url

    store = open_url(arguments.place, storage_from_arguments(arguments))
    runs, deeper = find_runs(store)
    if arguments.compare:
        runs = choose_runs(runs, arguments.compare, store.url)
    if not runs and not deeper:
        raise InputError(
            f"There are no runs in {store.url}: train one with `python -m ali_dist.train`, or give the folder that "
            "holds run folders."
        )
    if arguments.compare:
        results, settings = comparison_rows(runs)
        print_rows(results)
        print()
        if len(settings) > 1:
            print_rows(settings)
        else:
            print("Their settings are the same.")
    elif runs:
        print_rows(list_rows(runs))
    notes = [run.problem for run in runs if run.problem]
    if deeper and not arguments.compare:
        notes.append(f"More runs lie in {', '.join(f'{store.url}/{folder}' for folder in deeper)}.")
    if notes:
        print("", *notes, sep="\n")
    if arguments.json:
        _write_json(arguments.json, {"url": store.url, "runs": [run.to_json() for run in runs]})


def _write_json(path: Path, content: dict[str, object]) -> None:
    write_file(path, f"{json.dumps(content, indent=1)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
