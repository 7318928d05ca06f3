"""The bench of first lines times the first words of a command, and knows a command that there is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import first_line

SPEAKER = """
import sys, time
sys.stdout.write("\\x1b[?25l\\n")  # hides the cursor: no word yet
sys.stdout.flush()
time.sleep(0.3)
print("ready", flush=True)
time.sleep(600)
"""


def test_the_time_is_that_to_the_first_words_and_the_command_is_ended(tmp_path: Path) -> None:
    (tmp_path / "speaker.py").write_text(SPEAKER)
    seconds = first_line.seconds_to_first_words(tmp_path, "speaker", [], tmp_path)
    assert seconds is not None
    assert 0.3 <= seconds < 60


def test_a_command_that_there_is_not_has_no_time(tmp_path: Path) -> None:
    assert first_line.seconds_to_first_words(tmp_path, "nothing.such", [], tmp_path) is None


def test_the_table_has_a_column_for_each_tree() -> None:
    table = first_line.format_table({"ali_dist.train": [0.5, 12.25], "ali_dist.report": [0.4, None]}, "abc1234")
    assert table.splitlines()[2:] == ["| `ali_dist.train` | 0.5 s | 12.2 s |", "| `ali_dist.report` | 0.4 s | - |"]


def test_a_commit_that_there_is_not_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert first_line.main(["--against", "no-such-commit"]) == 2
    assert "is no commit of this repository" in capsys.readouterr().err
