"""Whole runs on a GPU: every precision, going on from a checkpoint, data that live on the device, compiled networks.

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
from ali_dist.training.step import TrainBatch, loss_weights_at
from tests.helpers.arrays import write_arrays
from tests.helpers.batches import B, X, Y, assert_same_batches, open_batch_source, take_batches
from tests.helpers.networks import state_of, total_error
from tests.helpers.runs import StoppingContext, newest_checkpoint, tiny, weights
from tests.helpers.runs import assert_same as assert_same_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
CUDA = torch.device("cuda", 0)
PRECISIONS = ["fp32", "bf16", "fp16"]
Make = Callable[..., Config]


@pytest.fixture(autouse=True)
def _same_kernels() -> Iterator[None]:
    """Kernels that compute fp32 in fp32 (no TF32) and the same way each time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path, digits: Path) -> Make:
    def make(**changes: Any) -> Config:
        return tiny(tmp_path, **{"data__url": str(digits), "scale__device": "cuda", **changes})

    return make


def finish(config: Config, stop_before: int | None = None) -> Record | None:
    context = StoppingContext(stop_before=stop_before)
    context.device = CUDA
    return fit(config, context)


def records(config: Config) -> list[dict[str, Any]]:
    lines = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == "train"]


def skip_unless_computed(precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_in_each_precision_plays_the_game_of_fp32(run: Make, precision: str) -> None:
    """It ends, moves every network, keeps its data on the GPU, and its losses are those of fp32 but for rounding."""
    skip_unless_computed(precision)
    full, half = run(run__name="full", scale__precision="fp32"), run(run__name="half", scale__precision=precision)
    finish(full)
    summary = finish(half)
    assert summary is not None
    assert (summary["status"], summary["images"], summary["residency"]) == ("finished", 192, "device")
    for mine, theirs in zip(records(half), records(full), strict=True):
        for name in ("d_loss", "g_loss", "cycle"):
            assert mine[name] == pytest.approx(theirs[name], rel=0.05), name
    fresh = build_train_state(half, open_run_data(half).train.index, CUDA, World()).ali.state_dict()
    unmoved = {name for name, now in weights(half).items() if torch.equal(now, fresh[name].cpu())}
    assert unmoved <= {"discriminator.d_xz.layers.2.0.bias"}  # differences of logits do not depend on it


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"objective__r1": 0, "objective__r2": 0, "model__discriminator_dropout": 0.3}],
    ids=["penalised", "dropout"],
)
def test_a_stopped_run_that_goes_on_equals_an_unbroken_one(run: Make, precision: str, changes: dict[str, Any]) -> None:
    """Bit for bit: weights, averages, Adam's state; the loss scale of fp16 comes along."""
    skip_unless_computed(precision)
    unbroken, broken = (run(run__name=name, scale__precision=precision, **changes) for name in ("unbroken", "broken"))
    finish(unbroken)
    with pytest.raises(Stopped):
        finish(broken, stop_before=3)
    assert newest_checkpoint(broken).name == "step-000000003"
    finish(broken)
    for file in ("model", "optimizer", "ema"):
        assert_same_weights(weights(unbroken, file), weights(broken, file))
    states = [json.loads((newest_checkpoint(c) / "state.json").read_text()) for c in (unbroken, broken)]
    assert states[0]["precision"] == states[1]["precision"]
    assert bool(states[0]["precision"]) == (precision == "fp16")


def test_a_run_of_the_gpu_goes_on_on_the_cpu(run: Make) -> None:
    """A checkpoint does not say where it was computed."""
    with pytest.raises(Stopped):
        finish(run(), stop_before=4)
    summary = fit(run(scale__device="cpu"), StoppingContext())
    assert summary is not None
    assert (summary["status"], summary["images"], summary["restarts"]) == ("finished", 192, 1)


@pytest.mark.parametrize("residency", ["device", "ram", "stream"])
def test_batches_on_the_gpu_are_those_on_the_cpu(tmp_path: Path, residency: str) -> None:
    """Wherever samples live meanwhile; over a change of epoch, and taken faster than the GPU copies them."""
    store, index = write_arrays(tmp_path, X, Y)
    count = len(X) // B + 4
    with open_batch_source(store, index, residency=residency, device=CUDA) as source:
        assert source.residency == residency
        batches = [next(source) for _ in range(count)]
    assert all(batch.x.device == CUDA and batch.y is not None and batch.y.device == CUDA for batch in batches)
    found = [(b.ids.tolist(), np.asarray(b.x.cpu()), b.y.tolist()) for b in batches if b.y is not None]
    assert_same_batches(found, take_batches(open_batch_source(store, index), count))


def test_auto_residency_takes_the_gpu_while_the_data_fit(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, X, Y)
    with open_batch_source(store, index, residency="auto", device=CUDA) as source:
        assert source.residency == "device"
    with open_batch_source(store, index, residency="auto", device=CUDA, memory_mb=0) as source:
        assert source.residency == "stream"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("update", ["scaled", "penalised", "coupled"])
def test_compiled_networks_take_the_same_step(run: Make, update: str) -> None:
    """Equal losses and, in fp32, equal weights but for rounding, after one update of plain gradient descent."""

    def one_update(compiled: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        penalty = 0.5 if update == "penalised" else 0
        config = run(
            scale__compile=compiled,
            scale__precision="fp32",
            objective__r1=penalty,
            objective__r2=penalty,
            objective__update=update,
        )
        players = build_train_state(config, open_run_data(config).train.index, CUDA, World())
        # Adam's first update is a sign, in which rounding of a gradient near 0 shows in full.
        players.step.optimizer = torch.optim.SGD(players.ali.parameters(), lr=0.1)
        before = state_of(players.ali)
        g = torch.Generator().manual_seed(0)
        x = torch.rand(24, *players.space.model_shape, generator=g).to(CUDA)
        z, epsilon = torch.randn(2, 24, config.model.latent_size, generator=g).to(CUDA)
        losses = [
            float(loss) for loss in players.step(TrainBatch(x, z, epsilon), loss_weights_at(config.objective, 0, 1.0))
        ]
        after = state_of(players.ali)
        return losses, {name: (after[name] - before[name]).float() for name in after}

    (losses, moved), (compiled_losses, compiled_moved) = one_update(False), one_update(True)
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    names = sorted(moved)
    assert total_error([compiled_moved[n] for n in names], [moved[n] for n in names]) < 1e-3
    assert sum(float(moved[n].norm()) for n in names) > 0
