"""The helper that every distributed test relies on gives right results, and no failure passes or hangs.

Run: `make test ARGS=tests/distributed/test_helper.py`
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers.distributed import DistributedError, run_distributed

pytestmark = pytest.mark.distributed


def _add_ranks(rank: int, offset: int) -> tuple[int, int, int, torch.Tensor]:
    total = torch.tensor(float(offset + rank))
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), torch.get_num_threads(), total.repeat(1_000_000)


def _raise_on_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("rank one's own reason")
    dist.barrier()


def _die_on_one(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def _hang_on_one(rank: int, folder: str) -> None:
    (Path(folder) / str(rank)).write_text(str(os.getpid()))
    dist.barrier()  # otherwise rank 0 may leave before rank 1 has joined the group, which then fails instead
    if rank == 1:
        time.sleep(3600)


def _return_a_lambda(rank: int) -> object:
    return lambda: rank


def test_results_come_back_in_rank_order_from_one_group() -> None:
    """Each knows its rank, the size of the group and its one thread; a sum over all of them fills 4 MB in each pipe."""
    results = run_distributed(_add_ranks, 3, 10)
    assert [(rank, size, threads) for rank, size, threads, _ in results] == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]
    assert all(torch.equal(total, torch.full((1_000_000,), 33.0)) for *_, total in results)


def test_an_exception_in_one_rank_fails_with_its_traceback_first() -> None:
    """The cause stands before its consequences in other ranks, with the function that raised."""
    with pytest.raises(DistributedError) as caught:
        run_distributed(_raise_on_one, 2)
    message = str(caught.value)
    assert message.startswith("rank 1 raised")
    assert "rank one's own reason" in message
    assert "in _raise_on_one" in message
    assert "rank 0" in message


def test_a_killed_rank_fails_with_its_exit_code() -> None:
    with pytest.raises(DistributedError, match="rank 1 died, exit code -9"):
        run_distributed(_die_on_one, 2)


def test_a_hanging_rank_is_killed_and_fails(tmp_path: Path) -> None:
    """The call ends soon after the timeout, names the rank that hung, and leaves no process behind."""
    with pytest.raises(DistributedError, match=r"rank 0 returned\nrank 1 was still running and was killed"):
        run_distributed(_hang_on_one, 2, str(tmp_path), timeout=20)
    assert not multiprocessing.active_children()
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_a_result_that_cannot_be_sent_is_a_failure() -> None:
    with pytest.raises(DistributedError, match="rank 0 raised"):
        run_distributed(_return_a_lambda, 1)
