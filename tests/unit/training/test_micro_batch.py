"""A batch in parts: their gradients add up to the whole's, with the same dropout, and what does not add up is refused.

Run: `make test ARGS=tests/unit/training/test_micro_batch.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.distributed import World
from ali_dist.errors import InputError
from ali_dist.training.state import build_train_state
from ali_dist.training.step import TrainBatch, loss_weights_at
from tests.helpers.networks import relative_error
from tests.helpers.runs import index_without_shards

CPU = torch.device("cpu")
BATCH = 12
NO_PENALTY = {"objective__r1": 0, "objective__r2": 0}


def make_config(preset: str, **changes: Any) -> Config:
    """Networks for points, which have no batch norm; names in `changes` have `__` where settings have a dot."""
    small = {"model.width": 0.1, "data.global_batch_size": BATCH, "data.lanes": 1, "model.discriminator_dropout": 0.3}
    return from_mapping(load_preset(preset), small, {key.replace("__", "."): v for key, v in changes.items()})


def gradients_of_update(config: Config) -> tuple[list[torch.Tensor], list[float]]:
    """The gradients and the losses of the seventh update of one fixed batch of points."""
    state = build_train_state(config, index_without_shards((2,)), CPU, World())
    recorded: list[torch.Tensor] = []
    parameters = [p for p in state.ali.parameters() if p.requires_grad]

    def record_gradients() -> None:
        recorded.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)

    state.step.update_parameters = record_gradients  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    x, z, epsilon = torch.randn(3, BATCH, 2, generator=generator)
    state.step.start_update(6)
    result = state.update(TrainBatch(x, z, epsilon), loss_weights_at(config.objective, 0, 1.0))
    return recorded, [float(value) for value in result]


def smallest_norm(gradients: list[torch.Tensor]) -> float:
    """A thousandth of the whole gradient: relativistic losses have a bias whose gradient is 0 but for rounding."""
    return 1e-3 * float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective__loss": "nonsaturating", **NO_PENALTY},
        {"objective__update": "coupled", **NO_PENALTY},
        {"objective__unary": True, **NO_PENALTY},
    ],
    ids=["penalised", "scaled", "coupled", "unary"],
)
def test_gradients_and_losses_of_parts_are_those_of_the_whole(changes: dict[str, Any], size: int) -> None:
    """Also where the last part is smaller."""
    whole, losses = gradients_of_update(make_config("mixture", **changes))
    parts, losses_of_parts = gradients_of_update(make_config("mixture", scale__micro_batch=size, **changes))
    assert sum(float(gradient.norm()) for gradient in whole) > 0
    assert relative_error(parts, whole, smallest_norm(whole)) < 1e-5
    assert losses_of_parts == pytest.approx(losses, rel=1e-5, abs=1e-6)


def test_packs_stay_whole() -> None:
    changes = {"objective__packing": 2}
    whole, _ = gradients_of_update(make_config("mixture", **changes))
    parts, _ = gradients_of_update(make_config("mixture", scale__micro_batch=4, **changes))
    assert relative_error(parts, whole, smallest_norm(whole)) < 1e-5


@pytest.mark.parametrize(
    ("preset", "changes", "names"),
    [
        ("mixture", {"objective__packing": 2, "scale__micro_batch": 3}, ("scale.micro_batch is 3", "packs of 2")),
        ("mixture", {"objective__update": "alternating", "scale__micro_batch": 3}, ("'alternating'", "'auto'")),
        ("mixture-paper", {"scale__micro_batch": 3}, ("'mixture-paper' has batch norm", "scale.batch_norm to 'local'")),
    ],
)
def test_parts_that_do_not_add_up_are_refused(preset: str, changes: dict[str, Any], names: tuple[str, ...]) -> None:
    config = make_config(preset, **changes)
    with pytest.raises(InputError) as refusal:
        build_train_state(config, index_without_shards((2,)), CPU, World())
    for name in names:
        assert name in str(refusal.value)


def test_batch_norm_over_each_part_is_taken_where_it_is_asked_for() -> None:
    config = make_config("mixture-paper", scale__micro_batch=3, scale__batch_norm="local")
    gradients, _ = gradients_of_update(config)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
