"""The loop in this process: what a run leaves behind, and that stopping and continuing it changes nothing.

Run: `make test ARGS=tests/unit/training/test_loop.py`
"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World
from ali_dist.errors import InputError, Stopped, TrainingError
from ali_dist.training import loop
from ali_dist.training.loop import fit
from ali_dist.training.state import TrainState
from tests.helpers.runs import (
    StoppingContext,
    assert_bitwise_equal,
    find_newest_checkpoint,
    load_weights,
    rewrite_tensors,
    tiny_config,
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


@pytest.fixture
def make_config(tmp_path, digits):
    """Make the config of a small run; names in `changes` have `__` where settings have a dot."""

    def make(**changes):
        return tiny_config(tmp_path, **{"data__url": str(digits), **changes})

    return make


def read_records(config) -> list[dict]:
    text = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def train(config, stop_before: int | None = None):
    return fit(config, StoppingContext(stop_before=stop_before))


def test_a_run_leaves_what_the_readme_promises(make_config):
    config = make_config(report__evaluation="auto", report__evaluation_samples=200)
    summary = train(config)
    folder = Path(config.run.dir) / config.run.name
    for name in ("config.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert {p.name.split("-")[0] for p in (folder / "images").iterdir()} == {
        "samples",
        "reconstructions",
        "interpolations",
        "latents",
        "nearest",
    }
    assert list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["status"] == "finished"
    assert summary["images"] == 192
    expected = {"frechet", "reconstruction_mse", "label_kept", "probe_accuracy", "latent_mmd2"}
    assert expected <= summary["metrics"].keys()
    trained = [r for r in read_records(config) if r["event"] == "train"]
    assert [r["images"] for r in trained] == [48, 96, 144, 192]
    assert all(0 <= r["logits_beyond_30"] <= 1 for r in trained)


def test_a_mixture_run_reports_its_modes(tmp_path):
    config = tiny_config(tmp_path, "mixture", data__url=str(tmp_path / "grid"), report__evaluation="auto")
    ensure_prepared("mixture-grid", config.data.url)
    summary = train(config)
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
def test_a_run_that_is_stopped_and_continued_equals_an_unbroken_one_bit_for_bit(make_config, changes):
    unbroken = make_config(run__name="unbroken", **changes)
    broken = make_config(run__name="broken", **changes)
    train(unbroken)
    with pytest.raises(Stopped, match="run the same command"):
        train(broken, stop_before=3)
    assert find_newest_checkpoint(broken).name == "step-000000003"
    summary = train(broken)
    assert summary["restarts"] == 1
    for file in ("model", "optimizer") + (("ema",) if unbroken.optim.ema_half_life else ()):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(broken, file))
    assert_records_continue(read_records(unbroken), read_records(broken))


class WarnedContext(StoppingContext):
    """A rank that is told before its third update that one of the run's machines will leave."""

    def __init__(self, world: World | None = None) -> None:
        super().__init__(world)
        self._calls = 0

    def count_leaving_machines(self) -> int:
        self._calls += 1
        return int(self._calls > 2)


def test_a_machine_that_is_about_to_leave_makes_a_run_save_once_and_go_on(make_config, capsys):
    changes = {"report__checkpoint_every": 0, "report__keep_checkpoints": 9}
    unbroken, warned = (make_config(run__name=name, **changes) for name in ("unbroken", "warned"))
    train(unbroken)
    fit(warned, WarnedContext())
    saved = sorted(path.name for path in (Path(warned.run.dir) / "warned" / "checkpoints").iterdir())
    assert saved == ["step-000000002", "step-000000008"]
    assert capsys.readouterr().err.count("A machine is about to leave: saving a checkpoint at 48 images.") == 1
    assert_bitwise_equal(load_weights(unbroken), load_weights(warned))


def assert_records_continue(unbroken: list[dict], broken: list[dict]) -> None:
    """Assert that the broken run has all the records of the unbroken one, in order of images."""

    def events_by_images(records):
        return [(record["event"], record["images"]) for record in records]

    assert set(events_by_images(unbroken)) <= set(events_by_images(broken))
    assert events_by_images(broken) == sorted(events_by_images(broken), key=lambda event: event[1])


