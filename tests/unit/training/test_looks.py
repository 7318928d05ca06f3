"""A run saves before it draws and evaluates: what fails or is killed there loses nothing.

Run: `make test ARGS=tests/unit/training/test_looks.py`
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.config import Config
from ali_dist.errors import InputError, Stopped, StorageError
from ali_dist.training import reporting, run_evaluation, run_galleries
from ali_dist.training.loop import fit
from ali_dist.training.state import TrainState
from tests.helpers.arrays import write_arrays
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, find_newest_checkpoint, load_weights, tiny_config

COUNTS = {"train": 200, "valid": 60, "test": 80}
LOOKS = ("gallery", "evaluation", "report page")
PLACES = {
    "update": (TrainState, "update"),
    "gallery": (run_galleries, "draw_run_galleries"),
    "evaluation": (run_evaluation.RunEvaluator, "measure"),
    "report page": (reporting, "write_page"),
}
"""What is called for an update and for each kind of look."""


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(autouse=True)
def _quick_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ali_dist.evaluation.classifiers.STEPS", 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in COUNTS.items():
        x = np.random.default_rng(count).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
        write_arrays(folder / split, x, np.arange(count) % 4, classes=("a", "b", "c", "d"))
    return folder


@pytest.fixture
def make_config(tmp_path: Path, data: Path) -> Callable[..., Config]:
    """Make the config of a run of 8 updates that saves, draws and evaluates after the 4th and the 8th."""

    def make(**changes: Any) -> Config:
        usual = {
            "data__url": str(data),
            "data__source": "none",
            "report__evaluation": "auto",
            "report__evaluation_samples": 50,
            "report__evaluate_every": 96,
            "report__gallery_every": 96,
        }
        return tiny_config(tmp_path, **{**usual, **changes})

    return make


@pytest.fixture
def unbroken(make_config: Callable[..., Config]) -> Config:
    config = make_config(run__name="unbroken")
    fit(config, StoppingContext())
    return config


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of it is the number of updates that have been computed."""
    counted: list[int] = []
    original = TrainState.update

    def update(state: TrainState, *words: Any) -> Any:
        counted.append(1)
        return original(state, *words)

    monkeypatch.setattr(TrainState, "update", update)
    return counted


def fail_in(patch: pytest.MonkeyPatch, place: str, error: BaseException, at: tuple[int, ...] = ()) -> None:
    """Raise `error` in some of the calls at a place, counted from 0; in every one, if none is named."""
    holder, name = PLACES[place]
    original = getattr(holder, name)
    calls = 0

    def fail(*words: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if not at or calls - 1 in at:
            raise error
        return original(*words, **options)

    patch.setattr(holder, name, fail)


def folder_of(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name


def read_summary(config: Config) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder_of(config) / "summary.json").read_text())
    return summary


def read_records(config: Config, *events: str) -> list[dict[str, Any]]:
    """The records of some events, without what a clock says, and the later of two that say the same."""
    lines = (folder_of(config) / "metrics.jsonl").read_text().splitlines()
    clock = ("seconds", "images_per_second", "data_wait")
    records = [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]
    chosen = [record for record in records if record["event"] in events]
    return list({(r["event"], r["images"], r.get("split")): r for r in chosen}.values())


def picture_names(config: Config) -> list[str]:
    return sorted(path.name for path in (folder_of(config) / "images").iterdir())


