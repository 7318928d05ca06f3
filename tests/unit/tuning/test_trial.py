"""What a trial reports to the sweep, without a cluster: evaluations with their score, and how it ended."""

from __future__ import annotations

import threading
import time

import pytest

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared

trial = pytest.importorskip("tuning.trial", reason="Ray is not installed")


@pytest.fixture
def reports(monkeypatch) -> list[dict]:
    """The reports that would go to Ray Tune."""
    collected: list[dict] = []
    monkeypatch.setattr(trial.ray.tune, "report", collected.append)
    return collected


def make_request(folder, **changes) -> dict:
    ensure_prepared("mixture-ring", str(folder / "ring"), samples=2_000)
    settings = {"data.url": str(folder / "ring"), "run.dir": str(folder), "run.name": "000", "run.images": 3_000}
    settings |= {"model.width": 0.25, "report.evaluation_samples": 200, "report.evaluate_every": 1_000}
    settings |= {"scale.workers": "0", "scale.device": "cpu", "report.log_every": 500}
    named = {name.replace("__", "."): value for name, value in changes.items()}
    config = from_mapping(load_preset("mixture-ring"), settings, named)
    return {"number": 0, "config": config.to_mapping(), "metric": "coverage", "evaluations": []}


def test_every_evaluation_is_reported_with_its_score_and_then_the_end(tmp_path, reports):
    trial.run_trial(make_request(tmp_path))
    assert [report["images"] for report in reports[:-1]] == [1024, 2048, 2944]
    assert all(0 <= report["score"] <= report["high_quality"] for report in reports[:-1])
    assert reports[-1] == {"ended": "finished", "reason": ""}


@pytest.mark.parametrize("rates", [{"optim__lr_d": 1e6, "optim__lr_g": 1e6}])
def test_a_trial_that_diverges_is_pruned_at_once_with_the_reason(tmp_path, reports, rates):
    trial.run_trial(make_request(tmp_path, run__images=3_000_000, **rates))
    assert reports[-1]["ended"] == "pruned"
    assert "diverged" in reports[-1]["reason"] or "not finite" in reports[-1]["reason"]


def test_a_trial_that_is_asked_to_stop_has_saved_a_checkpoint(tmp_path, reports, monkeypatch):
    stop_event = threading.Event()
    monkeypatch.setattr(trial, "watch_for_stop", lambda notes: stop_event)
    threading.Thread(target=lambda: (time.sleep(0.5), stop_event.set())).start()
    trial.run_trial(make_request(tmp_path, run__images=300_000_000))
    assert reports[-1] == {"ended": "saved", "reason": ""}
    assert list((tmp_path / "000" / "checkpoints").glob("*/manifest.json"))


def test_a_trial_that_cannot_be_trained_says_why_and_harms_no_other(tmp_path, reports):
    request = make_request(tmp_path)
    request["config"]["data"]["url"] = str(tmp_path / "nowhere")
    trial.run_trial(request)
    assert reports[-1]["ended"] == "failed"
    assert "nowhere" in reports[-1]["reason"]


def test_earlier_evaluations_are_reported_again_so_that_the_scheduler_knows_them(tmp_path, reports):
    earlier = {"images": 1024.0, "score": 0.1}
    trial.run_trial(make_request(tmp_path) | {"evaluations": [earlier]})
    assert reports[0] == earlier