def test_a_run_killed_between_checkpoints_repeats_only_what_was_lost(make_config):
    """After a kill the records are ahead of the checkpoint: those are dropped and written again."""
    unbroken = make_config(run__name="unbroken")
    killed = make_config(run__name="killed")
    train(unbroken)
    train(killed)
    folder = Path(killed.run.dir) / killed.run.name
    shutil.rmtree(folder / "checkpoints" / "step-000000008")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "ima')  # killed while writing
    train(killed)
    assert_bitwise_equal(load_weights(unbroken), load_weights(killed))
    assert [r["images"] for r in read_records(killed)] == [r["images"] for r in read_records(unbroken)]


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "no-manifest"])
def test_a_torn_checkpoint_is_passed_over_with_a_message(make_config, damage, capsys):
    unbroken = make_config(run__name="unbroken")
    torn = make_config(run__name="torn")
    train(unbroken)
    train(torn)
    newest = find_newest_checkpoint(torn)
    model_file = newest / "model.safetensors"
    if damage == "missing":
        model_file.unlink()
    elif damage == "truncated":
        model_file.write_bytes(model_file.read_bytes()[:-7])
    elif damage == "changed":
        content = bytearray(model_file.read_bytes())
        content[-3] ^= 1
        model_file.write_bytes(bytes(content))
    else:
        (newest / "manifest.json").unlink()
    (Path(torn.run.dir) / torn.run.name / "summary.json").unlink()
    capsys.readouterr()
    train(torn)
    message = capsys.readouterr().err
    assert "step-000000008" in message
    assert "cannot be used" in message
    assert "Continuing from the checkpoint at image 96" in message
    assert_bitwise_equal(load_weights(unbroken), load_weights(torn))


def test_a_run_that_was_stopped_before_its_first_update_goes_on(make_config):
    unbroken, stopped = make_config(run__name="unbroken"), make_config(run__name="stopped")
    train(unbroken)
    with pytest.raises(Stopped):
        train(stopped, stop_before=0)
    assert find_newest_checkpoint(stopped).name == "step-000000000"
    train(stopped)
    assert_bitwise_equal(load_weights(unbroken), load_weights(stopped))


UNUSABLE = {
    "another shape": ("model", "but must be", lambda t, name: t.update({name: t[name][:1]})),
    "a NaN in a weight": ("model", "is not finite", lambda t, name: t[name].view(-1)[0].fill_(math.nan)),
    "an infinity in the average": ("ema", "is not finite", lambda t, name: t[name].view(-1)[0].fill_(math.inf)),
    "a missing moment": ("optimizer", "has no", lambda t, name: t.pop(name)),
}


