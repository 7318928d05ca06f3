"""The sweep command before anything starts: refusals in one sentence, the plan, and what a resume may change."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ali_dist.config.loading import flatten_mapping, from_mapping
from ali_dist.errors import InputError
from tests.helpers.arrays import write_arrays
from tests.helpers.sweeps import record, small_plan, store_of, write_space
from tuning.options import make_plan, parse_arguments, seconds_option
from tuning.sweep import main, open_sweep
from tuning.sweep_plan import SweepPlan
from tuning.trial_tracker import TrialTracker


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("tuning.sweep: ")
    return err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trails", "3"], "did you mean --trials"),
        (["--optim.lrd", "1"], "did you mean optim.lr_d"),
        (["--preset", "digitz"], "did you mean digits"),
        (["--space", "digitz"], "did you mean digits"),
        (["--metric", "freche"], "did you mean frechet"),
        (["--search", "bayes"], "random, optuna, grid"),
        (["--scheduler", "hyperband"], "asha, none"),
        (["--trials", "0"], "at least 1"),
        (["--trials"], "needs a value"),
        (["--time-budget", "soon"], "such as 90s"),
        (["--gpus-per-trial", "1", "--workers-per-trial", "2"], "give one of them"),
        (["--scale.workers", "2"], "--workers-per-trial"),
        (["--report.evaluation", "none"], "compares evaluations"),
        (["--search", "grid", "--trials", "3"], "= 243 trials"),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_ray_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert str(tmp_path / "file") in refused(capsys, "--run.dir", str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_sweep_that_exists_wants_resume_and_one_that_does_not_refuses_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no sweep to resume" in refused(capsys, "--resume")
    plan = small_plan(tmp_path)
    store_of(plan).put("sweep.json", json.dumps(plan.to_mapping()).encode())
    words = ["--preset", "mixture", "--space", write_space(tmp_path), "--run.dir", str(tmp_path), "--run.name", "sweep"]
    assert "add --resume" in refused(capsys, *words)


def test_a_dry_run_shows_the_plan_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--preset", "mixture", "--trials", "5", "--dry-run"]) == 0
    assert "5 trials of 'mixture'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("preset", "searched", "not_searched"),
    [
        ("mixture-ring", {"objective.r1", "objective.cycle_x"}, {"model.latent_size"}),  # as mixture, whose data it has
        ("digits-paper", {"model.latent_size"}, {"objective.r1"}),  # a term that is off stays off
        ("cifar10", {"optim.lr_d", "optim.lr_g", "model.latent_size", "model.discriminator_dropout"}, set()),
    ],
)
def test_what_is_searched_unless_it_is_said_suits_the_preset(tmp_path, preset, searched, not_searched):
    space = make_plan({"preset": preset}, {"run.dir": str(tmp_path)}).space
    assert searched <= set(space)
    assert not not_searched & set(space)


def test_options_and_settings_are_told_apart():
    options, overrides = parse_arguments(["--trials=3", "--optim.lr_d", "1e-4", "--resume", "--run.name=x"])
    assert options == {"trials": "3", "resume": "yes"}
    assert overrides == {"optim.lr_d": "1e-4", "run.name": "x"}
    assert [seconds_option({"time-budget": text}) for text in ("90s", "1.5m", "2h", "7")] == [90, 90, 7200, 7]


def test_a_plan_survives_its_file_and_resumes_only_as_itself(tmp_path):
    plan = small_plan(tmp_path)
    again = SweepPlan.from_json(json.loads(json.dumps(plan.to_mapping())), "sweep.json")
    assert again.to_mapping() == json.loads(json.dumps(plan.to_mapping()))
    again.check_same(plan)
    again.check_same(dataclasses.replace(plan, trials=9))
    with pytest.raises(InputError, match="cannot take any back"):
        again.check_same(dataclasses.replace(plan, trials=1))
    with pytest.raises(InputError, match="begun with metric 'coverage', not 'right_mode'"):
        again.check_same(dataclasses.replace(plan, metric="right_mode"))
    with pytest.raises(InputError, match="another version"):
        SweepPlan.from_json({"format": 0}, "sweep.json")


def test_a_sweep_goes_on_by_the_metric_it_was_begun_by(tmp_path):
    """Images without labels were once compared by round_trip; a new sweep over them is not."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        write_arrays(tmp_path / "data" / split, rng.integers(0, 256, (12, 1, 16, 16), np.uint8), None)
    settings = {
        "data.url": str(tmp_path / "data"),
        "data.source": "none",
        "run.dir": str(tmp_path),
        "run.name": "sweep",
    }
    plan = make_plan({"preset": "digits"}, settings)
    assert open_sweep(plan, resume=False)[0].metric == "unlabelled_fidelity"
    begun = dataclasses.replace(plan, metric="round_trip")
    store_of(plan).put("sweep.json", json.dumps(begun.to_mapping()).encode())
    assert open_sweep(plan, resume=True)[0].metric == "round_trip"
    with pytest.raises(InputError, match="begun with metric 'round_trip', not 'swd'"):
        open_sweep(dataclasses.replace(plan, metric="swd"), resume=True)


