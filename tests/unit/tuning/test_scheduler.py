"""Early stopping: the preset's own trial goes on, and a resumed sweep stops the trials that an unbroken one stops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.helpers.sweeps import make_record, small_plan

schedulers = pytest.importorskip("ray.tune.schedulers", reason="Ray is not installed")


def make_trial(number: int) -> SimpleNamespace:
    return SimpleNamespace(trial_id=f"id-{number}", config={"number": number})


def decide(scheduler, scores: dict[int, float]) -> dict[int, str]:
    actions = {}
    for number, score in scores.items():
        scheduler.on_trial_add(None, make_trial(number))
        actions[number] = scheduler.on_trial_result(None, make_trial(number), {"images": 2000.0, "score": score})
    return actions


def test_the_worse_half_of_a_rung_is_stopped_but_never_the_presets_own_trial(tmp_path):
    from tuning.ray_tune import ResumableASHA

    actions = decide(ResumableASHA(small_plan(tmp_path), []), {1: 0.9, 2: 0.8, 0: 0.1, 3: 0.2, 4: 0.95})
    assert (actions[0], actions[1], actions[4]) == ("CONTINUE", "CONTINUE", "CONTINUE")
    assert (actions[2], actions[3]) == ("STOP", "STOP")


def test_no_rung_lies_at_the_end_where_it_would_cut_a_trial_off_before_its_summary(tmp_path):
    from tuning.ray_tune import ResumableASHA

    scheduler = ResumableASHA(small_plan(tmp_path), [])
    for number, score in ((1, 0.9), (2, 0.8)):
        scheduler.on_trial_add(None, make_trial(number))
        for images in (2000.0, 4000.0):
            scheduler.on_trial_result(None, make_trial(number), {"images": images, "score": 0.5})
        assert scheduler.on_trial_result(None, make_trial(number), {"images": 8000.0, "score": score}) == "CONTINUE"


def test_trials_that_ended_before_a_resume_still_stand_on_their_rungs(tmp_path):
    from tuning.ray_tune import ResumableASHA

    before = []
    for number, score in ((1, 0.9), (2, 0.8), (5, 0.85)):
        record = make_record(number)
        record.evaluations = [{"images": 2000.0, "score": score}]
        before.append(record)
    plan = small_plan(tmp_path)
    unbroken = decide(ResumableASHA(plan, []), {1: 0.9, 2: 0.8, 5: 0.85, 3: 0.1, 4: 0.99})
    resumed = decide(ResumableASHA(plan, before), {3: 0.1, 4: 0.99})
    assert resumed == {3: "STOP", 4: "CONTINUE"} == {n: unbroken[n] for n in (3, 4)}
