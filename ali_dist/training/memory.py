"""How much memory an update needs, counted without computing it, and what to do where a GPU has less."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ali_dist.config import Config
from ali_dist.distributed import World
from ali_dist.model.ali import LabelledBatch
from ali_dist.model.batch_norm import BatchNorm
from ali_dist.model.build import build_networks
from ali_dist.model.data_spec import DataSpec
from ali_dist.training.precision import Precision
from ali_dist.training.step import Step, TrainBatch, loss_weights_at
from ali_dist.training.train_batches import rows_of_rank
from ali_dist.training.update_rules import UpdateRule

BYTES_PER_PARAMETER = 16  # weight, gradient and Adam's two moments in fp32
_COUNTED_SAMPLES = 4
_HALF_PRECISION = 0.55  # of the bytes of fp32: not everything is kept in half precision
_SPARE = 0.8  # share of a GPU's memory that is counted on: the rest is for workspaces, gradients on their way, CUDA
_META = torch.device("meta")  # whose tensors have shapes and no numbers


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What an update keeps in memory.

    Attributes:
        weights: Bytes of weights, gradients and Adam's moments.
        per_sample: Bytes that the backward passes need of each sample, in fp32.
    """

    weights: int
    per_sample: float

    def activations(self, samples: int, *, half_precision: bool) -> float:
        """Bytes for so many samples at once."""
        return samples * self.per_sample * (_HALF_PRECISION if half_precision else 1.0)

    def largest_micro_batch(self, memory: int, *, packing: int, half_precision: bool) -> int:
        """The largest power of two of samples (times `packing`) that fit in `memory` bytes; 0 if none does."""
        room = _SPARE * memory - self.weights
        packs = room / self.activations(packing, half_precision=half_precision)
        return packing * 2 ** int(math.log2(packs)) if packs >= 1 else 0


def estimate_memory(config: Config, spec: DataSpec, rule: UpdateRule) -> MemoryEstimate:
    """Count what one update saves for its backward passes, on tensors that have no numbers.

    Raises:
        InputError: The networks do not fit the data.
    """
    ali, space = build_networks(config, spec, seed=0)
    ali.to(_META)
    parameters = list(ali.parameters())
    step = Step(
        rule,
        config.objective.loss,
        ali,
        ali,
        torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.0),
        Precision("fp32", _META),
        global_batch_size=config.data.global_batch_size,
        packing=config.objective.packing,
    )
    condition = ali.embedding.in_features if isinstance(ali.embedding, torch.nn.Linear) else 0

    def count_bytes(samples: int) -> int:
        def draw(*shape: int) -> Tensor:
            return torch.empty(samples, *shape, device=_META)

        z, epsilon = draw(config.model.latent_size), draw(config.model.latent_size)
        x = draw(*space.model_shape)
        labelled = LabelledBatch(x, draw().long(), epsilon) if config.objective.supervised else None
        batch = TrainBatch(x, z, epsilon, draw(condition) if condition else None, labelled)
        kept = SavedBytes(parameters)
        with torch.autograd.graph.saved_tensors_hooks(kept.count, _return_tensor):
            # The first update of a run has a penalty wherever there is one.
            rule.gradients(step, batch, loss_weights_at(config.objective, 0, 1.0))
        return kept.total

    few = _COUNTED_SAMPLES * config.objective.packing
    per_sample = (count_bytes(2 * few) - count_bytes(few)) / few
    return MemoryEstimate(BYTES_PER_PARAMETER * sum(p.numel() for p in parameters), per_sample)


class SavedBytes:
    """Counts what is saved for a backward pass, each piece of memory once, and no parameters.

    Args:
        parameters: Those of the networks.

    Attributes:
        total: Bytes so far.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.total = 0
        self._storages: list[Any] = [p.untyped_storage() for p in parameters]  # kept, so that no address is used again
        self._seen = {storage._cdata for storage in self._storages}

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is saved, and give it back: the first half of a pair of `saved_tensors_hooks`."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._storages.append(storage)
            self.total += storage.nbytes()
        return tensor


def _return_tensor(tensor: Tensor) -> Tensor:
    return tensor


def advise_on_memory(config: Config, ali: torch.nn.Module, world: World) -> str:
    """What to do where an update of this rank did not fit in the GPU's memory: one sentence."""
    rows = rows_of_rank(config, world)
    at_once = min(config.scale.micro_batch or rows.stop - rows.start, rows.stop - rows.start)
    packing = config.objective.packing
    smaller = max(packing, at_once // 2 // packing * packing)
    if smaller >= at_once:
        return (
            f"The GPU's memory does not hold an update of {at_once} samples at once: use a smaller model.width or a "
            "larger GPU."
        )
    has_global_norm = config.scale.batch_norm == "global" and any(isinstance(m, BatchNorm) for m in ali.modules())
    also = " and scale.batch_norm to local" if has_global_norm else ""
    return (
        f"The GPU's memory does not hold an update of {at_once} samples at once: set scale.micro_batch to {smaller}"
        f"{also}, which keeps the batch and goes on from the newest checkpoint, or use more workers."
    )
