"""How long an update takes on ranks that this machine does not have, by a stated model.

    t = forward + exchanges * 2 ceil(log2 n) * latency + max(backward, end of the last all-reduce - forward)

A bucket of b bytes is reduced over n ranks in a ring, in `2 (n - 1) / n * b / bandwidth + 2 (n - 1) * latency` seconds.
Buckets are those of training (`ali_dist/training/ddp.py`). They are ready one after the other, evenly over the backward
pass by their bytes; one is reduced after the other, beside the pass, from when it is ready. So the last one never
overlaps. Batch norm over the global batch exchanges small sums in each layer, for which everything waits: these go up
and down a tree. Bandwidth is that of the slowest link of the ring, such as a machine's network card, which its GPUs
share.

Left out: whatever slows a network or the ranks themselves, such as other traffic, stragglers, and data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ali_dist.model.ali import ALI
from ali_dist.model.batch_norm import BatchNorm
from ali_dist.model.build import build_networks
from ali_dist.training.ddp import bucket_bytes
from ali_dist.training.precision import Precision
from ali_dist.training.step import Step, loss_weights_at
from ali_dist.training.update_rules import UpdateRule
from tests.bench.floor_cases import FloorCase, configure, draw_batch, index_of
from tests.bench.floor_count import META, choose_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The slowest link between ranks: bytes/s, and seconds for a message to arrive."""

    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateWork:
    """What one rank does in an update.

    Attributes:
        forward: Seconds before the backward pass, and after it.
        backward: Seconds of the backward pass, or of all of them.
        buckets: Bytes of the gradients' buckets in the order in which they are ready.
        exchanges: Sums over ranks that layers wait for.
    """

    forward: float
    backward: float
    buckets: tuple[int, ...]
    exchanges: int = 0


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """How long an all-reduce of `size` bytes takes."""
    return 2 * (ranks - 1) / ranks * size / link.bandwidth + 2 * (ranks - 1) * link.latency


def update_seconds(work: UpdateWork, ranks: int, link: Link) -> float:
    """How long an update takes by the model."""
    if ranks == 1:
        return work.forward + work.backward
    total, ready, end = sum(work.buckets), 0, 0.0  # `end` counts from the beginning of the backward pass
    for size in work.buckets:
        ready += size
        end = max(end, work.backward * ready / total) + ring_seconds(size, ranks, link)
    waits = work.exchanges * 2 * math.ceil(math.log2(ranks)) * link.latency
    return work.forward + waits + max(work.backward, end)


def bucket_sizes(parameters: Sequence[nn.Parameter]) -> tuple[int, ...]:
    """The bytes of the buckets that one wrapper makes, the first one ready first: what fills a bucket closes it."""
    full = bucket_bytes(parameters)
    sizes: list[int] = []
    size = 0
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        size += parameter.nbytes
        if size >= full:
            sizes.append(size)
            size = 0
    return (*sizes, size) if size else tuple(sizes)


def describe_work(case: FloorCase, seconds: float, backward_share: float) -> UpdateWork:
    """What a rank does in an update of a preset.

    Args:
        case: Whose.
        seconds: Of the update on one rank alone.
        backward_share: Of these seconds.
    """
    config, spec = configure(case), index_of(case).spec
    rule = choose_rule(config, spec)
    with META:
        ali, _ = build_networks(config, spec, seed=0)
    return UpdateWork(
        forward=seconds * (1 - backward_share),
        backward=seconds * backward_share,
        buckets=tuple(size for parameters in _wrapped(ali, rule) for size in bucket_sizes(parameters)),
        exchanges=count_exchanges(case),
    )


def _wrapped(ali: ALI, rule: UpdateRule) -> Sequence[list[nn.Parameter]]:
    """The parameters of each wrapper, in the order in which backward passes come to them; see `wrap_for_ddp`."""
    if rule.backward_passes == 1:
        return [list(ali.parameters())]
    parts = (ali.discriminator, ali.decoder, ali.encoder, ali.embedding)
    return [list(part.parameters()) for part in parts if part is not None]


def count_exchanges(case: FloorCase) -> int:
    """How often an update of a preset sums over ranks in its layers of batch norm, forward and backward."""
    config, spec = configure(case, batch=4), index_of(case).spec
    with META:
        ali, space = build_networks(config, spec, seed=0)
    count = 0

    def count_sum(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return tensor

    for module in ali.modules():
        if isinstance(module, BatchNorm):
            module.sum_over_ranks = count_sum
    optimizer = torch.optim.SGD([p for p in ali.parameters() if p.requires_grad], lr=0.0)
    rule, loss = choose_rule(config, spec), config.objective.loss
    step = Step(rule, loss, ali, ali, optimizer, Precision("fp32", META), global_batch_size=4)
    step(draw_batch(config, ali, space, META), loss_weights_at(config.objective, 0, 1.0))
    return count
