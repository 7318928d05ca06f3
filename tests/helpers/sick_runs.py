"""Runs of small networks that are made sick: what is spoiled is spoiled anew after every update."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ali_dist.config import Config
from ali_dist.model.ali import ALI
from ali_dist.training.state import TrainState
from tests.helpers.runs import tiny_config

BATCH, LOOK, SAVE = 32, 25, 50
"""Images of an update, and updates between two looks and between two checkpoints."""


def watched_config(folder: Path, preset: str = "mixture", *, updates: int = 200, **changes: Any) -> Config:
    """Configure a run of so many updates that is looked at every 25, and saved every 50."""
    usual = {
        "run__images": updates * BATCH,
        "data__global_batch_size": BATCH,
        "data__lanes": 4,
        "model__latent_size": 2,
        "report__log_every": LOOK * BATCH,
        "report__checkpoint_every": SAVE * BATCH,
    }
    return tiny_config(folder, preset, **{**usual, **changes})


@contextmanager
def sickness(spoil: Callable[[ALI], object], *, first: int = 0, last: int = 10**9) -> Iterator[list[int]]:
    """Spoil the networks after each of the updates `first` to `last` that this process computes, counted from 1.

    Yields:
        A list with the number of updates that have been computed.
    """
    count = [0]
    update = TrainState.update_average

    def update_and_spoil(state: TrainState, decay: float) -> None:
        update(state, decay)
        count[0] += 1
        if first <= count[0] <= last:
            with torch.no_grad():
                spoil(state.ali)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "update_average", update_and_spoil)
        yield count


def _last_linear(network: nn.Module) -> nn.Linear:
    return [m for m in network.modules() if isinstance(m, nn.Linear)][-1]


def _biases(module: nn.Module) -> torch.Tensor:
    """The bias of the last layer, whatever kind it is."""
    return [p for name, p in module.named_parameters() if name.endswith("bias")][-1]


def blind_discriminator(ali: ALI) -> None:
    """D's weights of z are 0."""
    first = next(m for m in ali.discriminator.d_xz.modules() if isinstance(m, nn.Linear))  # type: ignore[union-attr]
    first.weight[:, -2:] = 0


def collapse_encoder(ali: ALI) -> None:
    """sigma is 3e-7 whatever x is."""
    _last_linear(ali.encoder).weight[2:] = 0
    _biases(ali.encoder)[2:] = -15


def move_latents(ali: ALI) -> None:
    """Latents of data lie 5 beside the prior's."""
    _last_linear(ali.encoder).weight[:2] *= 0.1
    _biases(ali.encoder)[:2] = 5


def drop_modes(ali: ALI) -> None:
    """Every sample is the same."""
    _last_linear(ali.decoder).weight.zero_()


def move_samples(ali: ALI) -> None:
    """Every sample is the same, and far from the data."""
    _last_linear(ali.decoder).weight.zero_()
    _biases(ali.decoder)[:] = 20


def cut_discriminator(ali: ALI) -> None:
    """D answers the same whatever it sees."""
    _last_linear(ali.discriminator).weight.zero_()


def stay_healthy(ali: ALI) -> None:
    """Nothing is spoiled."""
    del ali


def folder_of(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name


def read_events(config: Config, event: str) -> list[dict[str, Any]]:
    lines = (folder_of(config) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def raised_names(config: Config) -> list[str]:
    return [record["alarm"] for record in read_events(config, "alarm")]
