"""Features of a whole data set: read, encoded and written one shard after another.

The features of a sample depend on the checkpoint, the sample's place in the index and the options alone: not on how
many threads or ranks share the work, nor on how often it was interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.data.order import SampleRun
from ali_dist.data.shards.reader import ShardReader
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import in_batches, make_generator
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples, read_samples, runs_of_shard
from ali_dist.model.inference_model import InferenceModel
from ali_dist.runs.datasets import DataSplit

SVM_LAYERS = 3
"""Hidden layers of the encoder that the paper's SVM is given."""
_CHUNK_BYTES = 64_000_000  # samples that one thread holds at a time


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """What is computed.

    Attributes:
        features: A name in FEATURES.
        sample: Whether z ~ q(z|x) stands in place of mu.
        seed: Seed of those draws.
    """

    features: str = "mu"
    sample: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The features of one shard.

    Attributes:
        shard: Its number in the index.
        features: float32 [n, F].
        labels: int64 [n] or float32 [n, A]; None where the data have none.
        origins: What the user knows each sample by, [n]; None where the data do not note it.
    """

    shard: int
    features: Tensor
    labels: Tensor | None
    origins: tuple[str, ...] | None = None


def encode_shards(
    run: LoadedRun,
    split: DataSplit,
    shards: Sequence[int],
    options: FeatureOptions,
    *,
    device: torch.device,
    workers: int,
) -> Iterator[EncodedShard]:
    """Compute the features of some shards of a split, in the order given.

    Args:
        run: The run of the model.
        split: The data.
        shards: Numbers of shards in the split's index.
        options: What is computed.
        device: Where the model is.
        workers: Threads that read and encode; each holds some samples in memory.

    Raises:
        InputError: The options or the labels do not fit the model, the index does not match its shards, or a sample
            is damaged.
        FloatingPointError: A feature is not finite.
    """
    if options.sample and run.config.model.encoder != "gaussian":
        raise InputError(
            f"--sample draws from a Gaussian q(z|x), but model.encoder of run {run.name!r} is "
            f"{run.config.model.encoder!r}: leave it out."
        )
    reader = ShardReader(split.store, split.index)

    def encode(shard: int) -> EncodedShard:
        return _encode_shard(run, split, reader, shard, options, device)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="ali-encode")
    waiting: deque[Future[EncodedShard]] = deque()
    try:
        for shard in shards:
            waiting.append(pool.submit(encode, shard))
            if len(waiting) >= workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode_shard(
    run: LoadedRun, split: DataSplit, reader: ShardReader, shard: int, options: FeatureOptions, device: torch.device
) -> EncodedShard:
    count = split.index.shards[shard].samples
    draws = make_generator(options.seed, f"features of shard {shard}")
    epsilon = torch.randn(count, run.model.latent_size, generator=draws) if options.sample else None
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for sample_run in runs_of_shard(split, shard, _CHUNK_BYTES):
        samples = read_samples(reader, sample_run)
        c = conditions_for_samples(run, split, samples.y)
        chunk_epsilon = None if epsilon is None else epsilon[sample_run.start : sample_run.stop]
        features.append(features_of_samples(run, options.features, samples.x, c, chunk_epsilon, device=device))
        if samples.y is not None:
            labels.append(samples.y)
    all_features = torch.cat(features) if features else torch.empty(0, 0)
    origins = reader.read_origins(SampleRun(shard, 0, count))
    return EncodedShard(shard, all_features, torch.cat(labels) if labels else None, origins)


def features_of_samples(
    run: LoadedRun,
    kind: str,
    x: Tensor,
    c: Tensor | None,
    epsilon: Tensor | None = None,
    *,
    device: torch.device | str,
) -> Tensor:
    """Compute the features float32 [N, F] of any number of samples, on the CPU.

    Args:
        run: The run of the model.
        kind: A name in FEATURES.
        x: Samples as they are stored, [N, C, h, w] or [N, D], on the CPU; or such images as floats in [0, 1].
        c: Their conditions [N, A], for a conditional model.
        epsilon: See `compute_features`.
        device: Where the model is.

    Raises:
        FloatingPointError: A feature is not finite.
    """

    def compute_rows(rows: Tensor) -> Tensor:
        rows = rows.cpu()
        x_unit = run.space.unit_from_stored(x[rows].to(device))
        c_rows = None if c is None else c[rows].to(device)
        epsilon_rows = None if epsilon is None else epsilon[rows].to(device)
        return compute_features(run.model, kind, x_unit, c_rows, epsilon_rows)

    return in_batches(compute_rows, torch.arange(len(x)), "cpu", "encoder's output")


def compute_features(
    model: InferenceModel, kind: str, x: Tensor, c: Tensor | None, epsilon: Tensor | None = None
) -> Tensor:
    """Compute the features [N, F] of samples; call under torch.inference_mode.

    Args:
        model: The trained networks, on the device of `x`.
        kind: A name in FEATURES.
        x: Images [N, C, H, W] in [0, 1], or points [N, D].
        c: Their conditions [N, A], for a conditional model.
        epsilon: Noise [N, n_z] for a Gaussian encoder; with it, z = mu + sigma epsilon stands in place of mu.
    """
    mu, log_sigma = model.encode(x, c)
    z = mu if epsilon is None or log_sigma is None else mu + log_sigma.exp() * epsilon
    further_features: dict[str, Callable[[], list[Tensor]]] = {
        "mu": lambda: [],
        "mu+sigma": lambda: [torch.zeros_like(mu) if log_sigma is None else log_sigma.exp()],
        "mu+hidden": lambda: [model.features(x, c)[:, model.latent_size :]],
        "mu+layers": lambda: model.hidden(x, SVM_LAYERS, c),
    }
    if kind == "joint":
        return model.joint_features(x, z, c)
    return torch.cat([z, *(part.flatten(1) for part in further_features[kind]())], dim=1)