@pytest.mark.parametrize(("file", "reason", "damage"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_checkpoint_with_tensors_of_no_use_is_passed_over_for_an_older_one(make_config, capsys, file, reason, damage):
    unbroken = make_config(run__name="unbroken")
    damaged = make_config(run__name="damaged")
    train(unbroken)
    train(damaged)
    folder = Path(damaged.run.dir) / damaged.run.name
    named = []

    def change(tensors):
        named.append(next(name for name, t in tensors.items() if t.dim() > 1 and t.shape[0] > 1))
        damage(tensors, named[0])

    rewrite_tensors(folder, file, change)
    (folder / "summary.json").unlink()
    capsys.readouterr()
    train(damaged)
    message = capsys.readouterr().err
    assert "step-000000008" in message
    assert named[0] in message
    assert reason in message
    assert "Continuing from the checkpoint at image 96" in message
    assert_bitwise_equal(load_weights(unbroken), load_weights(damaged))


@pytest.mark.parametrize("where", ["average", "moment", "statistic"])
def test_what_is_not_finite_is_never_saved(make_config, monkeypatch, where):
    """The average, Adam's moments and the statistics of batch norm, while all weights are finite."""
    config = make_config()
    update = TrainState.update_average

    def spoil(state, decay):
        update(state, decay)
        if len(seen) == 5:
            tensors = {
                "average": list(state.average.parameters()),
                "moment": [entry["exp_avg_sq"] for entry in state.optimizer.state.values()],
                "statistic": [b for b in state.ali.buffers() if b.is_floating_point()],
            }[where]
            with torch.no_grad():
                tensors[0].view(-1)[0] = math.inf
        seen.append(decay)

    seen: list[float] = []
    monkeypatch.setattr(TrainState, "update_average", spoil)
    with pytest.raises(TrainingError, match="is not finite after image 192; earlier checkpoints are kept"):
        train(config)
    assert find_newest_checkpoint(config).name == "step-000000004"


def test_a_finished_run_says_so_and_changes_nothing(make_config, capsys):
    config = make_config()
    first = train(config)
    before = (find_newest_checkpoint(config) / "model.safetensors").stat().st_mtime_ns
    assert train(config) == first
    assert "is finished" in capsys.readouterr().err
    assert (find_newest_checkpoint(config) / "model.safetensors").stat().st_mtime_ns == before


def test_the_log_of_a_run_is_short_lines_with_clock_time_and_ends_with_what_it_left(make_config, capsys):
    summary = train(make_config())
    log, _, block = capsys.readouterr().err.partition("Done: ")
    events = [line[6:] for line in log.splitlines() if re.fullmatch(r"\d\d:\d\d \S.*", line)]
    assert len(events) == len(log.splitlines())
    assert "checkpoint at 192 images" in events
    assert any(line.startswith("192 / 192 images · ") for line in events)
    assert "d_loss=" not in log
    assert block.startswith("run 'tiny', 192 images in ")
    assert "report.html\nNext:\n  python -m ali_dist.generate " in block
    assert summary["images"] == 192


def test_a_stopped_run_has_no_closing_block(make_config, capsys):
    with pytest.raises(Stopped):
        fit(make_config(), StoppingContext(stop_before=4))
    assert "Done" not in capsys.readouterr().err


def test_a_longer_budget_continues_a_finished_run(make_config):
    train(make_config())
    summary = train(make_config(run__images=240))
    assert (summary["images"], summary["restarts"]) == (240, 1)


def test_a_finished_run_that_goes_on_keeps_the_time_of_its_last_evaluation(make_config):
    """It came after the last checkpoint, which knows nothing of it."""
    first = train(make_config(report__evaluation="auto", report__evaluation_samples=64))
    second = train(make_config(run__images=240))
    assert second["time"]["evaluation"] == first["time"]["evaluation"] > 0
    assert second["seconds"] > first["seconds"]


class Killed(BaseException):
    """The process is gone."""


def test_starts_that_are_killed_before_they_save_anything_are_counted(make_config, monkeypatch):
    config = make_config(report__checkpoint_every=0)

    def kill(*arguments):
        raise Killed

    def start_and_be_killed():
        with monkeypatch.context() as patch:
            patch.setattr(loop, "update_networks", kill)
            train(config)

    with pytest.raises(Killed):
        start_and_be_killed()
    with pytest.raises(Killed):
        start_and_be_killed()
    assert train(config)["restarts"] == 2
    (Path(config.run.dir) / config.run.name / "starts.json").write_text("{")  # what is damaged counts as nothing
    assert train(make_config(report__checkpoint_every=0, run__images=240))["restarts"] == 3


def test_only_the_newest_checkpoints_are_kept(make_config):
    config = make_config(report__checkpoint_every=24, report__keep_checkpoints=2)
    train(config)
    names = sorted(p.name for p in find_newest_checkpoint(config).parent.iterdir())
    assert names == ["step-000000007", "step-000000008"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"run__seed": 1}, "run.seed"),
        ({"data__global_batch_size": 48}, "data.global_batch_size"),
        ({"data__lanes": 3}, "data.lanes"),
        ({"model__latent_size": 5}, "model.latent_size"),
    ],
)
def test_a_run_is_not_continued_as_another_run(make_config, changes, key):
    with pytest.raises(Stopped):
        train(make_config(), stop_before=2)
    with pytest.raises(InputError, match=key) as refusal:
        train(make_config(**changes))
    assert "--run.name" in str(refusal.value)


