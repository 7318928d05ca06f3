"""docs/reliability.md holds every promise of the README, each with a test that is there, and with its exception."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "reliability.md"
ORIGINAL_DATA = ("cifar10", "svhn", "celeba", "imagenet64", "celeba-conditional")


def promises_of_the_readme() -> list[str]:
    """The bold sentences that begin the paragraphs of the README's section of promises."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## What it promises\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert section, "README.md has no section 'What it promises'"
    return [
        " ".join(promise.split()) for promise in re.findall(r"^\*\*(.*?)\.\*\*", section[1], re.DOTALL | re.MULTILINE)
    ]


def rows_by_section() -> dict[str, list[list[str]]]:
    """The cells of every line of the page's tables, by heading."""
    sections = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        heading: [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in text.splitlines()
            if line.startswith("| ") and not line.startswith("| promise ")
        ]
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }


ROWS = [(heading, row) for heading, rows in rows_by_section().items() for row in rows]


def test_every_promise_of_the_readme_has_its_section_in_the_readmes_order() -> None:
    promises = promises_of_the_readme()
    assert len(promises) >= 9
    assert [heading for heading, rows in rows_by_section().items() if rows] == promises


@pytest.mark.parametrize(("heading", "row"), ROWS, ids=[row[0][:60] for _, row in ROWS])
def test_every_promise_names_a_test_that_is_there_and_its_exception(heading: str, row: list[str]) -> None:
    assert len(row) in (3, 4), f"below {heading!r}, {row[0]!r} must have a promise, a test, and an exception or 'none'"
    promise, test, exception, *_ = row  # and what the test came to, once tests.bench.promises has written that down
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test)
    assert named, f"{promise!r} names no test, but {test!r}"
    tree = ast.parse((ROOT / named[1]).read_text(encoding="utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert named[2] in tests, f"{promise!r} names {test}, which does not exist"
    assert exception == "none" or exception.rstrip("`").endswith("."), f"the exception of {promise!r} is no sentence"


def test_what_needs_the_original_data_says_so() -> None:
    """In every line of the paper's figures and tables whose command trains on them."""
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    section = re.search(r"^## Figures and tables\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert section
    lines = [
        line
        for line in section[1].splitlines()
        if re.search(rf"(?:--preset|runs/)\s?(?:{'|'.join(ORIGINAL_DATA)})\b", line)
    ]
    assert len(lines) >= 5
    assert all("needs the data" in line for line in lines)
