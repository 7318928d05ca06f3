"""A share that is held out: of every class, always the same rows, and never so few that nothing can be measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ali_dist.data.sources.holdout import hold_out_rows, measurable_share
from tests.helpers.commands import run


@pytest.mark.parametrize(
    ("num_samples", "share", "held_out"),
    [(5, 0.1, 0), (6, 0.1, 2), (14, 0.1, 2), (15, 0.1, 2), (40, 0.1, 4), (3, 0.3, 0), (4, 0.3, 2), (9, 0.0, 0)],
)
def test_two_or_none_are_held_out_of_a_few_samples(num_samples: int, share: float, held_out: int) -> None:
    kept, held = hold_out_rows(num_samples, share)
    assert len(held) == held_out
    assert sorted([*kept, *held]) == list(range(num_samples))


def test_many_samples_are_held_out_by_the_share_itself() -> None:
    assert measurable_share(1000, 0.1) == 0.1


def test_of_too_few_arrays_it_is_said_that_none_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "few.npz", images=np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8))
    arguments = ("npz", tmp_path / "out", "--from", tmp_path / "few.npz", "--jobs", 1)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "Nothing is held out, because 4 samples are too few: nothing can be measured" in out
    assert "held out" not in run(capsys, *arguments[:1], tmp_path / "b", *arguments[2:], "--holdout", 0)[1]
