"""The lines of docs/reliability.md: a promise, the test that shows it, its exception, and what the test came to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py::test_\w+)`")


@dataclass(frozen=True)
class PromiseRow:
    """One line.

    Attributes:
        promise: One sentence.
        test: The id of its test, without parameters.
        exception: Where the promise ends, or `none`.
        measured: What the test came to when it was last written down; empty: never.
    """

    promise: str
    test: str
    exception: str
    measured: str


def parse_row(line: str) -> PromiseRow | None:
    """The row that a line of the page is; None if it is none, or names no test."""
    if not line.startswith("| "):
        return None
    cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
    named = _TEST.fullmatch(cells[1]) if len(cells) in (3, 4) else None
    if named is None:
        return None
    promise, _, exception, *rest = cells
    return PromiseRow(promise, named[1], exception, rest[0] if rest else "")


def read_rows(document: str) -> list[PromiseRow]:
    """All rows of a page or of a part of it."""
    return [row for line in document.splitlines() if (row := parse_row(line)) is not None]
