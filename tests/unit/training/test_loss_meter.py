"""What is recorded of training from one record to the next.

Run: `make test ARGS=tests/unit/training/test_loss_meter.py`
"""

from __future__ import annotations

import math

import pytest
import torch

from ali_dist.distributed import World
from ali_dist.training.loss_meter import LossMeter
from ali_dist.training.step import StepResult
from tests.helpers.networks import CPU

IMAGES = 8


def record_of(d_loss: float, loss: str = "nonsaturating", **options: int) -> dict[str, float]:
    """The record of one update of 8 images, whose mean loss of D is `d_loss`."""
    meter = LossMeter(loss, CPU, World(), **options)
    meter.start(0, 0.0)
    zeros = dict.fromkeys(StepResult._fields, torch.zeros(()))
    meter.add(StepResult(**{**zeros, "d_loss": torch.tensor(IMAGES * d_loss)}))
    return meter.take(IMAGES, 0.0)


@pytest.mark.parametrize(
    ("d_loss", "logits", "jsd"),
    [(0.0, 1, math.log(2)), (2 * math.log(2), 1, 0.0), (2.5, 1, 0.0), (3 * math.log(2), 3, math.log(2) / 2)],
    ids=["certain", "chance", "worse than chance", "unary scores"],
)
def test_a_record_has_the_divergence_that_the_loss_of_d_bounds(d_loss: float, logits: int, jsd: float) -> None:
    record = record_of(d_loss, logits=logits)
    assert record["d_loss"] == pytest.approx(d_loss)
    assert record["jsd"] == pytest.approx(jsd, abs=1e-6)


def test_a_record_has_no_divergence_where_no_loss_bounds_it() -> None:
    """Relativistic pairs and the hinge do not, and without D there is none."""
    assert "jsd" not in record_of(1.0, "relativistic")
    assert "jsd" not in record_of(1.0, "hinge")
    assert "jsd" not in record_of(2 * math.log(2), logits=0)


def test_a_record_has_the_penalty_of_each_side_and_of_both() -> None:
    meter = LossMeter("nonsaturating", CPU, World())
    meter.start(0, 0.0)
    zeros = dict.fromkeys(StepResult._fields, torch.zeros(()))
    meter.add(StepResult(**{**zeros, "penalty_q": torch.tensor(2.0 * IMAGES), "penalty_p": torch.tensor(3.0 * IMAGES)}))
    record = meter.take(IMAGES, 0.0)
    assert (record["penalty_q"], record["penalty_p"], record["penalty"]) == (2.0, 3.0, 5.0)
