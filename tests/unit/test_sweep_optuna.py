"""Optuna's proposals: inside the space, and what it knows comes from the records alone."""

from __future__ import annotations

import pytest

from tests.helpers.sweeps import record, small_plan
from tuning.search import OptunaAdviser

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'ali-dist[sweep]')")


def adviser(plan, records) -> OptunaAdviser:
    return OptunaAdviser(plan.dimensions(), higher=True, seed=0, records=records)


def test_what_is_proposed_lies_inside_the_space_whatever_has_ended(tmp_path):
    plan = small_plan(tmp_path)
    outside = record(0, 0.5)
    outside.settings["optim.lr_d"] = 1.0  # a preset's own value may lie outside
    advising = adviser(plan, [outside, record(1, None, state="failed"), record(2, 0.7)])
    for number in range(3, 20):
        proposed = advising.ask(number)
        assert all(dimension.contains(proposed[dimension.name]) for dimension in plan.dimensions())
        ended = record(number, None if number % 3 else 0.1 * number)
        ended.settings = proposed
        advising.tell(ended)


def test_a_resumed_search_proposes_the_same_from_the_same_records(tmp_path):
    plan = small_plan(tmp_path)
    records = [record(number, 0.1 * number) for number in range(3)]
    assert adviser(plan, records).ask(3) == adviser(plan, records).ask(3)
