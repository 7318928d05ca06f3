"""The estimate of an update's memory is what a backward pass really keeps, and the advice fits the GPU.

Run: `make test ARGS=tests/unit/training/test_memory.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.distributed import World
from ali_dist.errors import TrainingError
from ali_dist.model.build import build_networks
from ali_dist.model.data_spec import DataSpec
from ali_dist.training import loop
from ali_dist.training.memory import MemoryEstimate, advise_on_memory, estimate_memory
from ali_dist.training.update_rules import UPDATE_RULES

DIGITS = DataSpec((1, 8, 8), classes=tuple("0123456789"))
GIB = 2**30


def estimate_for(rule: str, **changes: Any) -> MemoryEstimate:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return estimate_memory(from_mapping(load_preset("digits"), named), DIGITS, UPDATE_RULES[rule])


def test_weights_count_16_bytes_and_activations_grow_with_the_networks_and_the_penalty() -> None:
    ali, _ = build_networks(from_mapping(load_preset("digits")), DIGITS, seed=0)
    plain = estimate_for("scaled", objective__r1=0, objective__r2=0)
    assert plain.weights == 16 * sum(p.numel() for p in ali.parameters())
    # At least each network's feature maps once: of D's first convolution alone 32 x 8 x 8 numbers for two images.
    assert plain.per_sample > 2 * 32 * 8 * 8 * 4
    assert estimate_for("penalised").per_sample > 1.02 * plain.per_sample  # the graph of the gradient is kept, too
    wide = estimate_for("scaled", objective__r1=0, objective__r2=0, model__width=2)
    assert 1.5 * plain.per_sample < wide.per_sample < 2.5 * plain.per_sample


def test_conditions_and_packs_are_counted_for() -> None:
    for changes in ({"model__condition": "classes"}, {"objective__packing": 2}):
        assert estimate_for("penalised", **changes).per_sample > 0


def test_the_largest_micro_batch_is_a_power_of_two_that_fits() -> None:
    estimate = MemoryEstimate(weights=GIB, per_sample=10e6)
    largest = estimate.largest_micro_batch(16 * GIB, packing=1, half_precision=False)
    assert largest == 1024
    assert estimate.weights + estimate.activations(largest, half_precision=False) < 16 * GIB
    assert estimate.largest_micro_batch(16 * GIB, packing=1, half_precision=True) == 2048
    assert estimate.largest_micro_batch(16 * GIB, packing=3, half_precision=False) % 3 == 0
    assert estimate.largest_micro_batch(GIB, packing=1, half_precision=False) == 0


@pytest.mark.parametrize(
    ("changes", "size", "parts"),
    [
        ({"scale.batch_norm": "local"}, 1, ("64 samples", "scale.micro_batch to 32, which")),
        ({}, 1, ("scale.micro_batch to 32 and scale.batch_norm to local",)),
        ({}, 2, ("32 samples", "scale.micro_batch to 16")),
        ({"scale.micro_batch": 12, "objective.packing": 4}, 1, ("12 samples", "scale.micro_batch to 4")),
        ({"scale.micro_batch": 1}, 1, ("1 samples", "smaller model.width")),
    ],
)
def test_the_advice_halves_what_is_taken_at_once(changes: dict[str, Any], size: int, parts: tuple[str, ...]) -> None:
    config = from_mapping(load_preset("digits"), {"data.lanes": 4}, changes)
    ali, _ = build_networks(config, DIGITS, seed=0)
    sentence = advise_on_memory(config, ali, World(0, 0, size))
    for part in parts:
        assert part in sentence


def test_a_run_that_runs_out_of_memory_ends_with_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    config = from_mapping(load_preset("digits"))
    ali, _ = build_networks(config, DIGITS, seed=0)

    class Run:
        world = World()
        is_first_update = False

        class progress:  # noqa: N801
            step = 0

        class state:  # noqa: N801
            @staticmethod
            def update(batch: object, weights: object) -> None:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    run: Any = Run()
    run.config = config
    run.state.ali = ali
    unused: Any = None
    with pytest.raises(TrainingError, match=r"set scale\.micro_batch to 32"):
        loop.update_networks(run, unused, unused)
