"""Try every promise of docs/reliability.md, and write there what came out: `python -m tests.bench.promises`.

Each line of the page's tables names a test. This runs all of them, or reads with `--junit FILE` what a run of all
tests has left (`make test ARGS=--junitxml=FILE`), and writes into the last column how many cases passed, and how long
they took.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ali_dist.cli import parse_path
from ali_dist.errors import InputError, exit_code
from tests.helpers.promises import PAGE, ROOT, PromiseRow, parse_row, read_rows

HEAD = ("promise", "test", "exception", "measured")
_OUTCOMES = ("failure", "error", "skipped")


@dataclass
class Measured:
    """What the cases of one test came to.

    Attributes:
        passed: Cases that passed.
        others: The rest by outcome: failure, error or skipped.
        seconds: All of them together, with what they set up.
    """

    passed: int
    others: dict[str, int]
    seconds: float

    def describe(self) -> str:
        """In a few words, for a cell of the table."""
        parts = [] if not self.passed else ["passed" if self.passed == 1 else f"{self.passed} passed"]
        parts += [f"{count} {outcome}" for outcome, count in self.others.items()]
        return f"{', '.join(parts)}, {self.seconds:.1f} s"


def run_tests(tests: Sequence[str]) -> str:
    """Run tests by their ids, with pytest's own lines; returns what JUnit's format says of them."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *tests], cwd=ROOT, check=False)
        if not results.exists():
            raise InputError("pytest ended without results; its lines above say why.")
        return results.read_text(encoding="utf-8")


def read_results(text: str) -> dict[str, Measured]:
    """What each test came to, by its id without parameters."""
    measured: dict[str, Measured] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = re.split(r"[\[@]", case.attrib["name"])[0]  # pytest-xdist puts a group behind an @
        test = f"{case.attrib['classname'].replace('.', '/')}.py::{name}"
        own = measured.setdefault(test, Measured(0, {}, 0.0))
        own.seconds += float(case.attrib["time"])
        outcome = next((child.tag for child in case if child.tag in _OUTCOMES), None)
        if outcome is None:
            own.passed += 1
        else:
            own.others[outcome] = own.others.get(outcome, 0) + 1
    return measured


def write_measured(document: str, measured: dict[str, Measured]) -> str:
    """The page with the last column filled; tests without a result keep what stood there."""
    lines: list[str] = []
    for line in document.splitlines():
        row = parse_row(line)
        if row is None:
            is_head = line.startswith("| promise |")
            is_rule = bool(lines) and lines[-1].startswith("| promise |")
            lines.append(_format_cells(HEAD) if is_head else "|---|---|---|---|" if is_rule else line)
            continue
        result = measured.get(row.test)
        cell = row.measured if result is None else result.describe()
        lines.append(_format_cells((row.promise, f"`{row.test}`", row.exception, cell)))
    return "\n".join(lines) + "\n"


def _format_cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list_broken(rows: Sequence[PromiseRow], measured: dict[str, Measured]) -> list[str]:
    return [
        row.test for row in rows if row.test in measured and {"failure", "error"} & measured[row.test].others.keys()
    ]


def _run_command(options: argparse.Namespace) -> None:
    rows = read_rows(options.page.read_text(encoding="utf-8"))
    tests = list(dict.fromkeys(row.test for row in rows))
    text = run_tests(tests) if options.junit is None else options.junit.read_text(encoding="utf-8")
    measured = read_results(text)
    options.page.write_text(write_measured(options.page.read_text(encoding="utf-8"), measured), encoding="utf-8")
    missing = sum(test not in measured for test in tests)
    print(f"{len(rows)} promises, {len(tests)} tests, {missing} of them without a result.")
    if broken := _list_broken(rows, measured):
        raise InputError(f"These promises do not hold here: {', '.join(broken)}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.promises", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--junit", type=parse_path, metavar="FILE", help="results of a run of all tests")
    parser.add_argument(
        "--page", type=parse_path, default=PAGE, metavar="FILE.md", help="the page (docs/reliability.md)"
    )
    options = parser.parse_args(arguments)
    return exit_code("tests.bench.promises", lambda: _run_command(options), "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
