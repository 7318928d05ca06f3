"""The speed that `--dry-run` states is measured on updates like the run's, and leaves nothing behind.

Run: `make test ARGS=tests/unit/training/test_speed.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.model.data_spec import DataSpec
from ali_dist.training.dry_run import _format_duration
from ali_dist.training.speed import time_updates

CPU = torch.device("cpu")
DIGITS = DataSpec((1, 8, 8), classes=tuple("0123456789"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective.packing": 2}, {"model.condition": "classes"}, {"objective.supervised": 1.0}],
    ids=["plain", "packing", "conditional", "supervised"],
)
def test_every_kind_of_update_can_be_timed(changes: dict[str, Any]) -> None:
    config = from_mapping(load_preset("digits"), {"model.width": 0.1}, changes)
    before = torch.random.get_rng_state()
    seconds, updates = time_updates(config, DIGITS, CPU)
    assert 0 < seconds < 10
    assert 1 <= updates <= 20
    assert torch.equal(torch.random.get_rng_state(), before)


def test_points_can_be_timed() -> None:
    seconds, _ = time_updates(from_mapping(load_preset("mixture")), DataSpec((2,)), CPU)
    assert seconds > 0


def test_durations_are_short_words() -> None:
    seconds = (0.0042, 7.61, 59, 119, 121, 3600, 9000)
    assert [_format_duration(s) for s in seconds] == [
        "0.0042 s",
        "7.6 s",
        "59 s",
        "119 s",
        "2 min",
        "60 min",
        "2 h 30 min",
    ]
