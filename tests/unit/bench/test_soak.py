"""Streaming over a network that fails: nothing is lost or repeated, and the ledger would notice if it were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ali_dist.data.batch import DataBatch
from ali_dist.data.order import DataOrder
from tests.bench.soak import Ledger, format_soak, soak
from tests.helpers.layouts import make_sample


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ten_seconds_of_faults_and_restarts_lose_and_repeat_nothing() -> None:
    ledger, restarts, server = soak(10, fault_rate=0.05, seed=1)
    table = format_soak(ledger, restarts, server)
    assert ledger.is_right, table
    assert ledger.step > 0, table
    assert server.faults.total() > 5, table
    assert len(restarts.world_sizes) > 1, table


def make_part(ids: list[int], *, wrong: bool = False) -> DataBatch:
    x = torch.from_numpy(np.stack([make_sample(id_ + wrong, 4) for id_ in ids]))
    return DataBatch(x, torch.tensor([id_ % 10 for id_ in ids]), np.array(ids))


def test_the_ledger_notices_what_is_lost_repeated_or_wrong() -> None:
    order = DataOrder(shard_samples=(5,), sample_bytes=1, seed=0, lanes=1, global_batch_size=2, window_bytes=9)
    for steps, found in [
        ([[0, 1], [2, 3]], (0, 0, 0)),
        ([[0, 1], [2, 2]], (1, 1, 0)),
        ([[0, 1], [0, 1]], (2, 2, 0)),
    ]:
        ledger = Ledger(order)
        for ids in steps:
            ledger.enter([make_part(ids[:1]), make_part(ids[1:])])
        assert (ledger.lost, ledger.repeated, ledger.wrong) == found
        assert ledger.is_right == (found == (0, 0, 0))
    ledger = Ledger(order)
    ledger.enter([make_part([3, 3])])
    assert not ledger.is_right, "a repetition counts before the epoch ends"
    ledger = Ledger(order)
    ledger.enter([make_part([1, 2], wrong=True)])
    assert ledger.wrong == 2
