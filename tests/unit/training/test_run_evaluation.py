"""A run chooses on one split and reports on another, says which, and ends an evaluation when it is asked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.errors import InputError, Stopped
from ali_dist.evaluation.split_loading import hold_out_share
from ali_dist.runs.datasets import open_run_data
from ali_dist.runs.run_reader import RunReader
from ali_dist.training import run_evaluation
from ali_dist.training.loop import fit
from tests.helpers.arrays import write_arrays
from tests.helpers.runs import StoppingContext, rewrite_state, tiny_config

COUNTS = {"train": 200, "valid": 60, "test": 80}


class Listener(StoppingContext):
    """Keeps what is reported to whoever manages the run."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[dict[str, float]] = []

    def report(self, metrics: dict[str, float]) -> None:
        self.reports.append(metrics)


class StoppedInEvaluation(Listener):
    """Is asked to stop while a classifier is trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.asked = False
        original = run_evaluation.RunEvaluator.measure

        def measure(evaluator: Any, *words: Any) -> Any:
            self.asked = True
            return original(evaluator, *words)

        monkeypatch.setattr(run_evaluation.RunEvaluator, "measure", measure)

    def stop_requested(self) -> bool:
        return self.asked


@pytest.fixture(autouse=True)
def _quick_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ali_dist.evaluation.classifiers.STEPS", 5)


def make_config(tmp_path: Path, splits: tuple[str, ...], **changes: Any):
    for split in splits:
        rng = np.random.default_rng(COUNTS[split])
        x = rng.integers(0, 256, (COUNTS[split], 1, 8, 8), dtype=np.uint8)
        write_arrays(tmp_path / "data" / split, x, np.arange(len(x)) % 4, classes=("a", "b", "c", "d"))
    usual = {"report__evaluation": "auto", "report__evaluation_samples": 50, "data__source": "none"}
    return tiny_config(tmp_path, **{**usual, **changes})


def evaluations(config) -> list[dict[str, Any]]:
    lines = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == "evaluation"]


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in ("event", "step", "images", "seconds", "split")}


def test_valid_is_chosen_by_and_test_is_reported_on(tmp_path: Path) -> None:
    config = make_config(tmp_path, ("train", "valid", "test"), report__evaluate_every=96)
    listener = Listener()
    summary = fit(config, listener)
    assert summary is not None
    records = evaluations(config)
    assert [(r["images"], r["split"]) for r in records] == [(96, "valid"), (192, "valid"), (192, "test")]
    assert summary["metrics_split"] == "test"
    assert summary["metrics"] == metrics_of(records[-1])
    assert summary["metrics_to_choose_by"] == metrics_of(records[1]) != summary["metrics"]
    assert listener.reports == [{"images": float(r["images"]), **metrics_of(r)} for r in records[:2]]
    assert summary["evaluation"]["report"] == {
        "split": "test",
        "train": {"split": "train", "samples": 200, "of": 200},
        "holdout": {"split": "test", "samples": 80, "of": 80},
    }
    curve = RunReader.read(Path(config.run.dir) / config.run.name).evaluations
    assert [(r["images"], r["split"]) for r in curve] == [(96, "valid"), (192, "valid")]


def test_without_valid_a_tenth_of_train_is_chosen_by_and_trains_no_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, ("train", "test"), report__evaluate_every=96)
    summary = fit(config, Listener())
    assert summary is not None
    assert [r["split"] for r in evaluations(config)] == ["train-share", "train-share", "test"]
    share, rest = hold_out_share(200)
    assert summary["evaluation"]["choice"] == {
        "split": "train-share",
        "train": {"split": "train", "samples": len(rest), "of": len(rest)},
        "holdout": {"split": "train", "samples": len(share), "of": len(share)},
    }
    assert "use 20 of the 200 samples of train, which are trained on, too" in capsys.readouterr().err


def test_without_evaluations_before_the_end_test_alone_is_measured(tmp_path: Path) -> None:
    config = make_config(tmp_path, ("train", "valid", "test"))
    listener = Listener()
    summary = fit(config, listener)
    assert summary is not None
    assert [r["split"] for r in evaluations(config)] == ["test"]
    assert "metrics_to_choose_by" not in summary
    assert listener.reports == [{"images": 192.0, **summary["metrics"]}]


def test_where_valid_is_the_holdout_split_it_is_measured_once(tmp_path: Path) -> None:
    config = make_config(tmp_path, ("train", "valid"), data__holdout="valid", report__evaluate_every=96)
    summary = fit(config, Listener())
    assert summary is not None
    assert [(r["images"], r["split"]) for r in evaluations(config)] == [(96, "valid"), (192, "valid")]
    assert summary["metrics_split"] == "valid"


def test_a_run_goes_on_from_a_checkpoint_that_names_no_split_of_its_metrics(tmp_path: Path) -> None:
    """Whether training is at its end, where nothing is measured again, or is to go on.

    Checkpoints of that time were saved after the evaluation and have its metrics.
    """
    config = make_config(tmp_path, ("train", "valid", "test"), report__evaluate_every=96)
    folder = Path(config.run.dir) / config.run.name
    finished = fit(config, Listener())
    assert finished is not None

    def make_old(state: dict[str, Any]) -> None:
        del state["metrics_split"]
        state["metrics"] = finished["metrics"]

    rewrite_state(folder, make_old)
    (folder / "summary.json").unlink()
    again = fit(config, Listener())
    assert again is not None
    assert (again["metrics"], again["metrics_split"]) == (finished["metrics"], "")
    assert "At the end of the run." in (folder / "report.html").read_text(encoding="utf-8")
    longer = fit(make_config(tmp_path, ("train", "valid", "test"), run__images=240), Listener())
    assert longer is not None
    assert (longer["images"], longer["metrics_split"]) == (240, "test")


def test_splits_beyond_memory_are_sampled_and_every_metric_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 MB of memory cannot be; 1 MB holds 976 images at 16x16 of the 1200."""
    COUNTS["train"] = 1200
    try:
        config = make_config(tmp_path, ("train", "test"), data__memory_mb=1)
        summary = fit(config, Listener())
    finally:
        COUNTS["train"] = 200
    assert summary is not None
    assert {"frechet", "label_kept", "probe_accuracy", "reconstruction_mse"} <= summary["metrics"].keys()
    assert summary["evaluation"]["report"]["train"] == {"split": "train", "samples": 976, "of": 1200}
    assert "976 of 1,200 samples of train" in capsys.readouterr().err


