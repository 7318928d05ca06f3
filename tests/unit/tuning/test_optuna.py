"""Optuna's proposals: inside the space, and what it knows comes from the records alone."""

from __future__ import annotations

import pytest

from tests.helpers.sweeps import record, small_plan
from tuning.searchers import OptunaSuggester

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'ali-dist[sweep]')")


def adviser(plan, records) -> OptunaSuggester:
    return OptunaSuggester(plan.dimensions(), higher=True, seed=0, records=records)


def test_what_is_proposed_lies_inside_the_space_whatever_has_ended(tmp_path):
    plan = small_plan(tmp_path)
    outside = record(0, 0.5)
    outside.settings["optim.lr_d"] = 1.0  # a preset's own value may lie outside
    advising = adviser(plan, [outside, record(1, None, state="failed"), record(2, 0.7)])
    for number in range(3, 20):
        proposed = advising.ask(number)
        assert all(dimension.contains(proposed[dimension.name]) for dimension in plan.dimensions())
        assert all(float(f"{v:.4g}") == v for v in proposed.values() if isinstance(v, float)), "a table shows 4 digits"
        ended = record(number, None if number % 3 else 0.1 * number)
        ended.settings = proposed
        advising.tell(ended)


def test_a_resumed_search_proposes_the_same_from_the_same_records(tmp_path):
    plan = small_plan(tmp_path)
    records = [record(number, 0.1 * number) for number in range(3)]
    assert adviser(plan, records).ask(3) == adviser(plan, records).ask(3)


def test_it_learns_where_scores_are_high(tmp_path):
    """Not random search by another name: most of its later proposals lie in the better half."""
    plan = small_plan(tmp_path)
    advising = adviser(plan, [])
    small = 0
    for number in range(40):
        proposed = advising.ask(number)
        ended = record(number, 1.0 / proposed["model.latent_size"])
        ended.settings = proposed
        advising.tell(ended)
        small += number >= 20 and proposed["model.latent_size"] <= 4
    assert small >= 14, "2, 3 and 4 are three of eight values: random search would propose them some 7 times in 20"


@pytest.mark.parametrize("state", ["stopped", "pruned"])
@pytest.mark.parametrize("known_from", ["a record", "its own proposal"])
def test_a_trial_that_was_cut_off_does_not_lead_the_search_astray(tmp_path, state, known_from):
    """Its score is of another budget, and may be high: still, nothing is to be found where it was."""
    plan = small_plan(tmp_path)
    advising, small = adviser(plan, []), 0
    for number in range(40):
        proposed = advising.ask(number)
        cut_off = proposed["model.latent_size"] > 4
        ended = record(number, 0.9 if cut_off else 0.5, state=state if cut_off else "finished")
        ended.settings = proposed
        if known_from == "a record":
            advising._asked.pop(number)
        advising.tell(ended)
        small += number >= 20 and not cut_off
    assert small >= 12, "random search would propose them some 7 times in 20"


def test_after_a_kill_no_trial_is_proposed_a_second_time(tmp_path):
    """Trials that were running are known to the search: a new one gets settings of its own."""
    plan = small_plan(tmp_path)
    begun = record(1, None, state="running")
    begun.settings = adviser(plan, []).ask(1)
    resumed = adviser(plan, [begun])
    assert resumed.ask(2) != begun.settings
    begun.state = "finished"
    begun.add({"images": 8000.0, "score": 0.4})
    resumed.tell(begun)
