"""Open the training data of one rank: decide where its samples live, and give its batches."""

from __future__ import annotations

from typing import Literal

import torch

from ali_dist.data.batch import BatchSource
from ali_dist.data.order import DataOrder, lanes_of_rank
from ali_dist.data.resident import ResidentSource
from ali_dist.data.shards.index import Index
from ali_dist.data.shards.reader import ShardReader
from ali_dist.data.streaming import StreamSource
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

MB = 1_000_000


def make_order(index: Index, *, seed: int, lanes: int, global_batch_size: int, window_mb: float = 32.0) -> DataOrder:
    """The order in which training uses the samples of a split.

    Raises:
        InputError: The split is smaller than one global batch, or the lanes do not divide the batch.
    """
    stored_bytes = sum(shard.bytes for shard in index.shards) // index.num_samples
    return DataOrder(
        shard_samples=tuple(shard.samples for shard in index.shards),
        sample_bytes=max(
            1, stored_bytes, index.decoded_bytes
        ),  # encoded and decoded, because a window is held in both forms while it is read
        seed=seed,
        lanes=lanes,
        global_batch_size=global_batch_size,
        window_bytes=int(window_mb * MB),
    )


def choose_residency(
    residency: Literal["auto", "device", "ram", "stream"], decoded_bytes: int, memory_mb: float, device: torch.device
) -> Literal["device", "ram", "stream"]:
    """Decide where samples live: `auto` takes the fastest memory that holds them within `memory_mb` megabytes.

    A CPU has no `device` memory apart from `ram`. On a GPU, `auto` takes at most half of the memory that is free.
    """
    if residency == "auto":
        if decoded_bytes > memory_mb * MB:
            return "stream"
        if device.type != "cuda":
            return "ram"
        return "device" if decoded_bytes <= torch.cuda.mem_get_info(device)[0] // 2 else "ram"
    return "ram" if residency == "device" and device.type == "cpu" else residency


def open_batches(
    store: Store,
    index: Index,
    *,
    seed: int,
    lanes: int,
    global_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    device: torch.device,
    residency: Literal["auto", "device", "ram", "stream"] = "auto",
    memory_mb: float = 4096,
    window_mb: float = 32.0,
    prefetch: int = 4,
    bad_samples: Literal["stop", "substitute"] = "stop",
    outage_seconds: float = 0.0,
) -> BatchSource:
    """Open a rank's batches from global step `start_step` (counted from 0 through all epochs) on.

    Residency, rank and world size change neither the samples of a global batch nor their order. This is not a
    collective: ranks need not call it together.

    Args:
        store: The split's own folder.
        index: The split's index.
        seed: Seed of the order.
        lanes: Lanes of the order: a divisor of `global_batch_size`, at least `world_size`.
        global_batch_size: Samples of a global batch, over all ranks.
        rank: This rank, from 0.
        world_size: Number of ranks.
        start_step: Global step of the first batch.
        device: The device on which batches are needed.
        residency: Where samples live until then; see `choose_residency`.
        memory_mb: Most megabytes of decoded samples that `auto` keeps in memory.
        window_mb: Megabytes of a lane that are shuffled together; it decides the order in every residency.
        prefetch: Number of batches that are read ahead when streaming.
        bad_samples: `stop` with an InputError, or `substitute` the lane's next good sample.
        outage_seconds: How long streaming waits for a storage that fails.

    Raises:
        InputError: The sizes do not fit, the index does not match its shards, or samples are damaged.
    """
    order = make_order(index, seed=seed, lanes=lanes, global_batch_size=global_batch_size, window_mb=window_mb)
    own_lanes = lanes_of_rank(lanes, rank, world_size)
    if bad_samples not in ("stop", "substitute"):
        raise InputError(f"data.bad_samples is {bad_samples!r}, but must be 'stop' or 'substitute'.")
    substitute = bad_samples == "substitute"
    reader = ShardReader(store, index)
    chosen = choose_residency(residency, index.num_samples * index.decoded_bytes, memory_mb, device)
    if chosen == "stream":
        return StreamSource(
            reader,
            order,
            own_lanes,
            start_step=start_step,
            device=device,
            prefetch=prefetch,
            substitute=substitute,
            outage_seconds=outage_seconds,
        )
    return ResidentSource(
        reader, order, own_lanes, start_step=start_step, device=device, residency=chosen, substitute=substitute
    )