def test_a_stop_during_the_last_evaluation_saves_and_the_same_command_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, ("train", "test"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        fit(config, StoppedInEvaluation(patch))
    folder = Path(config.run.dir) / config.run.name
    stopped = json.loads((folder / "summary.json").read_text())
    assert (stopped["status"], stopped["images"], stopped["metrics"]) == ("stopped", 192, {})
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="to evaluate it"):
        fit(config, StoppedInEvaluation(patch))
    summary = fit(config, Listener())
    assert summary is not None
    assert summary["status"] == "finished"
    unbroken = fit(make_config(tmp_path, (), run__name="unbroken"), Listener())
    assert unbroken is not None
    assert summary["metrics"] == unbroken["metrics"]


class KilledBeforeItIsHeard(Listener):
    """Ends when metrics of `images` are reported, before anybody has heard them."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def report(self, metrics: dict[str, float]) -> None:
        if metrics["images"] == self.images:
            raise KeyboardInterrupt
        super().report(metrics)


@pytest.mark.parametrize("images", [96, 192])
def test_metrics_that_nobody_heard_of_are_reported_when_the_run_goes_on(tmp_path: Path, images: int) -> None:
    """192 is the end, where nothing is left to train."""
    config = make_config(tmp_path, ("train", "valid", "test"), report__evaluate_every=96, report__checkpoint_every=96)
    with pytest.raises(KeyboardInterrupt):
        fit(config, KilledBeforeItIsHeard(images))
    measured = [record for record in evaluations(config) if record["split"] == "valid"]
    assert [record["images"] for record in measured] == [96, 192][: images // 96]
    listener = Listener()
    fit(config, listener)
    assert listener.reports[0] == {"images": float(images), **metrics_of(measured[-1])}
    assert [report["images"] for report in listener.reports] == [96.0, 192.0][images // 96 - 1 :]
    assert {r["images"] for r in evaluations(config) if r["split"] == "valid"} == {96, 192}


def test_valid_is_reported_on_where_there_is_no_test_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = fit(make_config(tmp_path, ("train", "valid")), Listener())
    assert summary is not None
    assert summary["metrics_split"] == "valid"
    assert summary["metrics"]
    said = capsys.readouterr().err
    assert "The data have no split 'test': 'valid' is reported on in its place, though it is chosen by, too." in said


def test_a_holdout_of_one_image_is_shown_and_its_evaluation_left_out_from_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COUNTS, "test", 1)
    config = make_config(tmp_path, ("train", "test"), report__gallery_every=96)
    summary = fit(config, Listener())
    assert summary is not None
    assert (summary["status"], "failures" in summary) == ("finished", False)
    said = capsys.readouterr().err
    assert "The split 'test' holds 1 sample, but evaluation needs at least 2: evaluation is left out." in said
    images = Path(config.run.dir) / config.run.name / "images"
    assert {path.name.split("-")[0] for path in images.iterdir()} >= {"reconstructions", "samples"}


@pytest.mark.parametrize("split", ["test", "valid"])
@pytest.mark.parametrize(
    ("shape", "words"),
    [((3, 8, 8), "prepare both in the same way"), ((1, 12, 12), "give data.image_size, to which all are resized")],
)
def test_a_split_of_another_shape_is_refused_before_training(
    tmp_path: Path, split: str, shape: tuple[int, ...], words: str
) -> None:
    config = make_config(tmp_path, ("train",), data__image_size=None)
    write_arrays(tmp_path / "data" / split, np.zeros((9, *shape), np.uint8), np.arange(9) % 4, classes=tuple("abcd"))
    with pytest.raises(InputError, match=words) as refusal:
        open_run_data(config)
    assert f"Samples of the split {split!r} are uint8 {list(shape)}" in str(refusal.value)
    resized = make_config(tmp_path, ("train",), data__image_size=8)
    if shape[0] == 1:
        assert open_run_data(resized).train.index.shape == (1, 8, 8)
