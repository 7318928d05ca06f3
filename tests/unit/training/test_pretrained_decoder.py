"""An encoder for a finished decoder: what is learned, what must stay as it is, and which decoders are refused.

Run: `make test ARGS=tests/unit/training/test_pretrained_decoder.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ali_dist.config import Config
from ali_dist.distributed import World
from ali_dist.errors import InputError, Stopped
from ali_dist.inference.load import load_run
from ali_dist.runs.datasets import open_run_data
from ali_dist.training.loop import fit
from ali_dist.training.state import build_train_state
from tests.helpers.arrays import write_arrays
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, load_weights, tiny_config
from tests.helpers.trained import labelled_images, run_folder, trained

NO_CYCLES = {"objective__cycle_x": 0, "objective__cycle_samples": 0}
INVERSE = {**NO_CYCLES, "objective__game": "inverse", "objective__r1": 0, "objective__r2": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return labelled_images(tmp_path_factory.mktemp("images"), "classes")


@pytest.fixture(scope="module")
def source(tmp_path_factory, data) -> Config:
    """A finished run with averages, and with batch norm in its decoder."""
    return trained(tmp_path_factory.mktemp("source"), data, "source", run__images=48)


def with_decoder_of(source: Config, folder: Path, **changes: Any) -> Config:
    """Configure a run on the same data that takes its decoder from the run `source`."""
    same_data = {"data__url": source.data.url, "data__source": "none", "run__images": 96}
    return tiny_config(folder, **{**same_data, "model__decoder_from": str(run_folder(source)), **changes})


def select_network(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: t for key, t in tensors.items() if key.startswith(f"{name}.")}


def build_initial_weights(config: Config) -> dict[str, Tensor]:
    """Build the networks as they are before the first update."""
    index = open_run_data(config).train.index
    return dict(build_train_state(config, index, torch.device("cpu"), World()).ali.state_dict())


def weights_moved(config: Config, name: str) -> list[bool]:
    """Whether each weight of a network differs from its initial value."""
    after = select_network(load_weights(config), name)
    before = select_network(build_initial_weights(config), name)
    return [not torch.equal(after[key], t) for key, t in before.items() if "running" not in key and "num_" not in key]


@pytest.mark.parametrize(
    ("changes", "trains_d"),
    [(NO_CYCLES, True), ({"objective__cycle_x": 1.0, "objective__update": "alternating"}, True), (INVERSE, False)],
    ids=["ali", "ali-alternating-cycle", "inverse"],
)
def test_the_decoder_stays_as_it_is_bit_for_bit_while_the_others_learn(tmp_path, source, changes, trains_d):
    """Its weights, its batch-norm statistics and its average do, also after the run was stopped and continued."""
    taken = select_network(load_weights(source, "ema"), "decoder")
    assert any("running_mean" in name for name in taken)
    config = with_decoder_of(source, tmp_path, **changes)
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=2))
    assert_bitwise_equal(select_network(load_weights(config), "decoder"), taken)
    fit(config, StoppingContext())
    for file in ("model", "ema"):
        assert_bitwise_equal(select_network(load_weights(config, file), "decoder"), taken)
    assert not any(weights_moved(config, "decoder"))
    assert all(weights_moved(config, "encoder"))
    assert all(weights_moved(config, "discriminator")) if trains_d else not any(weights_moved(config, "discriminator"))
    optimized = {name.partition(".")[0] for name in load_weights(config, "optimizer")}
    assert optimized == ({"encoder", "discriminator"} if trains_d else {"encoder"})


def test_an_inverse_run_that_is_stopped_continues_bit_for_bit(tmp_path, source):
    unbroken, broken = (with_decoder_of(source, tmp_path, run__name=name, **INVERSE) for name in ("unbroken", "broken"))
    fit(unbroken, StoppingContext())
    with pytest.raises(Stopped):
        fit(broken, StoppingContext(stop_before=1))
    fit(broken, StoppingContext())
    for file in ("model", "optimizer", "ema"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(broken, file))


def test_the_decoder_is_the_average_that_users_of_the_run_see(source, tmp_path):
    """Where the run keeps no average, it is the decoder itself."""
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    config = with_decoder_of(source, tmp_path, **INVERSE, run__images=24)
    fit(config, StoppingContext())
    with torch.inference_mode():
        of_source, of_taker = (load_run(str(run_folder(c))).model.decode(z) for c in (source, config))
    assert torch.equal(of_source, of_taker)
    raw = trained(tmp_path, Path(source.data.url), "raw", run__images=24, optim__ema_half_life=0)
    taken = select_network(build_initial_weights(with_decoder_of(raw, tmp_path)), "decoder")
    assert_bitwise_equal(taken, select_network(load_weights(raw), "decoder"))


def test_the_inverse_mapping_learns_to_invert(tmp_path, source):
    """The mean squared error of E(G(z)) falls below half of that of an encoder which always gives 0."""
    config = with_decoder_of(source, tmp_path, **INVERSE, run__images=2400, optim__lr_g=3e-3, report__log_every=2400)
    fit(config, StoppingContext())
    z = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model = load_run(str(run_folder(config))).model
        error = (model.encode(model.decode(z))[0] - z).square().mean().item()
    assert error < 0.5


# ---- refusals ------------------------------------------------------------------------------------------------------


def refuse_run(config: Config) -> str:
    """Start a run that must be refused; returns the sentence that refuses it."""
    with pytest.raises(InputError) as refused:
        fit(config, StoppingContext())
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("place", ["nowhere", "empty", "data"])
def test_a_place_without_a_checkpoint_is_refused(tmp_path, source, place):
    (tmp_path / "empty").mkdir()
    folder = source.data.url if place == "data" else str(tmp_path / place)
    message = refuse_run(with_decoder_of(source, tmp_path, model__decoder_from=folder))
    assert f"model.decoder_from is {folder!r}" in message
    assert "runs/NAME" in message


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model__latent_size": 5}, "model.latent_size 4"),
        ({"model__width": 0.5}, "model.width 0.25"),
        ({"model__architecture": "rgb32", "data__image_size": 32}, "model.architecture 'digits'"),
    ],
)
def test_a_decoder_of_another_model_is_refused(tmp_path, source, changes, difference):
    message = refuse_run(with_decoder_of(source, tmp_path, **changes))
    assert difference in message
    assert str(run_folder(source)) in message


def test_a_conditional_decoder_is_refused_by_its_condition(tmp_path, data):
    conditional = trained(tmp_path, data, "conditional", run__images=24, model__condition="classes")
    assert "model.condition 'classes'" in refuse_run(with_decoder_of(conditional, tmp_path))


def test_a_decoder_with_the_same_layers_but_another_range_is_refused(tmp_path):
    """The networks of the two mixtures have the same shapes, but divide points by different numbers."""
    points = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    write_arrays(tmp_path / "points" / "train", points, None)
    same_data = {"data__url": str(tmp_path / "points"), "data__source": "none", "run__images": 24}
    ring = tiny_config(tmp_path, "mixture-ring", run__name="ring", **same_data)
    fit(ring, StoppingContext())
    grid = tiny_config(tmp_path, "mixture-posthoc", **same_data, model__decoder_from=str(run_folder(ring)))
    assert "model.architecture 'mixture-ring'" in refuse_run(grid)


def test_a_run_is_not_continued_with_another_decoder(tmp_path, source):
    with pytest.raises(Stopped):
        fit(with_decoder_of(source, tmp_path, **NO_CYCLES), StoppingContext(stop_before=1))
    elsewhere = trained(tmp_path, Path(source.data.url), "elsewhere", run__images=24)
    message = refuse_run(with_decoder_of(elsewhere, tmp_path, **NO_CYCLES))
    assert "model.decoder_from" in message
    assert "--run.name" in message
