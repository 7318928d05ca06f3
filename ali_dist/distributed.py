"""Everything that talks between ranks. With one rank all of it does nothing, so that the loop reads the same."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ali_dist.errors import InputError, OutageError, StorageError, TrainingError

_TOLD_ERRORS = (InputError, OutageError, StorageError, TrainingError)  # by name; a class before those above it


@dataclass(frozen=True, slots=True)
class World:
    """This process among all processes of the run."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    @classmethod
    def from_torchrun(cls) -> World | None:
        """The world that torchrun's variables describe; None outside of torchrun."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return None
        return cls(int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["WORLD_SIZE"]))


class Activity(NamedTuple):
    """What a rank's training thread is doing.

    Attributes:
        what: In a few words; empty for work of its own that may take as long as it likes, such as an evaluation.
        waits: Whether it can only end together with the other ranks.
        patience: By what factor it may take longer than other waits.
        since: The value of `time.monotonic` when it began.
    """

    what: str = ""
    waits: bool = False
    patience: float = 1.0
    since: float = 0.0


class _Current:
    activity = Activity()


def current_activity() -> Activity:
    """What the training thread of this process is doing; for the thread that watches the ranks."""
    return _Current.activity


@contextmanager
def waiting_for_ranks(what: str, patience: float = 1.0) -> Iterator[None]:
    """Within the block, this rank works in step with the others: it can only go on if all of them do.

    Whoever watches the ranks bounds that time (`scale.collective_timeout`). Outside of such blocks, a rank may take as
    long as it likes, and the others wait.

    Args:
        what: What is done, in a few words.
        patience: By what factor it may take longer.
    """
    yield from _be_doing(what, True, patience)


@contextmanager
def awaited_by_ranks(what: str) -> Iterator[None]:
    """Within the block, this rank does what the others wait for no longer than for a collective, such as reading."""
    yield from _be_doing(what, False, 1.0)


def _be_doing(what: str, waits: bool, patience: float) -> Iterator[None]:
    before = _Current.activity
    _Current.activity = Activity(what, waits, patience, time.monotonic())
    try:
        yield
    finally:
        _Current.activity = before._replace(since=time.monotonic())


def any_rank(flag: bool, device: torch.device, world: World, what: str = "a vote") -> bool:
    """Whether the flag is set on any rank. Collective.

    Args:
        flag: This rank's.
        device: Where ranks talk.
        world: The ranks.
        what: What is voted on, in a few words, for who is told that a rank did not come.
    """
    if world.size == 1:
        return flag
    with waiting_for_ranks(what):
        vote = torch.tensor([float(flag)], device=device)
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        return bool(vote.item())


def largest_of_ranks(values: list[float], device: torch.device, world: World, what: str) -> list[float]:
    """The largest of all ranks' values, one by one; `what` as in `any_rank`. Collective."""
    if world.size == 1:
        return values
    with waiting_for_ranks(what):
        largest = torch.tensor(values, device=device, dtype=torch.float32)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Sum of `values` over all ranks, in place. Collective."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_texts(texts: list[str], world: World) -> list[str]:
    """All ranks' texts, in rank order. Collective."""
    if world.size == 1:
        return list(texts)
    gathered: list[list[str]] = [[] for _ in range(world.size)]
    with waiting_for_ranks("an exchange of messages"):
        dist.all_gather_object(gathered, texts)
    return [text for part in gathered for text in part]


def raise_on_every_rank(error: Exception | None, device: torch.device, world: World, what: str) -> None:
    """Raise the error of the rank that has one on all of them, which would wait for it otherwise. Collective.

    Args:
        error: This rank's; None: it has none.
        device: Where ranks talk.
        world: The ranks.
        what: What might have failed, in a few words, for who is told that a rank did not come.

    Raises:
        Exception: The error itself on its own rank. On others one that says the same, and is a TrainingError where
            the error is none of `ali_dist.errors`.
    """
    if any_rank(error is not None, device, world, what):
        texts = []
        if error is not None:
            kind = next((kind for kind in _TOLD_ERRORS if isinstance(error, kind)), TrainingError)
            texts = [kind.__name__, str(error)]
        name, text, *_ = gather_texts(texts, world)
        raise error or {kind.__name__: kind for kind in _TOLD_ERRORS}[name](text)


@contextmanager
def failing_together(device: torch.device, world: World, what: str) -> Iterator[None]:
    """Raise on every rank what one of them raises within the block. Collective, and nothing in the block may be.

    For what a rank does by itself and may fail at: if it raised that alone, the others would hear no more of it than
    that a connection was closed, from their next collective.

    Args:
        device: Where ranks talk.
        world: The ranks.
        what: What might have failed; see `raise_on_every_rank`.

    Raises:
        Exception: As `raise_on_every_rank` has it.
    """
    error = None
    try:
        yield
    except Exception as failure:  # noqa: BLE001  (raised below)
        error = failure
    raise_on_every_rank(error, device, world, what)


@torch.no_grad()
def average_buffers(module: nn.Module, share: float, world: World) -> None:
    """Replace batch-norm statistics by their mean over ranks. Collective.

    Running statistics are linear in the batches seen, so when this happens does not change later averages.

    Args:
        module: Whose floating-point buffers are averaged.
        share: This rank's part of the global batch, from 0 to 1; the shares of all ranks add up to 1.
        world: The ranks.
    """
    if world.size == 1:
        return
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if not buffers:
        return
    with waiting_for_ranks("the average of batch norm's statistics"):
        flat = torch.cat([b.flatten() for b in buffers]) * share
        dist.all_reduce(flat)
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
        if flat.is_cuda:
            torch.cuda.synchronize(flat.device)  # or the wait for other ranks would be in whatever comes next


@torch.no_grad()
def check_replicas(module: nn.Module, world: World) -> None:
    """Check that all ranks hold the same weights, bit for bit. Collective.

    Raises:
        RuntimeError: They differ; saving one of them would hide it.
    """
    if world.size == 1:
        return
    with waiting_for_ranks("the comparison of weights"):
        flat = torch.cat([p.detach().flatten() for p in module.parameters()])
        bits = flat.view(torch.int32).to(torch.int64)
        checksum = torch.stack([bits.sum(), (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()])
        low, high = checksum.clone(), checksum.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        are_equal = torch.equal(low, high)
    if not are_equal:
        raise RuntimeError("the ranks' weights differ, so the gradients were not reduced alike; nothing was saved")


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of this rank: auto is the GPU of its number if there is one, else the CPU.

    Raises:
        InputError: A GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("scale.device is 'cuda', but torch sees no GPU here: use 'cpu' or 'auto'.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def choose_backend(name: str, device: torch.device) -> str:
    """gloo or nccl; auto is nccl for GPUs.

    Raises:
        InputError: nccl was asked for on the CPU.
    """
    if name == "nccl" and device.type == "cpu":
        raise InputError("scale.backend is 'nccl', which needs GPUs, but this rank runs on the CPU: use 'auto'.")
    return name if name != "auto" else ("nccl" if device.type == "cuda" else "gloo")