def test_summary_and_page_tell_of_a_run_that_goes_on(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second half: what was drawn and measured in the middle is there to be looked at."""
    config = make_config()
    with monkeypatch.context() as patch:
        fail_in(patch, "update", Killed(), at=(6,))
        with pytest.raises(Killed):
            fit(config, StoppingContext())
    summary = read_summary(config)
    assert (summary["status"], summary["images"]) == ("running", 96)
    assert summary["metrics"]
    page = (folder_of(config) / "report.html").read_text()
    assert ">running<" in page
    assert "data:image/png" in page
    fit(config, StoppingContext())
    assert read_summary(config)["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a pipe has burst"), "failed"), (OSError("gone"), "running")]
)
def test_summary_and_page_say_why_a_run_has_failed(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    """Where the storage itself fails, nothing more is written."""
    config = make_config()
    with monkeypatch.context() as patch:
        fail_in(patch, "update", error, at=(6,))
        with pytest.raises(type(error)):
            fit(config, StoppingContext())
    assert read_summary(config)["status"] == status
    told = "It ended here: a pipe has burst" in (folder_of(config) / "report.html").read_text()
    assert told == (status == "failed")
    with monkeypatch.context() as patch:
        fail_in(patch, "update", Killed())
        with pytest.raises(Killed):
            fit(config, StoppingContext())
    assert read_summary(config)["status"] == "running"  # as soon as it goes on
    assert "It ended here" not in (folder_of(config) / "report.html").read_text()
    fit(config, StoppingContext())
    assert "reason" not in read_summary(config)


@pytest.mark.parametrize(
    ("place", "call", "saved"),
    [("gallery", 0, 4), ("evaluation", 0, 4), ("gallery", 1, 8), ("evaluation", 1, 8), ("evaluation", 2, 8)],
)
def test_a_run_killed_while_it_looks_trains_nothing_again_and_ends_as_an_unbroken_one(
    make_config: Callable[..., Config], unbroken: Config, updates: list[int], place: str, call: int, saved: int
) -> None:
    """Evaluation 1 is that of the split that is chosen by, and 2 that of the one that is reported on."""
    killed = make_config(run__name="killed")
    with pytest.MonkeyPatch.context() as patch:
        fail_in(patch, place, Killed(), at=(call,))
        with pytest.raises(Killed):
            fit(killed, StoppingContext())
    assert find_newest_checkpoint(killed).name == f"step-{saved:09d}"
    assert len(updates) == saved
    summary = fit(killed, StoppingContext())
    assert len(updates) == 8
    assert summary is not None
    for file in ("model", "ema", "optimizer"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(killed, file))
    assert read_records(killed, "train", "evaluation") == read_records(unbroken, "train", "evaluation")
    assert picture_names(killed) == picture_names(unbroken)
    expected = read_summary(unbroken)
    for key in ("status", "metrics", "metrics_split", "metrics_to_choose_by", "evaluation"):
        assert summary[key] == expected[key], key


def test_samples_are_recorded_beside_training_images_at_every_gallery(unbroken: Config) -> None:
    found = [record for record in read_records(unbroken, "neighbors")]
    assert [record["images"] for record in found] == [96, 192]
    assert all(0 < record["samples"] < 1 and 0 < record["holdout"] < 1 for record in found)
    assert found[0]["holdout"] == found[1]["holdout"], "of the same images"


def test_a_damaged_training_image_costs_the_comparison_with_it_and_nothing_else(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether training minds it is for data.bad_samples to say; it is told once, and not tried again."""
    calls = []

    def fail(*words: Any, **options: Any) -> None:
        calls.append(1)
        raise InputError("Sample 7 of shard 0 is damaged.")

    monkeypatch.setattr(run_galleries, "draw_nearest", fail)
    summary = fit(make_config(report__evaluation="none"), StoppingContext())
    assert summary is not None
    assert summary["status"] == "finished"
    [failure] = summary["failures"]
    assert failure["what"] == "comparison with training images"
    assert "Sample 7 of shard 0 is damaged" in failure["reason"]
    assert len(calls) == 1


@pytest.mark.parametrize("place", LOOKS)
@pytest.mark.parametrize("error", [RuntimeError("no memory\nleft"), StorageError("The bucket is gone.")], ids=type)
def test_what_fails_in_a_look_is_said_and_recorded_and_training_goes_on(
    make_config: Callable[..., Config],
    unbroken: Config,
    updates: list[int],
    capsys: pytest.CaptureFixture[str],
    place: str,
    error: Exception,
) -> None:
    config = make_config(run__name="failing")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        fail_in(patch, place, error)
        summary = fit(config, StoppingContext())
    said = capsys.readouterr().err
    assert summary is not None
    assert summary == read_summary(config)
    assert summary["status"] == "finished"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    moments = [96, 192]  # the page of a run that goes on, and of one that has ended
    assert summary["failures"] == [{"what": place, "images": images, "reason": reason} for images in moments]
    for images in moments:
        assert f"The {place} after {images} images failed ({reason}); the run goes on without it" in said
    failures = read_records(config, "failure")
    assert [(record["what"], record["images"]) for record in failures] == [(place, images) for images in moments]
    assert all("Traceback" in record["traceback"] for record in failures)
    assert bool(summary["metrics"]) == (place != "evaluation")
    assert_bitwise_equal(load_weights(unbroken), load_weights(config))
    assert "failures" not in read_summary(unbroken)
    if place != "report page":
        assert f"The {place} after 192 images failed" in (folder_of(config) / "report.html").read_text()
    assert fit(config, StoppingContext()) == summary  # it is finished, and nothing is tried again
    assert len(updates) == 8


def test_an_evaluation_that_failed_is_not_tried_again_when_its_run_goes_on(
    make_config: Callable[..., Config], unbroken: Config
) -> None:
    config = make_config(run__name="failing")
    with pytest.MonkeyPatch.context() as patch:
        fail_in(patch, "evaluation", RuntimeError("once"), at=(0,))
        fail_in(patch, "update", Killed(), at=(4,))
        with pytest.raises(Killed):
            fit(config, StoppingContext())
    summary = fit(config, StoppingContext())
    assert summary is not None
    assert [(r["images"], r["split"]) for r in read_records(config, "evaluation")] == [(192, "valid"), (192, "test")]
    assert summary["metrics"] == read_summary(unbroken)["metrics"]
    assert [failure["images"] for failure in summary["failures"]] == [96]


def test_what_the_user_has_to_answer_ends_the_run_with_its_training_saved(
    make_config: Callable[..., Config], unbroken: Config, updates: list[int]
) -> None:
    config = make_config(run__name="asking")
    with pytest.MonkeyPatch.context() as patch:
        fail_in(patch, "evaluation", InputError("Sample 3 of test is damaged: copy it again."), at=(1,))
        with pytest.raises(InputError, match="damaged"):
            fit(config, StoppingContext())
    summary = fit(config, StoppingContext())
    assert len(updates) == 8
    assert summary is not None
    assert summary["metrics"] == read_summary(unbroken)["metrics"]


def test_a_stop_during_an_evaluation_records_nothing_twice_and_evaluates_again(
    make_config: Callable[..., Config], unbroken: Config
) -> None:
    config = make_config(run__name="stopped")
    asked: list[bool] = []
    context = StoppingContext()
    original = run_evaluation.RunEvaluator.measure

    def measure(evaluator: Any, *words: Any) -> Any:
        asked.append(True)
        return original(evaluator, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "stop_requested", lambda: bool(asked))
        patch.setattr(run_evaluation.RunEvaluator, "measure", measure)
        with pytest.raises(Stopped):
            fit(config, context)
    assert find_newest_checkpoint(config).name == "step-000000004"
    assert fit(config, StoppingContext()) is not None
    lines = (folder_of(config) / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((folder_of(unbroken) / "metrics.jsonl").read_text().splitlines())
    assert read_records(config, "train", "evaluation") == read_records(unbroken, "train", "evaluation")


def test_metrics_that_came_after_the_checkpoint_are_those_of_the_run_that_goes_on(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(run__name="going-on")
    with pytest.MonkeyPatch.context() as patch:
        fail_in(patch, "update", Killed(), at=(4,))
        with pytest.raises(Killed):
            fit(config, StoppingContext())
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=0))
    (evaluation,) = read_records(config, "evaluation")
    summary = read_summary(config)
    assert summary["metrics_split"] == evaluation["split"] == "valid"
    assert summary["metrics"]
    assert summary["metrics"].items() <= evaluation.items()


def test_looks_change_nothing_in_the_training(make_config: Callable[..., Config]) -> None:
    """Networks are drawn and measured in evaluation mode, and train on in training mode: with dropout, batch norm."""
    changes = {"model__discriminator_dropout": 0.3, "optim__ema_half_life": 0}
    looking = make_config(run__name="looking", **changes)
    blind = make_config(
        run__name="blind", report__gallery_every=0, report__evaluate_every=0, report__evaluation="none", **changes
    )
    fit(looking, StoppingContext())
    fit(blind, StoppingContext())
    assert_bitwise_equal(load_weights(looking), load_weights(blind))
