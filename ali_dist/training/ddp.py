"""How the three networks are wrapped for DistributedDataParallel."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ali_dist.distributed import World, sum_over_ranks
from ali_dist.model.ali import ALI
from ali_dist.model.batch_norm import BatchNorm
from ali_dist.training.update_rules import UpdateRule


def wrap_for_ddp(ali: ALI, rule: UpdateRule, device: torch.device, world: World) -> nn.Module:
    """`ali` as the ranks' common module: DistributedDataParallel, or `ali` itself for one rank. Collective.

    A rule with one backward pass takes one wrapper, whose reductions overlap the whole pass. One with two takes a
    wrapper for each network, because a reducer expects one backward pass for each forward pass.
    """
    if world.size == 1:
        return ali
    if rule.backward_passes == 1:
        return _wrap_module(ali, device)
    parts = (ali.encoder, ali.decoder, ali.discriminator, ali.embedding)
    wrapped = (None if part is None else _wrap_module(part, device) for part in parts)
    return ali.with_networks(*wrapped)  # type: ignore[arg-type]


def share_batch_norm(ali: ALI, world: World) -> None:
    """Let batch norm use the statistics of the whole global batch; nothing changes for one rank. Local.

    Every rank then runs every forward and backward pass together with the others.
    """
    if world.size == 1:
        return
    for module in ali.modules():
        if isinstance(module, BatchNorm):
            module.sum_over_ranks = partial(sum_over_ranks, world=world)


@contextmanager
def pause_reduction(networks: nn.Module) -> Iterator[None]:
    """Let gradients add up on this rank; the first backward pass after that reduces all of them. Local.

    Args:
        networks: What `wrap_for_ddp` made.
    """
    with ExitStack() as stack:
        for module in networks.modules():
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def _wrap_module(module: nn.Module, device: torch.device) -> nn.Module:
    if not any(p.requires_grad for p in module.parameters()):
        return module  # a frozen decoder: nothing to reduce
    device_ids = [device.index] if device.type == "cuda" else None
    # The weight of a linear layer with one output, [1, n], has two layouts that are the same in memory.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Running statistics are made equal when they are needed (`average_buffers`), not broadcast at every forward pass.
    wrapped = EagerDDP(
        module,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_bytes(module.parameters()) / 2**20,
        **_NO_BROADCAST,
    )
    _settle_buckets(wrapped)
    return wrapped


def bucket_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """With how many bytes a bucket of gradients is full: a quarter of all, from 1 MiB to torch's default of 25 MiB.

    The last bucket is reduced when there is no backward pass left to hide it. Of networks as small as those of ALI,
    torch's default puts nearly all gradients into that one. Each bucket costs the network's latency, so there are few.
    """
    total = sum(p.nbytes for p in parameters if p.requires_grad)
    return min(max(-(-total // _BUCKETS), _LEAST_BUCKET), _LARGEST_BUCKET)


def _settle_buckets(wrapped: DistributedDataParallel) -> None:
    """Bring gradients into the buckets that they keep for the whole run. Collective.

    A reducer divides them anew after its first backward pass, by the order in which they were ready. A gradient of
    three or more ranks is summed in an order that depends on its place in a bucket. So the first update of every start
    would be rounded otherwise than that of a run that was never stopped. Here a backward pass of zeros comes first, in
    the order of most passes: from the last parameter to the first.
    """
    parameters = [p for p in wrapped.module.parameters() if p.requires_grad]
    wrapped.reducer.prepare_for_forward()
    wrapped.reducer.prepare_for_backward([])
    total = torch.zeros((), device=parameters[0].device)
    for parameter in parameters:  # what enters the sum last is ready first
        total = total + 0.0 * parameter.sum()
    total.backward()
    wrapped.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None


class EagerDDP(DistributedDataParallel):
    """torch's DistributedDataParallel, which does not load the compiler.

    torch asks the compiler how it would split this module's graph, and keeps it out of the forward pass by a wrapper;
    both load all of it, a second or more of every rank's start. Here the module itself is never compiled, only its
    parts.

    Args:
        module: See `torch.nn.parallel.DistributedDataParallel`.
        options: Its other arguments.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        with _compiler_kept_out():
            super().__init__(module, **options)

    _inside_ddp_forward = contextmanager(inspect.unwrap(DistributedDataParallel._inside_ddp_forward))


@contextmanager
def _compiler_kept_out() -> Iterator[None]:
    """Within the block, `torch._dynamo` says how it splits graphs by default; any other question loads it."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    utils = _CompilerToCome("torch._dynamo.utils", **_DEFAULT_SPLIT)
    torch._dynamo = _CompilerToCome("torch._dynamo", utils=utils)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch._dynamo  # torch loads the real one for the next to ask


class _CompilerToCome(SimpleNamespace):
    """A module of the compiler that knows some answers, and is loaded for all others."""

    def __init__(self, module: str, **known: Any) -> None:
        super().__init__(**known)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


_DEFAULT_SPLIT = {"get_optimize_ddp_mode": lambda: "ddp_optimizer"}

_BUCKETS = 4
_LEAST_BUCKET, _LARGEST_BUCKET = 2**20, 25 * 2**20  # bytes

# The same switch: torch 2.14 has another name for it, and warns of the old one.
_HAS_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BROADCAST: dict[str, Any] = {"forward_sync_buffers" if _HAS_NEW_NAME else "broadcast_buffers": False}