def test_a_run_is_not_continued_on_other_data(make_config, tmp_path):
    with pytest.raises(Stopped):
        train(make_config(), stop_before=2)
    other = tmp_path / "other-digits"
    shutil.copytree(make_config().data.url, other)
    index = other / "train" / "index.json"
    content = json.loads(index.read_text())
    content["classes"] = [f"digit {c}" for c in content["classes"]]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="other data"):
        train(make_config(data__url=str(other)))


def test_changed_settings_of_a_continued_run_are_reported(make_config, capsys):
    with pytest.raises(Stopped):
        train(make_config(), stop_before=2)
    capsys.readouterr()
    train(make_config(optim__lr_d="0.0005", data__residency="stream"))
    message = capsys.readouterr().err
    assert "optim.lr_d from 0.001 to 0.0005" in message
    assert "residency" not in message


def test_divergence_stops_the_run_and_keeps_what_was_saved(make_config):
    with pytest.raises(Stopped):
        train(make_config(), stop_before=4)
    saved = load_weights(make_config())
    with pytest.raises(TrainingError, match="optim.lr_d"):
        train(make_config(optim__lr_g="1e18", optim__lr_d="1e18"))
    assert_bitwise_equal(saved, load_weights(make_config()))


def test_residency_changes_nothing(make_config):
    resident = make_config(run__name="ram")
    streamed = make_config(run__name="stream", data__residency="stream")
    train(resident)
    assert train(streamed)["residency"] == "stream"
    assert_bitwise_equal(load_weights(resident), load_weights(streamed))


def test_the_result_does_not_depend_on_global_randomness(make_config):
    first = make_config(run__name="first")
    second = make_config(run__name="second")
    torch.manual_seed(1)
    train(first)
    torch.manual_seed(2)
    train(second)
    assert_bitwise_equal(load_weights(first), load_weights(second))


def test_points_are_refused_by_an_image_architecture(make_config, tmp_path):
    ensure_prepared("mixture-grid", str(tmp_path / "grid"))
    with pytest.raises(InputError, match="images"):
        train(make_config(data__url=str(tmp_path / "grid")))


def test_a_finished_run_is_said_to_have_changed_in_nothing(make_config, capsys):
    train(make_config())
    capsys.readouterr()
    train(make_config(run__images=96, optim__lr_d=0.5))
    said = capsys.readouterr().err
    assert "is finished (192 images)" in said
    assert "Changed" not in said
    assert "Continuing" not in said


def test_a_stopped_run_with_an_earlier_end_is_not_said_to_be_finished(make_config, capsys):
    with pytest.raises(Stopped):
        train(make_config(), stop_before=4)
    capsys.readouterr()
    summary = train(make_config(run__images=48))
    assert summary["images"] == 96
    said = capsys.readouterr().err
    assert "was stopped after 96 of 192 images, and ends here, because run.images is now 48: raise --run.images" in said
    assert "is finished" not in said
    assert "Changed" not in said


def test_another_length_says_what_becomes_of_the_rates(make_config, capsys):
    train(make_config(optim__schedule="cosine"))
    capsys.readouterr()
    train(make_config(optim__schedule="cosine", run__images=384))
    assert (
        "With run.images 384 in place of 192, the cosine schedule is at 100% of the learning rates where it was at 0%, "
        "and comes to 0 at the new end."
    ) in capsys.readouterr().err


def test_lines_that_are_no_records_are_said_to_be_kept_aside(make_config, capsys):
    config = make_config()
    with pytest.raises(Stopped):
        train(config, stop_before=4)
    with (Path(config.run.dir) / config.run.name / "metrics.jsonl").open("a") as file:
        file.write("no record\n")
    train(config)
    assert (
        "1 line that is no record of a run went from metrics.jsonl to metrics-foreign.txt." in capsys.readouterr().err
    )
