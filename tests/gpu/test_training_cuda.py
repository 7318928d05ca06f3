"""Whole runs on a GPU: in every precision, continued from a checkpoint, on data on the device, and compiled.

Run: `make test ARGS=tests/gpu`; needs a CUDA device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World
from ali_dist.errors import Stopped
from ali_dist.runs.datasets import open_run_data
from ali_dist.runs.trackers import Record
from ali_dist.training.loop import fit
from ali_dist.training.state import build_train_state
from ali_dist.training.step import Step, TrainBatch, loss_weights_at
from tests.helpers.arrays import write_arrays
from tests.helpers.batches import B, X, Y, assert_same_batches, open_batch_source, take_batches
from tests.helpers.networks import copy_state, total_error
from tests.helpers.runs import (
    StoppingContext,
    assert_bitwise_equal,
    find_newest_checkpoint,
    load_weights,
    tiny_config,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
CUDA = torch.device("cuda", 0)
PRECISIONS = ["fp32", "bf16", "fp16"]
MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True)
def _deterministic_fp32() -> Iterator[None]:
    """Kernels that compute fp32 in fp32 (no TF32) and the same way each time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


@pytest.fixture
def make_config(tmp_path: Path, digits: Path) -> MakeConfig:
    """Make the config of a small run on the GPU; names in `changes` have `__` where settings have a dot."""

    def make(**changes: Any) -> Config:
        return tiny_config(tmp_path, **{"data__url": str(digits), "scale__device": "cuda", **changes})

    return make


def train_on_gpu(config: Config, stop_before: int | None = None) -> Record | None:
    context = StoppingContext(stop_before=stop_before)
    context.device = CUDA
    return fit(config, context)


def read_train_records(config: Config) -> list[dict[str, Any]]:
    """Read what the run has recorded of its updates."""
    lines = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == "train"]


