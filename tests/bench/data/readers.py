"""The readers that the bench of reading compares: ours, and the usual pipelines of `webdataset`.

Each is a function that reads whole epochs of a split in shuffled batches of uint8 tensors with labels, and returns how
many images came out. Opening, and what is read ahead and not used, is part of a turn. Over HTTP, one of ours keeps
what it fetched on this machine's disk, as `data.cache_dir` does.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor

from ali_dist.data.batch import BatchSource
from ali_dist.data.loader import open_batches
from tests.bench.data.splits import Split

STOCK, STOCK_WORKERS = "webdataset", "webdataset, 2 workers"
STREAM, CACHED, RAM = "ours, streamed", "ours, from the disk cache", "ours, from RAM"
BATCH = 256
WORKERS = 2
LANES = 8
WINDOW_MB = 4.0  # as many windows for each lane as large data have under the default of 32
SHUFFLE = 1000
STREAM_EPOCHS, RAM_EPOCHS = 4, 32  # for each one of webdataset, so that turns take long enough to be measured
Reader = Callable[[], int]


def choose_readers(split: Split, epochs: int) -> dict[str, Reader]:
    """The readers of a split by name; a turn of webdataset reads `epochs` epochs, one of ours some more."""
    readers: dict[str, Reader] = {
        STOCK: partial(read_stock, split, epochs, workers=0),
        STREAM: partial(read_stream, split, STREAM_EPOCHS * epochs),
    }
    if split.cached is not None:  # the turn that is not counted fills it
        readers[CACHED] = partial(read_stream, replace(split, store=split.cached), STREAM_EPOCHS * epochs)
    if split.server is None:
        readers[STOCK_WORKERS] = partial(read_stock, split, epochs, workers=WORKERS)
    if split.server is None and split.index.encoding == "raw":  # decoded samples are the same for every encoding
        readers[RAM] = partial(gather_epochs, open_source(split, "ram"), RAM_EPOCHS * epochs * count_batches(split))
    return readers


def count_batches(split: Split) -> int:
    """The number of whole batches in an epoch."""
    return split.index.num_samples // BATCH


def open_source(split: Split, residency: Any) -> BatchSource:
    """Open our batches of a split, as a run with one worker does."""
    return open_batches(
        split.store,
        split.index,
        seed=0,
        lanes=LANES,
        global_batch_size=BATCH,
        rank=0,
        world_size=1,
        start_step=0,
        device=torch.device("cpu"),
        residency=residency,
        window_mb=WINDOW_MB,
    )


def read_stream(split: Split, epochs: int) -> int:
    """Stream epochs of whole batches, with everything that belongs to opening and closing."""
    with open_source(split, "stream") as source:
        return gather_epochs(source, epochs * count_batches(split))


def gather_epochs(source: BatchSource, batches: int) -> int:
    """Take some batches of an open source."""
    return sum(len(batch.ids) for batch in islice(source, batches))


def read_stock(split: Split, epochs: int, workers: int) -> int:
    """Read with `webdataset` alone: tars to samples, a shuffle buffer, decoded tensors, batches; then its loader."""
    encoding = split.index.encoding
    decode = partial(_decode_raw, split.index.shape) if encoding == "raw" else "torchrgb8"
    pipeline = (
        webdataset.WebDataset(split.urls, shardshuffle=len(split.urls), seed=0)
        .shuffle(SHUFFLE)
        .decode(decode)
        .to_tuple(encoding, "cls")
        .batched(BATCH)
    )
    batches = webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers) if workers else pipeline
    images = 0
    for _ in range(epochs):
        for x, y in batches:
            assert x.dtype == torch.uint8
            assert x.shape[1:] == split.index.shape
            images += len(y)
    return images


def _decode_raw(shape: tuple[int, ...], key: str, data: bytes) -> Tensor | None:
    """A decoder in the form that webdataset calls: None for fields of other kinds."""
    if not key.endswith(".raw"):
        return None
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(shape).copy())


def decode_with_pillow(payload: bytes) -> np.ndarray:
    """Decode an image as most code does: Pillow, then an array [C, H, W]."""
    from PIL import Image

    with Image.open(io.BytesIO(payload)) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
