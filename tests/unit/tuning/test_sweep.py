"""The sweep command before Ray starts: refusals in one sentence, the plan, and what a resume may change."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from ali_dist.config.loading import flatten_mapping, from_mapping
from ali_dist.errors import InputError
from tests.helpers.arrays import write_arrays
from tests.helpers.processes import ROOT
from tests.helpers.sweeps import make_record, small_plan, store_of, write_space
from tuning.options import SweepOptions, make_plan, parse_arguments
from tuning.score import SCORE_METRICS
from tuning.spaces import space_names
from tuning.sweep import main, open_sweep
from tuning.sweep_plan import SweepPlan
from tuning.trial_tracker import TrialTracker


def refusal_of(capsys, *arguments: str) -> str:
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
        (["--trials"], "--trials needs a value"),
        (["--sweep-seed", "-1"], "--sweep-seed is '-1', but must be a whole number of at least 0"),
        (["--gpus-per-trial", "all"], "--gpus-per-trial is 'all', but must be a number of at least 0"),
        (["digits"], "'digits' was not expected"),
        (["--time-budget", "soon"], "such as 90s"),
        (["--gpus-per-trial", "1", "--workers-per-trial", "2"], "give one of them"),
        (["--gpus-per-trial", "1.5"], "must be a whole number"),
        (["--scale.workers", "2"], "--workers-per-trial"),
        (["--report.evaluation", "none"], "compares evaluations"),
        (["--search", "grid", "--trials", "3"], "= 243 trials"),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refusal_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_ray_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert str(tmp_path / "file") in refusal_of(capsys, "--run.dir", str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_sweep_that_exists_needs_resume_and_one_that_does_not_refuses_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no sweep to resume" in refusal_of(capsys, "--resume")
    plan = small_plan(tmp_path)
    store_of(plan).put("sweep.json", json.dumps(plan.to_mapping()).encode())
    words = ["--preset", "mixture", "--space", write_space(tmp_path), "--run.dir", str(tmp_path), "--run.name", "sweep"]
    assert "add --resume" in refusal_of(capsys, *words)


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
def test_the_default_space_suits_the_preset(tmp_path, preset, searched, not_searched):
    space = make_plan(SweepOptions(preset=preset), {"run.dir": str(tmp_path)}).space
    assert searched <= set(space)
    assert not not_searched & set(space)


def test_options_stand_beside_settings_in_any_order():
    options, settings = parse_arguments(["--trials=3", "--optim.lr_d", "1e-4", "--resume", "--run.name=x"])
    assert options == SweepOptions(trials=3, resume=True)
    assert settings == {"optim.lr_d": "1e-4", "run.name": "x"}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("7", 7)])
def test_a_time_budget_is_in_seconds_minutes_or_hours(text, seconds):
    options, _ = parse_arguments(["--time-budget", text])
    assert options.time_budget == seconds


def test_help_names_every_option_space_and_metric_and_needs_neither_torch_nor_ray():
    program = (
        "import sys\n"
        "for name in ('ray', 'torch'): sys.modules[name] = None\n"
        "from tuning.sweep import main\nsys.exit(main(['--help']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(SweepOptions)]
    for text in (*options, *space_names(), *SCORE_METRICS):
        assert text in done.stdout


def test_a_plan_survives_its_file_and_resumes_only_as_itself(tmp_path):
    plan = small_plan(tmp_path)
    again = SweepPlan.from_json(json.loads(json.dumps(plan.to_mapping())), "sweep.json")
    assert again.to_mapping() == json.loads(json.dumps(plan.to_mapping()))
    again.check_resumable_as(plan)
    again.check_resumable_as(dataclasses.replace(plan, trials=9))
    with pytest.raises(InputError, match="cannot take any back"):
        again.check_resumable_as(dataclasses.replace(plan, trials=1))
    with pytest.raises(InputError, match="begun with metric 'coverage', not 'right_mode'"):
        again.check_resumable_as(dataclasses.replace(plan, metric="right_mode"))
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
    plan = make_plan(SweepOptions(), settings)
    assert open_sweep(plan, resume=False)[0].metric == "unlabelled_fidelity"
    begun = dataclasses.replace(plan, metric="round_trip")
    store_of(plan).put("sweep.json", json.dumps(begun.to_mapping()).encode())
    assert open_sweep(plan, resume=True)[0].metric == "round_trip"
    with pytest.raises(InputError, match="begun with metric 'round_trip', not 'swd'"):
        open_sweep(dataclasses.replace(plan, metric="swd"), resume=True)


def test_trial_0_is_the_preset_itself_and_each_trial_has_the_settings_it_is_given(tmp_path):
    plan = small_plan(tmp_path)
    base = dict(flatten_mapping(plan.base))
    assert plan.settings_for_trial(0) == {name: base[name] for name in plan.space}
    for number in (0, 3):
        settings = plan.settings_for_trial(number)
        config = dict(flatten_mapping(plan.config_for_trial(number, settings, {"scale.workers": "0"}).to_mapping()))
        assert settings.items() <= config.items()
        assert config["run.dir"] == f"{plan.folder}/trials"
        assert config["run.name"] == f"{number:03d}"
    assert from_mapping(plan.base).run.images == 8000 == plan.budget


def test_a_trial_is_evaluated_and_saved_several_times_before_its_end(tmp_path):
    plan = small_plan(tmp_path)
    config = plan.config_for_trial(1, plan.settings_for_trial(1), {})
    assert 4 <= config.run.images / config.report.evaluate_every <= 10
    assert config.report.checkpoint_every <= config.report.evaluate_every
    assert config.report.gallery_every <= config.report.evaluate_every


class TestTracker:
    """What the driver knows of the trials."""

    def make_tracker(self, plan, *records, lines=None) -> TrialTracker:
        return TrialTracker(plan, store_of(plan), records, ([] if lines is None else lines).append, None)

    def test_a_resume_runs_what_has_not_ended_first_and_nothing_else_again(self, tmp_path):
        states = ("finished", "running", "stopped", "pruned", "failed")
        records = [make_record(n, 0.1, state=state) for n, state in enumerate(states)]
        assert self.make_tracker(small_plan(tmp_path, trials=7), *records).list_waiting() == [1, 5, 6]

    def test_a_copy_of_the_records_does_not_change_with_them(self, tmp_path):
        """The table on the terminal draws a copy while Tune's thread goes on, which may change everything in one."""
        own = make_record(0, 0.5, state="running", held={"CPU": 1.0})
        tracker = self.make_tracker(small_plan(tmp_path), own)
        copied = tracker.copy_records()[0]
        kept = dataclasses.asdict(copied)
        own.settings["optim.lr_d"] = own.held["CPU"] = own.evaluations[0]["images"] = 7.0
        own.add_evaluation({"images": 9000.0})
        assert dataclasses.asdict(copied) == kept != dataclasses.asdict(own)

    def test_a_collapse_stops_a_trial_at_once_with_its_reason(self, tmp_path):
        tracker = self.make_tracker(small_plan(tmp_path))
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        evaluation = {"images": 4000.0, "high_quality": 0.9, "reverse_kl": 3.2, "right_mode": 0.1, "time_total_s": 9.0}
        assert tracker.add_report("a", evaluation)
        assert tracker.mark_ended("a")
        ended = tracker.copy_record("a")
        assert (ended.state, ended.images) == ("pruned", 4000)
        assert "collapsed" in ended.reason
        assert "time_total_s" not in ended.metrics

    def test_an_evaluation_without_what_trials_are_compared_by_is_reported_and_ends_the_trial(self, tmp_path):
        tracker = self.make_tracker(small_plan(tmp_path))
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        assert tracker.add_report("a", {"images": 4000.0, "frechet": 3.0})
        tracker.mark_ended("a")
        assert tracker.copy_record("a").state == "failed"
        assert "choose another --metric" in tracker.copy_record("a").reason

    def test_a_trial_cut_off_by_a_halt_stays_open_for_a_resume(self, tmp_path):
        plan = small_plan(tmp_path)
        tracker = self.make_tracker(plan)
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        tracker.halt()
        assert not tracker.mark_ended("a")
        assert 1 in tracker.list_waiting()

    def test_a_trial_that_has_saved_because_the_sweep_ends_stays_open(self, tmp_path):
        lines = []
        tracker = self.make_tracker(small_plan(tmp_path), lines=lines)
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        tracker.halt()
        assert tracker.is_any_running()
        assert not tracker.add_report("a", {"ended": "saved", "reason": ""})
        assert not tracker.mark_ended("a")
        assert not tracker.is_any_running()
        assert 1 in tracker.list_waiting()
        assert "has saved a checkpoint" in lines[-1]

    def test_a_trial_that_finishes_while_the_sweep_is_being_stopped_still_counts(self, tmp_path):
        tracker = self.make_tracker(small_plan(tmp_path))
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        tracker.halt()
        tracker.add_report("a", {"ended": "finished", "reason": ""})
        assert tracker.mark_ended("a")

    def test_a_process_lost_while_the_sweep_ends_is_no_failure_of_its_trial(self, tmp_path):
        tracker = self.make_tracker(small_plan(tmp_path))
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        tracker.halt()
        assert not tracker.mark_ended("a", "its process was lost")

    def test_a_trial_that_ends_without_a_word_was_stopped_by_the_scheduler(self, tmp_path):
        tracker = self.make_tracker(small_plan(tmp_path))
        tracker.register_trial("a", 1, {})
        tracker.mark_started("a")
        assert tracker.mark_ended("a")
        assert tracker.copy_record("a").state == "stopped"