def skip_unless_supported(precision: str) -> None:
    """Skip the test where this GPU only emulates the precision."""
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_in_each_precision_has_the_losses_of_fp32(make_config: MakeConfig, precision: str) -> None:
    """But for rounding; and it ends, moves every network, and keeps its data on the GPU."""
    skip_unless_supported(precision)
    full = make_config(run__name="full", scale__precision="fp32")
    half = make_config(run__name="half", scale__precision=precision)
    train_on_gpu(full)
    summary = train_on_gpu(half)
    assert summary is not None
    assert (summary["status"], summary["images"], summary["residency"]) == ("finished", 192, "device")
    for of_half, of_full in zip(read_train_records(half), read_train_records(full), strict=True):
        for name in ("d_loss", "g_loss", "cycle"):
            assert of_half[name] == pytest.approx(of_full[name], rel=0.05), name
    start = build_train_state(half, open_run_data(half).train.index, CUDA, World()).ali.state_dict()
    unmoved = {name for name, weight in load_weights(half).items() if torch.equal(weight, start[name].cpu())}
    assert unmoved <= {"discriminator.d_xz.layers.2.0.bias"}  # differences of logits do not depend on it


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"objective__r1": 0, "objective__r2": 0, "model__discriminator_dropout": 0.3}],
    ids=["penalised", "dropout"],
)
def test_a_run_that_is_stopped_and_continued_equals_an_unbroken_one(
    make_config: MakeConfig, precision: str, changes: dict[str, Any]
) -> None:
    """Weights, averages and Adam's state agree bit for bit, and the loss scale of fp16 is kept."""
    skip_unless_supported(precision)
    unbroken, broken = (
        make_config(run__name=name, scale__precision=precision, **changes) for name in ("unbroken", "broken")
    )
    train_on_gpu(unbroken)
    with pytest.raises(Stopped):
        train_on_gpu(broken, stop_before=3)
    assert find_newest_checkpoint(broken).name == "step-000000003"
    train_on_gpu(broken)
    for file in ("model", "optimizer", "ema"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(broken, file))
    states = [json.loads((find_newest_checkpoint(c) / "state.json").read_text()) for c in (unbroken, broken)]
    assert states[0]["precision"] == states[1]["precision"]
    assert bool(states[0]["precision"]) == (precision == "fp16")


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__penalty_every": 2, "objective__penalty_final": 0.1, "optim__schedule": "cosine"},
        {"objective__r1": 0, "objective__r2": 0, "model__discriminator_dropout": 0.3, "objective__update": "scaled"},
        {"objective__r1": 0, "objective__r2": 0, "model__discriminator_dropout": 0.3, "objective__update": "coupled"},
        {"scale__precision": "bf16"},
    ],
    ids=["lazy", "scaled", "coupled", "bf16"],
)
def test_replayed_updates_are_the_launched_ones_bit_for_bit(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    """With rates, penalties and masks of their own moment, and over a change between updates with and without one."""
    skip_unless_supported(changes.get("scale__precision", "fp32"))
    settings = {"scale__precision": "fp32", "run__images": 480, **changes}
    launched = make_config(run__name="launched", scale__cuda_graph="off", **settings)
    replayed = make_config(run__name="replayed", **settings)
    summaries = [train_on_gpu(config) for config in (launched, replayed)]
    ways = [summary["launching"] for summary in summaries if summary is not None]
    assert ways == ["not replayed as a CUDA graph (scale.cuda_graph is 'off')", "replayed as a CUDA graph"]
    for file in ("model", "optimizer", "ema"):
        assert_bitwise_equal(load_weights(launched, file), load_weights(replayed, file))
    assert read_losses(launched) == read_losses(replayed)


def test_an_epsilon_that_changes_is_not_replayed_until_it_has_settled(make_config: MakeConfig) -> None:
    """With a small beta2, which settles within the run, the weights are those of launched updates."""
    settings = {"run__images": 1440, "optim__eps_inside": True, "optim__beta2": 0.5, "scale__precision": "fp32"}
    launched = make_config(run__name="launched", scale__cuda_graph="off", **settings)
    replayed = make_config(run__name="replayed", **settings)
    for config in (launched, replayed):
        train_on_gpu(config)
    assert_bitwise_equal(load_weights(launched), load_weights(replayed))


def read_losses(config: Config) -> list[dict[str, Any]]:
    timings = ("seconds", "images_per_second", "data_wait")
    return [{key: value for key, value in r.items() if key not in timings} for r in read_train_records(config)]


def test_an_update_that_cannot_be_recorded_is_launched_and_the_run_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here because it waits for the device; the weights are those of a run that does not try."""
    launched = make_config(run__name="launched", scale__cuda_graph="off")
    train_on_gpu(launched)
    update_parameters = Step.update_parameters

    def wait_and_update(step: Step) -> None:
        torch.cuda.synchronize()
        update_parameters(step)

    monkeypatch.setattr(Step, "update_parameters", wait_and_update)
    tried = make_config(run__name="tried")
    train_on_gpu(tried)
    assert "Updates are not replayed as a CUDA graph, and go on without" in "".join(capsys.readouterr())
    assert_bitwise_equal(load_weights(launched), load_weights(tried))


def test_a_run_of_the_gpu_can_be_continued_on_the_cpu(make_config: MakeConfig) -> None:
    """A checkpoint does not depend on where it was computed."""
    with pytest.raises(Stopped):
        train_on_gpu(make_config(), stop_before=4)
    summary = fit(make_config(scale__device="cpu"), StoppingContext())
    assert summary is not None
    assert (summary["status"], summary["images"], summary["restarts"]) == ("finished", 192, 1)


@pytest.mark.parametrize("residency", ["device", "ram", "stream"])
def test_batches_on_the_gpu_are_those_on_the_cpu(tmp_path: Path, residency: str) -> None:
    """Wherever the samples are kept: over a change of epoch, and taken faster than the GPU copies them."""
    store, index = write_arrays(tmp_path, X, Y)
    count = len(X) // B + 4
    with open_batch_source(store, index, residency=residency, device=CUDA) as source:
        assert source.residency == residency
        batches = [next(source) for _ in range(count)]
    assert all(batch.x.device == CUDA and batch.y is not None and batch.y.device == CUDA for batch in batches)
    on_gpu = [(b.ids.tolist(), np.asarray(b.x.cpu()), b.y.tolist()) for b in batches if b.y is not None]
    assert_same_batches(on_gpu, take_batches(open_batch_source(store, index), count))


def test_auto_residency_keeps_the_data_on_the_gpu_if_they_fit(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, X, Y)
    with open_batch_source(store, index, residency="auto", device=CUDA) as source:
        assert source.residency == "device"
    with open_batch_source(store, index, residency="auto", device=CUDA, memory_mb=0) as source:
        assert source.residency == "stream"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("update", ["scaled", "penalised", "coupled"])
def test_compiled_networks_take_the_same_step(make_config: MakeConfig, update: str) -> None:
    """One update of plain gradient descent in fp32 gives equal losses, and equal weights but for rounding."""

    def update_once(compiled: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        penalty = 0.5 if update == "penalised" else 0
        config = make_config(
            scale__compile=compiled,
            scale__precision="fp32",
            objective__r1=penalty,
            objective__r2=penalty,
            objective__update=update,
        )
        state = build_train_state(config, open_run_data(config).train.index, CUDA, World())
        # Adam's first update is a sign, in which rounding of a gradient near 0 shows in full.
        state.step.optimizer = torch.optim.SGD(state.ali.parameters(), lr=0.1)
        before = copy_state(state.ali)
        g = torch.Generator().manual_seed(0)
        x = torch.rand(24, *state.space.model_shape, generator=g).to(CUDA)
        z, epsilon = torch.randn(2, 24, config.model.latent_size, generator=g).to(CUDA)
        losses = state.step(TrainBatch(x, z, epsilon), loss_weights_at(config.objective, 0, 1.0))
        after = copy_state(state.ali)
        return [float(loss) for loss in losses], {name: (after[name] - before[name]).float() for name in after}

    eager_losses, eager_changes = update_once(compiled=False)
    compiled_losses, compiled_changes = update_once(compiled=True)
    assert compiled_losses == pytest.approx(eager_losses, rel=1e-4)
    names = sorted(eager_changes)
    assert total_error([compiled_changes[n] for n in names], [eager_changes[n] for n in names]) < 1e-3
    assert sum(float(eager_changes[n].norm()) for n in names) > 0
