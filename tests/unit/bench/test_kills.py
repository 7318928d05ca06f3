"""The bench of kills: runs that it breaks come out as unbroken ones, and it notices what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.training import loop
from tests.bench.kills import Findings, Moment, break_run, format_findings, run_unbroken

pytestmark = pytest.mark.timeout(240)


def test_a_broken_run_equals_an_unbroken_one_and_a_lost_or_changed_sample_is_noticed(tmp_path: Path) -> None:
    ensure_prepared("digits", str(tmp_path / "data"))
    expected = run_unbroken(tmp_path, 2)
    moments = [Moment(operation=expected.operations // 2), Moment(seconds=0.1, rank=1)]
    assert break_run(tmp_path, "broken", 2, expected, moments) == (2, [])

    expected.ledger[1, 3] = expected.ledger[0, 3]
    expected.ledger[0, 20] = []
    _, faults = break_run(tmp_path, "other", 2, expected, [])
    assert [fault.partition(": ")[2] for fault in faults] == [
        "step 3 has other samples on rank 1",
        "rank 0 lacks step 20",
    ]
    assert (tmp_path / "runs" / "other").exists(), "what did not end well is kept"


def test_a_start_that_fails_by_itself_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_prepared("digits", str(tmp_path / "data"))
    expected = run_unbroken(tmp_path, 1)
    monkeypatch.setattr(loop, "fit", lambda *_: 1 / 0)
    count, faults = break_run(tmp_path, "broken", 1, expected, [])
    assert count == 0
    assert "ZeroDivisionError" in faults[0]


def test_the_table_counts_runs_that_came_out_right() -> None:
    findings = Findings()
    findings.kills.update({1: 5, 2: 3})
    findings.runs.update({1: 2, 2: 2})
    findings.faults = ["broken-1: a", "broken-1: b"]
    assert format_findings(findings).splitlines()[2:] == [
        "| 1 | 5 | 2 |",
        "| 2 | 3 | 2 |",
        "| all | 8 | 3 |",
        "- broken-1: a",
        "- broken-1: b",
    ]