class TestMovedProject:
    """A sweep goes on where its folder has been moved to, with the same data, and with no others."""

    def plan_in(self, folder, fingerprint="abc", data="data/ring") -> SweepPlan:
        settings = {"run.dir": str(folder / "runs"), "run.name": "sweep", "data.url": str(folder / data)}
        plan = make_plan(SweepOptions(preset="mixture", space=write_space(folder), metric="coverage"), settings)
        return dataclasses.replace(plan, fingerprint=fingerprint)

    @pytest.mark.parametrize("fingerprint", ["abc", ""], ids=["now", "begun before fingerprints were kept"])
    def test_it_is_resumed_in_its_new_place(self, tmp_path, fingerprint):
        old, new = tmp_path / "old", tmp_path / "new place"
        for folder in (old, new):
            folder.mkdir()
        self.plan_in(old, fingerprint).check_resumable_as(self.plan_in(new))
        with pytest.raises(InputError, match=r"begun (on other data|with data\.url)"):
            self.plan_in(old, fingerprint).check_resumable_as(self.plan_in(new, "def", "data/grid"))

    def test_its_preset_file_may_have_moved_with_it(self, tmp_path):
        plan = self.plan_in(tmp_path)
        named = [dataclasses.replace(plan, preset=f"{place}/mine.yaml") for place in ("/a", "/b")]
        named[0].check_resumable_as(named[1])
        with pytest.raises(InputError, match="begun with preset"):
            named[0].check_resumable_as(dataclasses.replace(plan, preset="other.yaml"))

    def test_a_trial_of_before_is_not_failed_for_where_it_lay(self, tmp_path):
        from tuning.ray_tune import check_trial_config

        plan = self.plan_in(tmp_path)
        record = make_record(1)
        config = plan.config_for_trial(1, record.settings, {}).to_mapping()
        config["run"]["dir"] = config["data"]["url"] = "/where/it/was"
        store_of(plan).put("trials/001/config.json", json.dumps(config).encode())
        assert check_trial_config(plan, store_of(plan), {}, record) is None
        config["optim"]["lr_d"] = 1.0
        store_of(plan).put("trials/001/config.json", json.dumps(config).encode())
        assert "optim.lr_d" in str(check_trial_config(plan, store_of(plan), {}, record))


def test_the_command_that_trains_the_best_is_quoted_as_a_shell_takes_it(tmp_path):
    folder = tmp_path / "my sweeps"
    folder.mkdir()
    assert small_plan(folder).best_command == f"python -m ali_dist.train --preset '{folder}/sweep/best.yaml'"
