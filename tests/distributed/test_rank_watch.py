"""A rank that hangs is noticed within the timeout and named; one that works for longer than that is waited for.

Run: `make test ARGS=tests/distributed/test_rank_watch.py`
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World, awaited_by_ranks, waiting_for_ranks
from ali_dist.launchers.rank_watch import RankWatch
from ali_dist.launchers.rendezvous import open_part_of_start
from tests.helpers.distributed import run_distributed
from tests.helpers.processes import ROOT, checkpoint_names, descendants_of, kill_tree, wait_for_condition
from tests.helpers.runs import command_line_for, tiny_config

pytestmark = pytest.mark.distributed

TIMEOUT = 3.0
SLACK_SECONDS = 4.0


def start_watch(
    rank: int, size: int, timeout: float = TIMEOUT, **options
) -> tuple[list[tuple[str, int]], threading.Event]:
    """Watch this rank; what its end would have been, and whether it has come."""
    ends: list[tuple[str, int]] = []
    has_ended = threading.Event()

    def end(sentence: str, code: int) -> None:
        ends.append((sentence, code))
        has_ended.set()

    options.setdefault("store", _get_default_store())
    RankWatch(world=World(rank, rank, size), timeout=timeout, end=end, **options).start()
    return ends, has_ended


def work_longer_than_the_timeout(rank: int, size: int) -> list[tuple[str, int]]:
    ends, _ = start_watch(rank, size)
    if rank == 0:
        time.sleep(2 * TIMEOUT)  # as an evaluation does
    with waiting_for_ranks("an evaluation"):
        dist.barrier()
    with waiting_for_ranks("update 2"):
        dist.barrier()
    return ends


def test_a_rank_that_works_by_itself_for_longer_than_the_timeout_is_waited_for():
    assert run_distributed(work_longer_than_the_timeout, 2, 2) == [[], []]


def hang_in_a_read(rank: int, size: int) -> tuple[list[tuple[str, int]], float]:
    ends, has_ended = start_watch(rank, size)
    dist.barrier()
    began = time.monotonic()
    if rank == 1:
        with awaited_by_ranks("reading data"):
            time.sleep(3 * TIMEOUT)
        return ends, 0.0
    with waiting_for_ranks("update 7"):
        has_ended.wait(10 * TIMEOUT)
    return ends, time.monotonic() - began


def test_a_rank_that_hangs_but_answers_is_shown_with_its_stack():
    (ends, seconds), (of_hanging, _) = run_distributed(hang_in_a_read, 2, 2)
    assert TIMEOUT < seconds < TIMEOUT + SLACK_SECONDS
    [(message, code)] = ends
    assert code == 1
    sentence, _, stacks = message.partition("\n")
    assert re.match(r"Rank 0 waited \d s for the other ranks in update 7, longer than .*\(3 s\) allows: ", sentence)
    assert "all ranks answer" in sentence
    of_rank_0, _, of_rank_1 = stacks.partition("Rank 1 is at:")
    assert "has_ended.wait" in of_rank_0
    assert "time.sleep(3 * TIMEOUT)" in of_rank_1
    assert of_hanging == []


def hang_at_once(rank: int, size: int, keeps_store: bool) -> tuple[list[tuple[str, int]], float]:
    common = _get_default_store()
    store: Store = common
    if keeps_store:
        if rank == 0:
            kept = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
            common.set("port", str(kept.port))
            store = kept
        else:
            store = dist.TCPStore("127.0.0.1", int(common.get("port")), is_master=False)  # type: ignore[attr-defined]
    if rank == 0:
        common.set("process", str(os.getpid()))
    ends, has_ended = start_watch(rank, size, store=store, kill=lambda _: None)
    dist.barrier()
    if rank == 0:
        time.sleep(1)  # and for as long as it is stopped
        return [], 0.0
    hanging = int(common.get("process"))
    os.kill(hanging, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with waiting_for_ranks("update 1"):
            has_ended.wait(10 * TIMEOUT)
    finally:
        os.kill(hanging, signal.SIGCONT)
    return ends, time.monotonic() - began


@pytest.mark.parametrize("keeps_store", [False, True])
def test_a_rank_that_hangs_before_anybody_waited_for_it_is_noticed_in_time(keeps_store):
    """With rank 0 may hang the store over which ranks hear of each other, so that no beat of anybody comes any more."""
    _, ([(sentence, code)], seconds) = run_distributed(hang_at_once, 2, 2, keeps_store)
    assert (code, TIMEOUT < seconds < TIMEOUT + SLACK_SECONDS) == (1, True)
    assert re.match(r"Rank 1 waited \d s for the other ranks in update 1, .*: rank 0 ", sentence)


def wait_for_a_silent_rank(rank: int, size: int) -> tuple[list[tuple[str, int]], float]:
    if rank == 1:
        watch = RankWatch(world=World(rank, rank, size), store=_get_default_store(), timeout=60, end=print)
        watch.start()
        dist.barrier()
        time.sleep(3)
        watch.stop()  # a process that is stopped beats no more
        time.sleep(9)
        return [], 0.0
    asked = threading.Event()
    ends, has_ended = start_watch(rank, size, timeout=60, stop_requested=asked.is_set, kill=print)
    dist.barrier()
    with waiting_for_ranks("update 7"):
        time.sleep(6)
        assert not ends
        asked.set()
        began = time.monotonic()
        has_ended.wait(30)
    return ends, time.monotonic() - began


def test_a_rank_that_is_asked_to_stop_waits_no_longer_for_one_that_does_not_answer():
    ([(sentence, code)], seconds), _ = run_distributed(wait_for_a_silent_rank, 2, 2)
    assert (code, seconds < 5) == (75, True)
    assert "and was asked to stop: rank 1 (process " in sentence


def ask_one_to_stop(rank: int, size: int) -> bool:
    asked = threading.Event()
    if rank == 1:
        asked.set()
    start_watch(rank, size, stop_requested=asked.is_set, request_stop=asked.set)
    if rank == 0:
        return asked.wait(10)
    time.sleep(2)
    return True


def test_a_request_to_stop_reaches_a_rank_that_works_by_itself():
    assert run_distributed(ask_one_to_stop, 2, 2) == [True, True]


def meet_again(rank: int, size: int) -> list[str]:
    """Two starts with one store; in the second, rank 0 comes long before the other."""
    found = []
    for start in range(2):
        if rank == 1:
            time.sleep(start)
        part = open_part_of_start(PrefixStore("common", _get_default_store()), World(rank, rank, size), 20)
        part.set(f"address-{rank}", f"{start}")
        found.append(part.get(f"address-{1 - rank}").decode())
        dist.barrier()
    return found


def test_ranks_that_are_started_again_do_not_find_what_the_former_ones_left():
    assert run_distributed(meet_again, 2, 2) == [["0", "1"], ["0", "1"]]


def test_a_stopped_process_is_named_and_the_run_goes_on_from_the_newest_checkpoint(tmp_path):
    ensure_prepared("digits", str(tmp_path / "data"))
    config = tiny_config(
        tmp_path, run__images=24 * 120, report__checkpoint_every=24 * 10, scale__collective_timeout=TIMEOUT
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "ali_dist.train", *command_line_for(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    try:
        wait_for_condition(process, lambda: len(checkpoint_names(config)) > 0, log)
        ranks = [pid for pid in descendants_of(process.pid) if is_rank(pid, 1)]
        os.kill(ranks[0], signal.SIGSTOP)
        began = time.monotonic()
        wait_for_condition(process, lambda: b"for the other ranks in" in log.read_bytes(), log)
        assert time.monotonic() - began < TIMEOUT + SLACK_SECONDS
        assert process.wait(120) == 0, log.read_text()
    finally:
        kill_tree(process)
    assert f"rank 1 (process {ranks[0]} on " in log.read_text()
    assert "Continuing from the checkpoint" in log.read_text()
    assert "step-000000120" in checkpoint_names(config)


def is_rank(pid: int, rank: int) -> bool:
    return f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
