"""Features of a whole data set: read, encoded and written one shard after another.

What a sample's features are depends on the checkpoint, the sample's place in the index and the options alone: not on
how many threads or ranks share the work, nor on how often it was interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.data.shards.reader import ShardReader
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import in_batches, make_generator
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples, read_samples, runs_of_shard
from ali_dist.model.inference_model import InferenceModel
from ali_dist.runs.datasets import DataSplit

FEATURES = {
    "mu": "the encoder's mean (one draw of z with --sample)",
    "mu+sigma": "mean and standard deviation",
    "mu+hidden": "mean and the encoder's last hidden layer",
    "mu+layers": "mean and what the activations of its last three hidden layers are given (the paper's SVM features)",
    "joint": "the discriminator's last hidden layer, of (x, z)",
}
SVM_LAYERS = 3
_CHUNK_BYTES = 64_000_000  # of samples that one thread holds at a time


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """What is computed: a name in FEATURES, and whether with z ~ q(z|x), drawn from `seed`, in place of mu."""

    features: str = "mu"
    sample: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """One shard: its number, features float32 [n, F], and labels (int64 [n], float32 [n, A], or None)."""

    shard: int
    features: Tensor
    labels: Tensor | None


def encode_shards(
    saved: LoadedRun,
    part: DataSplit,
    shards: Sequence[int],
    options: FeatureOptions,
    *,
    device: torch.device,
    workers: int,
) -> Iterator[EncodedShard]:
    """Features of `shards` of a split, in that order; holds the samples of `workers` threads at a time.

    Raises:
        InputError: The options or the labels do not fit the model, the index does not match its shards, or a sample
            is damaged.
        FloatingPointError: A feature is not finite.
    """
    if options.sample and saved.config.model.encoder != "gaussian":
        raise InputError(
            f"--sample draws from a Gaussian q(z|x), but model.encoder of run {saved.name!r} is "
            f"{saved.config.model.encoder!r}: leave it out."
        )
    reader = ShardReader(part.store, part.index)

    def encode(shard: int) -> EncodedShard:
        return _encode_shard(saved, part, reader, shard, options, device)

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
    saved: LoadedRun, part: DataSplit, reader: ShardReader, shard: int, options: FeatureOptions, device: torch.device
) -> EncodedShard:
    model, count = saved.model, part.index.shards[shard].samples
    draws = make_generator(options.seed, f"features of shard {shard}")
    epsilon = torch.randn(count, model.latent_size, generator=draws) if options.sample else None
    features, labels = [], []
    for run in runs_of_shard(part, shard, _CHUNK_BYTES):
        samples = read_samples(reader, run)
        c = conditions_for_samples(saved, part, samples.y)
        noise = None if epsilon is None else epsilon[run.start : run.stop]

        def embed(rows: Tensor, x: Tensor = samples.x, c: Tensor | None = c, noise: Tensor | None = noise) -> Tensor:
            of = [None if t is None else t[rows.cpu()].to(device) for t in (x, c, noise)]
            assert of[0] is not None
            return compute_features(model, options.features, saved.space.unit_from_stored(of[0]), of[1], of[2])

        features.append(in_batches(embed, torch.arange(len(samples.x)), "cpu", "encoder's output"))
        labels += [] if samples.y is None else [samples.y]
    joined = torch.cat(features) if features else torch.empty(0, 0)
    return EncodedShard(shard, joined, torch.cat(labels) if labels else None)


def compute_features(
    model: InferenceModel, kind: str, x: Tensor, c: Tensor | None, epsilon: Tensor | None = None
) -> Tensor:
    """Features [N, F] of x [N, ...] in [0, 1]; with z = mu + sigma epsilon in place of mu where epsilon is given.

    Args:
        model: On the device of `x`; call under torch.inference_mode.
        kind: A name in FEATURES.
        x: Images or points.
        c: Their conditions, for a conditional model.
        epsilon: [N, n_z], for a Gaussian encoder.
    """
    mu, log_sigma = model.encode(x, c)
    z = mu if epsilon is None or log_sigma is None else mu + log_sigma.exp() * epsilon
    beside: dict[str, Callable[[], list[Tensor]]] = {
        "mu": lambda: [],
        "mu+sigma": lambda: [torch.zeros_like(mu) if log_sigma is None else log_sigma.exp()],
        "mu+hidden": lambda: [model.features(x, c)[:, model.latent_size :]],
        "mu+layers": lambda: model.hidden(x, SVM_LAYERS, c),
    }
    if kind == "joint":
        return model.joint_features(x, z, c)
    return torch.cat([z, *(part.flatten(1) for part in beside[kind]())], dim=1)
