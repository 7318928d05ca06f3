"""A long stream over a network that fails: `python -m tests.bench.soak [--seconds 180] [--fault-rate 0.05]`.

Ranks stream from an S3 server on loopback that breaks one request in twenty: refused with 503, reset, cut short, silent
until the client gives up, or with wrong bytes. Again and again all ranks are stopped, often in the middle of a step as
by a lost machine, and another number of them goes on from the last step that all had finished. A ledger has the samples
of every finished step: at the end of each epoch none may be lost, and none may have come twice. The exit code is 1 if
that does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from ali_dist.cli import number_type, whole_number_type
from ali_dist.data.batch import BatchSource, DataBatch
from ali_dist.data.loader import make_order, open_batches
from ali_dist.data.order import DataOrder
from ali_dist.data.shards.index import Index, load_index
from ali_dist.errors import InputError, StorageError
from ali_dist.storage import Store, open_store
from ali_dist.storage.s3 import S3Store
from tests.helpers.fault_server import ENV, Fault, FaultServer
from tests.helpers.layouts import read_ids, write_layout

BUCKET = "soak"
SHARD_SAMPLES = (400, 3, 0, 150, 1, 80, 260, 0, 31, 77, 500, 2, 120)  # uneven, some of them empty
SAMPLE_BYTES = 2_000
SIZES: dict[str, Any] = {"seed": 0, "lanes": 8, "global_batch_size": 32, "window_mb": 0.1}
TIMEOUT_SECONDS = 0.5  # how long the client waits for a silent answer
LONGEST_STRETCH = 40  # steps between two restarts


class FailingServer(FaultServer):
    """A server that breaks requests at random."""

    def __init__(self, fault_rate: float, seed: int) -> None:
        super().__init__()
        self.fault_rate = fault_rate
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        # Ranks that are stopped leave while they are being answered: nothing to report.
        setattr(self._http, "handle_error", lambda *details: None)  # noqa: B010  (it is a method of the class)

    def take_fault(self, name: str) -> Fault | None:
        """Choose a fault for one request in 1 / `fault_rate`."""
        if name not in self.objects or self._random.random() >= self.fault_rate:
            return None
        after = self._random.randrange(len(self.objects[name]))
        fault = self._random.choice(
            [
                Fault("status", status=503),
                Fault("reset", after=after),
                Fault("short", after=after),
                Fault("stall", after=after),
                Fault("garbage", after=after),
            ]
        )
        self.faults[fault.kind] += 1
        return fault


@dataclass
class Ledger:
    """The samples of every finished step, epoch by epoch.

    Attributes:
        order: The order of the samples, which says how many an epoch leaves out.
        step: The next global step.
        lost: Samples that an epoch did not give, beyond those that do not fill a batch.
        repeated: Samples that an epoch gave once more.
        wrong: Samples whose content or label is another one's.
        samples: All samples of finished steps.
    """

    order: DataOrder
    step: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    samples: int = 0
    _epoch: Counter[int] = field(default_factory=Counter)

    def enter(self, parts: Sequence[DataBatch]) -> None:
        """Enter a step that all ranks have finished."""
        for part in parts:
            ids = part.ids.tolist()
            assert part.y is not None
            labels = part.y.tolist()
            found = read_ids(part.x.numpy())
            self.wrong += sum(a != b or y != a % 10 for a, b, y in zip(ids, found, labels, strict=True))
            self._epoch.update(ids)
            self.samples += len(ids)
        self.step += 1
        self._count_repeated()

    def _count_repeated(self) -> None:
        if self.step % self.order.steps_per_epoch:
            return
        given = len(self._epoch)
        self.repeated += self._epoch.total() - given
        self.lost += self.order.num_samples - self.order.dropped_per_epoch - given
        self._epoch.clear()

    @property
    def is_right(self) -> bool:
        """Whether every sample so far came once, with its own content; those of an epoch under way, at most once."""
        under_way = self._epoch.total() - len(self._epoch)
        return not (self.lost or self.repeated or self.wrong or under_way)


@dataclass
class Restarts:
    """How often ranks were stopped, in the middle of a step and otherwise, gave up, and how many went on."""

    between_steps: int = 0
    within_a_step: int = 0
    gave_up: int = 0
    world_sizes: Counter[int] = field(default_factory=Counter)


def run_stretch(ledger: Ledger, store: Store, index: Index, chance: random.Random, until: float) -> tuple[int, bool]:
    """Open some ranks at the ledger's step, and let them finish some steps; then stop them.

    Returns:
        The number of ranks, and whether they were stopped within a step.
    """
    world_size = chance.randint(1, SIZES["lanes"])
    with ExitStack() as stack:
        sources = [
            stack.enter_context(_open_rank(store, index, rank, world_size, ledger.step)) for rank in range(world_size)
        ]
        for _ in range(chance.randint(1, LONGEST_STRETCH)):
            if time.monotonic() > until:
                break
            ledger.enter([next(source) for source in sources])
        within = chance.random() < 0.5
        if within:
            for source in sources[: chance.randint(1, world_size)]:
                next(source)  # some ranks have this step, and the others never get it: it is not in the ledger
    return world_size, within


def _open_rank(store: Store, index: Index, rank: int, world_size: int, start_step: int) -> BatchSource:
    return open_batches(
        store,
        index,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        device=torch.device("cpu"),
        residency="stream",
        prefetch=2,
        **SIZES,
    )


def soak(seconds: float, fault_rate: float, seed: int) -> tuple[Ledger, Restarts, FailingServer]:
    """Stream for some seconds; the ledger tells whether everything came once."""
    logging.getLogger("ali_dist.storage.s3").setLevel(logging.ERROR)  # hundreds of retries are what this is about
    os.environ.update(ENV)
    memory, _ = write_layout(SHARD_SAMPLES, sample_bytes=SAMPLE_BYTES)
    server = FailingServer(fault_rate, seed)
    with server:
        server.serve_objects({f"{BUCKET}/{info.key}": memory.get(info.key) for info in memory.list()})
        opened = open_store(
            f"s3://{BUCKET}", endpoint_url=server.endpoint_url, timeout_seconds=TIMEOUT_SECONDS, attempts=8
        )
        store = dataclasses.replace(cast(S3Store, opened), wait_seconds=0.005)
        index = load_index(store)
        ledger = Ledger(make_order(index, **SIZES))
        restarts = Restarts()
        chance = random.Random(seed)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                world_size, within = run_stretch(ledger, store, index, chance, until)
            except (
                InputError,
                StorageError,
            ) as error:  # the same bytes came wrong twice in a row, or every try of a request failed
                print(f"Ranks gave up at step {ledger.step}, and start again: {error}", file=sys.stderr)
                restarts.gave_up += 1
                continue
            restarts.world_sizes[world_size] += 1
            restarts.within_a_step += within
            restarts.between_steps += not within
    return ledger, restarts, server


def format_soak(ledger: Ledger, restarts: Restarts, server: FailingServer) -> str:
    """Format the result as aligned plain text."""
    names = {"status": "503", "short": "cut short", "stall": "silent", "garbage": "wrong bytes"}
    faults = ", ".join(f"{count} {names.get(kind, kind)}" for kind, count in sorted(server.faults.items()))
    epochs, steps = divmod(ledger.step, ledger.order.steps_per_epoch)
    rows = {
        "epochs": f"{epochs} and {steps} of {ledger.order.steps_per_epoch} steps of another one",
        "samples": f"{ledger.samples:,}",
        "world sizes": ", ".join(f"{size} ({times}x)" for size, times in sorted(restarts.world_sizes.items())),
        "stops between steps": str(restarts.between_steps),
        "stops within a step": str(restarts.within_a_step),
        "ranks gave up": str(restarts.gave_up),
        "requests": f"{len(server.requests):,}",
        "broken requests": f"{server.faults.total():,} ({faults})",
        "lost samples": str(ledger.lost),
        "repeated samples": str(ledger.repeated),
        "wrong samples": str(ledger.wrong),
    }
    return "\n".join(f"{name:<22}{value}" for name, value in rows.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 if a sample was lost, repeated or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=number_type(above=0), default=180.0, help="how long (180)")
    parser.add_argument("--fault-rate", type=number_type(above=0), default=0.05, help="share of broken requests (0.05)")
    parser.add_argument("--seed", type=whole_number_type(0), default=0, help="of faults and stops (0)")
    options = parser.parse_args(arguments)
    ledger, restarts, server = soak(options.seconds, options.fault_rate, options.seed)
    print(format_soak(ledger, restarts, server))
    return 0 if ledger.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
