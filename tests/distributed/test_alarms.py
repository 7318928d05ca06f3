"""Several ranks raise the alarms of one, and roll back together.

Run: `make test ARGS=tests/distributed/test_alarms.py`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World, sum_over_ranks
from ali_dist.training.loop import fit
from ali_dist.training.loss_meter import LossMeter
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import StoppingContext
from tests.helpers.sick_runs import BATCH, collapse_encoder, read_events, sickness, watched_config

pytestmark = pytest.mark.distributed


def train_sick(rank: int, size: int, mappings: list[dict[str, Any]]) -> None:
    """Train one rank of runs that are sick from their 60th to their 175th update."""
    for mapping in mappings:
        with sickness(collapse_encoder, first=60, last=175):
            fit(from_mapping(mapping), StoppingContext(World(rank, rank, size)))


def test_three_ranks_measure_what_one_does_and_roll_back_as_one_does(tmp_path: Path) -> None:
    ensure_prepared("mixture-grid", str(tmp_path / "data"))

    def runs_of(size: int) -> list[Config]:
        # Ranks own 2, 1 and 1 lanes. Adam's epsilon: see test_ranks.py. After 3 updates rounding is all that differs.
        short = watched_config(tmp_path, run__name=f"short-{size}", updates=3, optim__eps=1e-2)
        return [short, watched_config(tmp_path, run__name=f"sick-{size}", run__on_alarm="rollback", optim__eps=1e-2)]

    of_one, of_three = runs_of(1), runs_of(3)
    train_sick(0, 1, [config.to_mapping() for config in of_one])
    run_distributed(train_sick, 3, 3, [config.to_mapping() for config in of_three])
    (mine,), (theirs,) = (read_events(configs[0], "watch") for configs in (of_one, of_three))
    for name in mine.keys() - {"event", "seconds"}:
        assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    for _, sick in (of_one, of_three):
        (rollback,) = read_events(sick, "rollback")
        assert (rollback["alarm"], rollback["step"], rollback["alarm_images"]) == ("encoder_collapsed", 50, 175 * BATCH)
        assert read_events(sick, "train")[-1]["step"] == 200


def test_what_is_measured_goes_in_the_all_reduce_of_the_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One call of `LossMeter.take` for each record, with the probe's numbers beside the losses, and none of its own."""
    from ali_dist.training import health_probe, loss_meter

    assert not hasattr(health_probe, "sum_over_ranks")
    calls: list[int] = []

    def reduce(values: Tensor, world: World) -> Tensor:
        calls.append(len(values))
        return sum_over_ranks(values, world)

    monkeypatch.setattr(loss_meter, "sum_over_ranks", reduce)
    ensure_prepared("mixture-grid", str(tmp_path / "data"))
    config = watched_config(tmp_path, updates=50)
    fit(config, StoppingContext())
    assert len(calls) == len(read_events(config, "train")) == 2
    assert min(calls) > len(LossMeter("hinge", StoppingContext().device, World())._sums)
