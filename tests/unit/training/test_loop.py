"""The loop in this process: what a run leaves behind, and that stopping and going on changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.training.loop import fit
from tests.helpers.runs import StoppingContext, assert_same, newest_checkpoint, tiny, weights


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


@pytest.fixture
def run(tmp_path, digits):
    def make(**changes):
        return tiny(tmp_path, **{"data__url": str(digits), **changes})

    return make


def records(config) -> list[dict]:
    text = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def finish(config, stop_before: int | None = None):
    return fit(config, StoppingContext(stop_before=stop_before))


def test_a_run_leaves_what_the_readme_promises(run):
    config = run(report__evaluation="auto", report__evaluation_samples=200)
    summary = finish(config)
    folder = Path(config.run.dir) / config.run.name
    for name in ("config.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert {p.name.split("-")[0] for p in (folder / "images").iterdir()} == {
        "samples",
        "reconstructions",
        "interpolations",
    }
    assert list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["status"] == "finished"
    assert summary["images"] == 192
    wanted = {"frechet", "reconstruction_mse", "label_kept", "probe_accuracy", "latent_mmd2"}
    assert wanted <= summary["metrics"].keys()
    trained = [r for r in records(config) if r["event"] == "train"]
    assert [r["images"] for r in trained] == [48, 96, 144, 192]
    assert all(0 <= r["logits_beyond_30"] <= 1 for r in trained)


def test_a_mixture_run_reports_its_modes(tmp_path):
    config = tiny(tmp_path, "mixture", data__url=str(tmp_path / "grid"), report__evaluation="auto")
    ensure_prepared("mixture-grid", config.data.url)
    summary = finish(config)
    assert {"modes", "high_quality", "right_mode"} <= summary["metrics"].keys()
    images = Path(config.run.dir) / config.run.name / "images"
    assert [p.name for p in images.iterdir()] == ["mixture-000000192.png"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective__r1": 0, "objective__r2": 0, "model__discriminator_dropout": 0.3},
        {"objective__update": "alternating"},
        {"data__residency": "stream"},
        {"scale__precision": "fp16"},
        {"optim__ema_half_life": 0},
        {"optim__eps_inside": True},
    ],
    ids=["penalised", "scaled-dropout", "alternating", "stream", "fp16", "no-average", "eps-inside"],
)
def test_a_stopped_run_that_goes_on_equals_an_unbroken_one_bit_for_bit(run, changes):
    unbroken, broken = run(run__name="unbroken", **changes), run(run__name="broken", **changes)
    finish(unbroken)
    with pytest.raises(Stopped, match="run the same command"):
        finish(broken, stop_before=3)
    assert newest_checkpoint(broken).name == "step-000000003"
    summary = finish(broken)
    assert summary["restarts"] == 1
    for file in ("model", "optimizer") + (("ema",) if unbroken.optim.ema_half_life else ()):
        assert_same(weights(unbroken, file), weights(broken, file))
    assert_records_agree(records(unbroken), records(broken))


def assert_records_agree(mine: list[dict], theirs: list[dict]) -> None:
    def positions(rows):
        return [(r["event"], r["images"]) for r in rows]

    assert set(positions(mine)) <= set(positions(theirs))
    assert positions(theirs) == sorted(positions(theirs), key=lambda p: p[1])


def test_a_run_killed_between_checkpoints_repeats_only_what_was_lost(run):
    """A kill leaves a checkpoint behind the records: those are dropped and written again."""
    unbroken, killed = run(run__name="unbroken"), run(run__name="killed")
    finish(unbroken)
    finish(killed)
    folder = Path(killed.run.dir) / killed.run.name
    shutil.rmtree(folder / "checkpoints" / "step-000000008")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "ima')  # killed while writing
    finish(killed)
    assert_same(weights(unbroken), weights(killed))
    assert [r["images"] for r in records(killed)] == [r["images"] for r in records(unbroken)]


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "no-manifest"])
def test_a_torn_checkpoint_is_passed_over_and_said(run, damage, capsys):
    unbroken, torn = run(run__name="unbroken"), run(run__name="torn")
    finish(unbroken)
    finish(torn)
    newest = newest_checkpoint(torn)
    victim = newest / "model.safetensors"
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif damage == "changed":
        data = bytearray(victim.read_bytes())
        data[-3] ^= 1
        victim.write_bytes(bytes(data))
    else:
        (newest / "manifest.json").unlink()
    (Path(torn.run.dir) / torn.run.name / "summary.json").unlink()
    capsys.readouterr()
    finish(torn)
    said = capsys.readouterr().err
    assert "step-000000008" in said
    assert "not complete" in said
    assert "Continuing from the checkpoint at image 96" in said
    assert_same(weights(unbroken), weights(torn))


def test_a_finished_run_says_so_and_changes_nothing(run, capsys):
    config = run()
    first = finish(config)
    before = (newest_checkpoint(config) / "model.safetensors").stat().st_mtime_ns
    assert finish(config) == first
    assert "is finished" in capsys.readouterr().err
    assert (newest_checkpoint(config) / "model.safetensors").stat().st_mtime_ns == before


def test_a_longer_budget_continues_a_finished_run(run):
    finish(run())
    summary = finish(run(run__images=240))
    assert (summary["images"], summary["restarts"]) == (240, 1)


def test_only_the_newest_checkpoints_are_kept(run):
    config = run(report__checkpoint_every=24, report__keep_checkpoints=2)
    finish(config)
    names = sorted(p.name for p in newest_checkpoint(config).parent.iterdir())
    assert names == ["step-000000007", "step-000000008"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run__seed": 1}, "run.seed"),
        ({"data__global_batch_size": 48}, "data.global_batch_size"),
        ({"data__lanes": 3}, "data.lanes"),
        ({"model__latent_size": 5}, "model.latent_size"),
    ],
)
def test_a_run_is_not_continued_as_another_run(run, changes, named):
    with pytest.raises(Stopped):
        finish(run(), stop_before=2)
    with pytest.raises(InputError, match=named) as refusal:
        finish(run(**changes))
    assert "--run.name" in str(refusal.value)


def test_a_run_is_not_continued_on_other_data(run, tmp_path):
    with pytest.raises(Stopped):
        finish(run(), stop_before=2)
    other = tmp_path / "other-digits"
    shutil.copytree(run().data.url, other)
    index = other / "train" / "index.json"
    content = json.loads(index.read_text())
    content["classes"] = [f"digit {c}" for c in content["classes"]]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="other data"):
        finish(run(data__url=str(other)))


def test_what_may_change_between_starts_is_said(run, capsys):
    with pytest.raises(Stopped):
        finish(run(), stop_before=2)
    capsys.readouterr()
    finish(run(optim__lr_d="0.0005", data__residency="stream"))
    said = capsys.readouterr().err
    assert "optim.lr_d from 0.001 to 0.0005" in said
    assert "residency" not in said


def test_divergence_stops_the_run_and_keeps_what_was_saved(run):
    with pytest.raises(Stopped):
        finish(run(), stop_before=4)
    kept = weights(run())
    with pytest.raises(TrainingError, match="optim.lr_d"):
        finish(run(optim__lr_g="1e18", optim__lr_d="1e18"))
    assert_same(kept, weights(run()))


def test_residency_changes_nothing(run):
    resident, streamed = run(run__name="ram"), run(run__name="stream", data__residency="stream")
    finish(resident)
    assert finish(streamed)["residency"] == "stream"
    assert_same(weights(resident), weights(streamed))


def test_the_loop_leaves_no_trace_of_global_randomness_in_the_result(run):
    first, second = run(run__name="first"), run(run__name="second")
    torch.manual_seed(1)
    finish(first)
    torch.manual_seed(2)
    finish(second)
    assert_same(weights(first), weights(second))


def test_points_are_refused_by_an_image_architecture(run, tmp_path):
    ensure_prepared("mixture-grid", str(tmp_path / "grid"))
    with pytest.raises(InputError, match="images"):
        finish(run(data__url=str(tmp_path / "grid")))
