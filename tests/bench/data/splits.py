"""Splits of made-up pictures for the bench of reading, in a folder and behind an S3 server of another process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ali_dist.data.shards.index import Index
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.writer import SampleFormat
from ali_dist.storage import Store, open_store
from ali_dist.storage.cached import with_cache
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import write_shards
from tests.helpers.fault_server import ENV, FaultServer

Encoding = Literal["raw", "png", "jpg"]
ENCODINGS: tuple[Encoding, ...] = ("raw", "png", "jpg")
PLACES = ("folder", "http")
SHARDS = 8
BUCKET = "bench"
CACHE_GB = 1.0  # room for every split


def count_images(encoding: Encoding, side: int, scale: float) -> int:
    """How many pictures a split has: enough for a turn of some tenths of a second, in whole batches and shards."""
    most = 24_000_000 if encoding == "raw" else 12_000_000
    return max(2, round(scale * most / (3 * side * side * 256))) * 256


def draw_picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw a smooth picture with a little noise, uint8 [3, side, side]; as a PNG it is as large as one of CIFAR10."""
    patches = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = smooth + rng.standard_normal(smooth.shape, dtype=np.float32) * 4
    return np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))


def write_split(folder: Path, encoding: Encoding, side: int, images: int) -> Index:
    """Write `images` labelled pictures into SHARDS shards of `folder`."""
    rng = np.random.default_rng(side)
    samples = (PreparedSample(draw_picture(rng, side), int(rng.integers(10))) for _ in range(images))
    sample_format = SampleFormat(encoding=encoding, shape=(3, side, side), dtype="uint8")
    return write_shards(LocalStore(folder), samples, sample_format, per_shard=-(-images // SHARDS))


@dataclass(frozen=True)
class Split:
    """A split where a reader finds it.

    Attributes:
        store: For our readers.
        urls: Of the shards, for webdataset.
        index: What the split holds.
        server: Counts requests; None for a folder.
        cached: The same store behind an empty cache on this machine's disk; None for a folder.
    """

    store: Store
    urls: list[str]
    index: Index
    server: Server | None
    cached: Store | None = None


class Server:
    """The S3 server of another process, whose CPU time is not the reader's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.endpoint_url: str = connection.recv()

    def ask(self, *question: Any) -> Any:
        """Send a question to the other process (see `_serve`), and wait for its answer."""
        self._connection.send(question)
        return self._connection.recv()


def _serve(connection: Connection) -> None:
    """Answer `("serve", folder)`, `("count",)` with (requests, bytes of bodies) since the last one, and `("end",)`."""
    with FaultServer() as server:
        connection.send(server.endpoint_url)
        while True:
            match connection.recv():
                case ("serve", folder):
                    objects = {f"{BUCKET}/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
                    server.serve_objects(objects)
                    connection.send(None)
                case ("count",):
                    requests, server.requests = server.requests, []
                    connection.send((len(requests), sum(request.sent for request in requests)))
                case _:
                    connection.send(None)
                    return


@contextmanager
def start_server() -> Iterator[Server]:
    """Run the server while the block lasts, and give this process credentials for it."""
    before = {name: os.environ.get(name) for name in ENV}
    os.environ.update(ENV)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=partial(_serve, theirs), daemon=True)
    process.start()
    server = Server(ours)
    try:
        yield server
        server.ask("end")
    finally:
        process.join(5)
        process.terminate()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def open_split(folder: Path, index: Index, place: str, server: Server) -> Split:
    """Open the split of `folder` as `place` says: as that folder, or over HTTP."""
    if place == "folder":
        return Split(LocalStore(folder), [str(folder / shard.key) for shard in index.shards], index, None)
    server.ask("serve", str(folder))
    store = open_store(f"s3://{BUCKET}", endpoint_url=server.endpoint_url)
    cached = with_cache(store, str(folder.with_name(f"{folder.name}-cache")), CACHE_GB)
    urls = [f"{server.endpoint_url}/{BUCKET}/{shard.key}" for shard in index.shards]
    return Split(store, urls, index, server, cached)
