"""What the tests of promises came to goes into the page's last column, and nothing else of the page changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import promises
from tests.helpers.promises import PAGE, read_rows

PAGE_TEXT = """# Title

## A promise

| promise | test | exception |
|---|---|---|
| It holds. | `tests/unit/a/test_b.py::test_holds` | none |
| It holds, too. | `tests/unit/a/test_b.py::test_holds_too` | Where it does not. |
| It was tried before. | `tests/unit/a/test_b.py::test_before` | none | passed, 1.0 s |

| other | table |
|---|---|
| `tests/unit/a/test_b.py::test_holds` | 1 |
"""
RESULTS = """<testsuites><testsuite>
<testcase classname="tests.unit.a.test_b" name="test_holds[one]@unit/a/test_b.py" time="0.25"/>
<testcase classname="tests.unit.a.test_b" name="test_holds[two]" time="0.5"><skipped message="no GPU"/></testcase>
<testcase classname="tests.unit.a.test_b" name="test_holds_too" time="2"/>
</testsuite></testsuites>"""


def test_the_last_column_is_filled_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page, junit = tmp_path / "page.md", tmp_path / "junit.xml"
    page.write_text(PAGE_TEXT)
    junit.write_text(RESULTS)
    assert promises.main(["--junit", str(junit), "--page", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert lines[4:9] == [
        "| promise | test | exception | measured |",
        "|---|---|---|---|",
        "| It holds. | `tests/unit/a/test_b.py::test_holds` | none | passed, 1 skipped, 0.8 s |",
        "| It holds, too. | `tests/unit/a/test_b.py::test_holds_too` | Where it does not. | passed, 2.0 s |",
        "| It was tried before. | `tests/unit/a/test_b.py::test_before` | none | passed, 1.0 s |",
    ]
    assert lines[9:] == PAGE_TEXT.splitlines()[9:]


def test_a_promise_that_does_not_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, junit = tmp_path / "page.md", tmp_path / "junit.xml"
    page.write_text(PAGE_TEXT)
    junit.write_text(RESULTS.replace("<skipped", "<failure").replace("</skipped", "</failure"))
    assert promises.main(["--junit", str(junit), "--page", str(page)]) == 2
    assert "do not hold here: tests/unit/a/test_b.py::test_holds." in capsys.readouterr().err
    assert "passed, 1 failure, 0.8 s" in page.read_text()


def test_every_line_of_the_real_page_is_read() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(read_rows(text)) == sum(line.startswith("| ") and "::test_" in line for line in text.splitlines()) > 80
