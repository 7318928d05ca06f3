"""The bench of a run's life: its figures are read rightly from what runs record; runs are too long for a test.

Run: `make test ARGS=tests/unit/bench/test_lifecycle_bench.py`
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from ali_dist.training.time_budget import PARTS as PARTS_OF_TIME
from tests.bench import lifecycle
from tests.bench.lifecycle import Finding, find_stall, format_findings, share_of_looks

CONDITIONS = {"cpu": "a CPU", "cores": 2, "torch": "2", "python": "3", "date": "2026-01-01"}


def test_the_share_of_looks_is_of_all_that_a_run_spends() -> None:
    spent = dict.fromkeys(PARTS_OF_TIME, 10.0) | {"evaluation": 4.0, "drawing": 1.0, "compute": 55.0}
    assert share_of_looks({"time": spent}) == pytest.approx(5.0 / 90.0)


def test_the_stall_is_the_longest_update_after_a_checkpoint() -> None:
    """An update takes 0.1 s; the first ones take longer, as does one far from every checkpoint."""
    gaps = [0.1] * 99
    gaps[0] = 5.0  # before the run is warm
    gaps[37 - 1] = 0.9  # from update 37 to 38: the checkpoint of update 20 has long been written
    for step in (20, 40, 60, 80):
        gaps[step + 1] = 0.25  # the second update after it
    stall = find_stall(list(accumulate(gaps, initial=1.0)), every=20)
    assert stall.median_update == pytest.approx(0.1)
    assert stall.longest_around == pytest.approx(0.25)
    assert stall.longest_elsewhere == pytest.approx(0.9)
    assert stall.in_updates == pytest.approx(1.5)


def test_one_slow_checkpoint_of_many_is_the_machines_and_not_the_savers() -> None:
    gaps = [0.1] * 99
    gaps[20 - 1] = 3.0
    assert find_stall(list(accumulate(gaps, initial=0.0)), every=20).longest_around == pytest.approx(0.1)


def test_the_table_says_which_target_is_missed() -> None:
    findings = [
        Finding("a start", 3.1, "s", 3.0, "3 starts"),
        Finding("a share", 4.9, "% of the run", 5.0),
        Finding("a cold start", 70.0, "s"),
    ]
    rows = format_findings("the command", CONDITIONS, findings).splitlines()[4:]
    assert rows == [
        "| a start | 3.1 s | at most 3: missed | 3 starts |",
        "| a share | 4.9 % of the run | at most 5 |  |",
        "| a cold start | 70.0 s | - |  |",
    ]


@pytest.mark.parametrize(("value", "code"), [(3.0, 0), (3.1, 1)])
def test_a_missed_target_is_an_exit_code(
    value: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(*_: Any) -> list[Finding]:
        return [Finding("a start", value, "s", 3.0)]

    monkeypatch.setitem(lifecycle.PARTS, "start", measure)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- lifecycle: begin -->\nold\n<!-- lifecycle: end -->\nafter\n")
    assert lifecycle.main(["--parts", "start", "--table", str(page), "--json", str(tmp_path / "json")]) == code
    assert f"| a start | {value:.1f} s |" in page.read_text()
    assert "old" not in page.read_text()


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert lifecycle.main(["--parts", "start,end"]) == 2
    assert "--parts has 'end', but must be some of start, ray, looks, checkpoint" in capsys.readouterr().err