def test_trial_0_is_the_preset_itself_and_each_trial_has_the_settings_it_is_given(tmp_path):
    plan = small_plan(tmp_path)
    base = dict(flatten_mapping(plan.base))
    assert plan.settings(0) == {name: base[name] for name in plan.space}
    for number in (0, 3):
        settings = plan.settings(number)
        config = dict(flatten_mapping(plan.config(number, settings, {"scale.workers": "0"}).to_mapping()))
        assert settings.items() <= config.items()
        assert config["run.dir"] == f"{plan.folder}/trials"
        assert config["run.name"] == f"{number:03d}"
    assert from_mapping(plan.base).run.images == 8000 == plan.budget()


def test_a_trial_is_judged_and_saved_several_times_before_its_end(tmp_path):
    plan = small_plan(tmp_path)
    config = plan.config(1, plan.settings(1), {})
    assert 4 <= config.run.images / config.report.evaluate_every <= 10
    assert config.report.checkpoint_every <= config.report.evaluate_every
    assert config.report.gallery_every <= config.report.evaluate_every


class TestBook:
    """What the driver keeps of the trials."""

    def book(self, plan, *records, said=None) -> TrialTracker:
        return TrialTracker(plan, store_of(plan), records, ([] if said is None else said).append, None)

    def test_a_resume_runs_what_has_not_ended_first_and_nothing_else_again(self, tmp_path):
        states = ("finished", "running", "stopped", "pruned", "failed")
        records = [record(n, 0.1, state=state) for n, state in enumerate(states)]
        assert self.book(small_plan(tmp_path, trials="7"), *records).waiting() == [1, 5, 6]

    def test_a_collapse_stops_a_trial_at_once_with_its_reason(self, tmp_path):
        book = self.book(small_plan(tmp_path))
        book.enrol("a", 1, {})
        book.start("a")
        evaluation = {"images": 4000.0, "high_quality": 0.9, "reverse_kl": 3.2, "right_mode": 0.1, "time_total_s": 9.0}
        assert book.result("a", evaluation)
        assert book.end("a")
        ended = book.record("a")
        assert (ended.state, ended.images) == ("pruned", 4000)
        assert "collapsed" in ended.reason
        assert "time_total_s" not in ended.metrics

    def test_an_evaluation_without_what_trials_are_compared_by_is_said_and_ends_the_trial(self, tmp_path):
        book = self.book(small_plan(tmp_path))
        book.enrol("a", 1, {})
        book.start("a")
        assert book.result("a", {"images": 4000.0, "frechet": 3.0})
        book.end("a")
        assert book.record("a").state == "failed"
        assert "choose another --metric" in book.record("a").reason

    def test_a_trial_cut_off_by_a_halt_stays_open_for_a_resume(self, tmp_path):
        plan = small_plan(tmp_path)
        book = self.book(plan)
        book.enrol("a", 1, {})
        book.start("a")
        book.halt()
        assert not book.end("a")
        assert 1 in book.waiting()

    def test_a_trial_that_has_saved_because_the_sweep_ends_stays_open(self, tmp_path):
        said = []
        book = self.book(small_plan(tmp_path), said=said)
        book.enrol("a", 1, {})
        book.start("a")
        book.halt()
        assert book.busy()
        assert not book.result("a", {"ended": "saved", "reason": ""})
        assert not book.end("a")
        assert not book.busy()
        assert 1 in book.waiting()
        assert "has saved a checkpoint" in said[-1]

    def test_what_a_trial_found_before_the_sweep_was_stopped_still_counts(self, tmp_path):
        """A trial that finishes while others save is finished."""
        book = self.book(small_plan(tmp_path))
        book.enrol("a", 1, {})
        book.start("a")
        book.halt()
        book.result("a", {"ended": "finished", "reason": ""})
        assert book.end("a")

    def test_a_process_lost_while_the_sweep_ends_is_no_failure_of_its_trial(self, tmp_path):
        book = self.book(small_plan(tmp_path))
        book.enrol("a", 1, {})
        book.start("a")
        book.halt()
        assert not book.end("a", "its process was lost")

    def test_a_trial_stopped_by_nobody_we_know_was_stopped_early(self, tmp_path):
        book = self.book(small_plan(tmp_path))
        book.enrol("a", 1, {})
        book.start("a")
        assert book.end("a")
        assert book.record("a").state == "stopped"
