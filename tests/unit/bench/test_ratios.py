"""The comparison of `make bench`: what is outside of its envelope, or missing on either side, is told and fails.

Run: `make test ARGS=tests/unit/bench/test_ratios.py`
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import ratios
from tests.bench.floor_cases import CASES
from tests.bench.ratios import GROUPS, Group, compare_ratios, format_comparisons, read_records, write_records

RECORDED = {"step/a": 2.0, "step/b": 1.5, "count/c": 100.0, "data/d": 10.0}


def verdicts(measured: dict[str, float]) -> dict[str, str]:
    return {comparison.name: comparison.verdict for comparison in compare_ratios(measured, RECORDED)}


def test_a_ratio_may_move_within_its_envelope_alone() -> None:
    envelope = GROUPS["step"]
    assert verdicts({"step/a": 2.0 * envelope.least, "step/b": 1.5 * envelope.most}) == {"step/a": "ok", "step/b": "ok"}
    found = verdicts({"step/a": 2.0 * envelope.least - 0.01, "step/b": 1.5 * envelope.most + 0.01})
    assert found == {"step/a": "must be 1.6 to 2.7", "step/b": "must be 1.2 to 2.025"}


@pytest.mark.parametrize("count", [99.999, 100.001])
def test_a_count_must_not_move_at_all(count: float) -> None:
    assert verdicts({"count/c": 100.0}) == {"count/c": "ok"}
    assert verdicts({"count/c": count}) == {"count/c": "must be 100"}


def test_what_lacks_its_other_side_is_told_but_groups_that_were_left_out_are_not() -> None:
    assert verdicts({"step/a": 2.0, "step/new": 1.0}) == {
        "step/a": "ok",
        "step/new": "not recorded",
        "step/b": "not measured",
    }


def test_the_table_shows_both_sides() -> None:
    lines = format_comparisons(compare_ratios({"step/a": 1.0}, {"step/a": 2.0})).splitlines()
    assert lines[1].split(maxsplit=3) == ["step/a", "1.00", "2.00", "must be 1.6 to 2.7"]


@pytest.mark.parametrize(("measured", "code"), [(2.0, 0), (1.0, 1)])
def test_the_exit_code_says_whether_all_are_inside(
    measured: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ratios.json"
    monkeypatch.setattr(ratios, "RECORDS", file)
    write_records(file, {"step/a": 2.0, "data/d": 3.0}, {})
    monkeypatch.setitem(GROUPS, "step", Group(lambda: {"step/a": measured}, 0.8, 1.35))
    assert ratios.main(["--groups", "step"]) == code
    assert "step/a" in capsys.readouterr().out
    assert ratios.main(["--groups", "step", "--record"]) == 0
    assert read_records(file) == {"step/a": measured, "data/d": 3.0}  # what was not measured stays
    assert ratios.main(["--groups", "step"]) == 0


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_without_records_the_way_out_is_named(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ratios.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(ratios, "RECORDS", file)
    assert ratios.main([]) == 2
    assert "ratios.json holds no recorded ratios" in capsys.readouterr().err


def test_the_recorded_ratios_are_of_every_group_and_preset() -> None:
    recorded = json.loads(ratios.RECORDS.read_text())
    names = recorded["ratios"]
    assert {name.partition("/")[0] for name in names} == set(GROUPS)
    assert {f"count/{case}, usual over ours" for case in CASES} <= set(names)
    assert recorded["conditions"]["date"]
