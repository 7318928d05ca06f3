"""metrics.jsonl when a run goes on: nothing of it is lost by a kill, and what is no record is kept aside.

Run: `make test ARGS=tests/unit/runs/test_json_lines.py`
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.runs.json_lines import FOREIGN_LINES, JsonLinesTracker

RECORDS = [b'{"images": 1}', b'{"images": 2}']
FOREIGN = [b"\xff\xfe", b"[1]", b"null", b"7", b'{"step": 1}', b'{"images": "many"}', b"[" * 100_000, b'{"ima']


def test_lines_that_are_no_records_are_kept_aside(tmp_path: Path) -> None:
    lines = [RECORDS[0], *FOREIGN[:4], RECORDS[1], b'{"images": 3}', *FOREIGN[4:]]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    tracker = JsonLinesTracker(tmp_path)
    tracker.forget_after(2)
    tracker.log_record({"images": 3})
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == [*RECORDS, b'{"images": 3}']
    assert (tmp_path / FOREIGN_LINES).read_bytes().splitlines() == FOREIGN


def test_a_kill_while_records_are_dropped_leaves_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*words: object) -> None:
        raise Killed

    before = b"\n".join(RECORDS)
    (tmp_path / "metrics.jsonl").write_bytes(before)
    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(Killed):
        JsonLinesTracker(tmp_path).forget_after(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
