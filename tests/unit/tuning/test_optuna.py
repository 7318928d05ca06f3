"""Optuna's suggestions lie inside the space, and what it knows comes from the records alone."""

from __future__ import annotations

import pytest

from tests.helpers.sweeps import make_record, small_plan
from tuning.searchers import OptunaSuggester

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'ali-dist[sweep]')")


def make_suggester(plan, records) -> OptunaSuggester:
    return OptunaSuggester(plan.dimensions, higher_is_better=True, seed=0, records=records)


def test_suggestions_lie_inside_the_space_whatever_has_ended(tmp_path):
    plan = small_plan(tmp_path)
    outside = make_record(0, 0.5)
    outside.settings["optim.lr_d"] = 1.0  # a preset's own value may lie outside
    suggester = make_suggester(plan, [outside, make_record(1, None, state="failed"), make_record(2, 0.7)])
    for number in range(3, 20):
        suggested = suggester.ask(number)
        assert all(dimension.contains(suggested[dimension.name]) for dimension in plan.dimensions)
        assert all(float(f"{v:.4g}") == v for v in suggested.values() if isinstance(v, float)), "a table shows 4 digits"
        ended = make_record(number, None if number % 3 else 0.1 * number)
        ended.settings = suggested
        suggester.tell(ended)


def test_a_resumed_search_suggests_the_same_from_the_same_records(tmp_path):
    plan = small_plan(tmp_path)
    records = [make_record(number, 0.1 * number) for number in range(3)]
    assert make_suggester(plan, records).ask(3) == make_suggester(plan, records).ask(3)


def test_it_learns_where_scores_are_high(tmp_path):
    """It is not random search by another name: most of its later suggestions lie in the better half."""
    plan = small_plan(tmp_path)
    suggester = make_suggester(plan, [])
    small = 0
    for number in range(40):
        suggested = suggester.ask(number)
        ended = make_record(number, 1.0 / suggested["model.latent_size"])
        ended.settings = suggested
        suggester.tell(ended)
        small += number >= 20 and suggested["model.latent_size"] <= 4
    assert small >= 14, "2, 3 and 4 are three of eight values: random search would propose them some 7 times in 20"


@pytest.mark.parametrize("state", ["stopped", "pruned"])
@pytest.mark.parametrize("known_from", ["a record", "its own suggestion"])
def test_a_trial_that_was_cut_off_does_not_lead_the_search_astray(tmp_path, state, known_from):
    """Its score is that of a smaller budget and may be high, but its settings are no good ones."""
    plan = small_plan(tmp_path)
    suggester = make_suggester(plan, [])
    small = 0
    for number in range(40):
        suggested = suggester.ask(number)
        cut_off = suggested["model.latent_size"] > 4
        ended = make_record(number, 0.9 if cut_off else 0.5, state=state if cut_off else "finished")
        ended.settings = suggested
        if known_from == "a record":
            suggester._pending.pop(number)
        suggester.tell(ended)
        small += number >= 20 and not cut_off
    assert small >= 12, "random search would propose them some 7 times in 20"


def test_after_a_kill_no_trial_is_suggested_a_second_time(tmp_path):
    """Trials that were running are known to the search: a new one gets settings of its own."""
    plan = small_plan(tmp_path)
    begun = make_record(1, None, state="running")
    begun.settings = make_suggester(plan, []).ask(1)
    resumed = make_suggester(plan, [begun])
    assert resumed.ask(2) != begun.settings
    begun.state = "finished"
    begun.add_evaluation({"images": 8000.0, "score": 0.4})
    resumed.tell(begun)
