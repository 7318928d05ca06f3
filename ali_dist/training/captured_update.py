"""Updates that are recorded once as a CUDA graph and then replayed.

An update of a small model is some 600 kernels, and the host takes longer to launch them than the GPU to run them. A
replay is one launch. It runs the same kernels on the same memory, so that it computes what the recorded code computes;
what differs from update to update must lie in memory that is written before: the batch, the masks of dropout, the
learning rates and the weights of the penalties.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ali_dist.config import Config
from ali_dist.distributed import World
from ali_dist.training.step import LossWeights, Step, StepResult, TrainBatch
from ali_dist.training.update_rules import UpdateRule

_UPDATES_BEFORE = 3  # in which libraries choose kernels, allocate workspaces, and Adam creates its state


def why_not_captured(config: Config, rule: UpdateRule, precision: str, world: World) -> str | None:
    """Why a GPU's updates cannot be recorded, as a clause for a sentence; None where they can."""
    if config.scale.cuda_graph == "off":
        return "scale.cuda_graph is 'off'"
    if world.size > 1:
        return "several workers exchange gradients within an update"
    if precision == "fp16":
        return "the loss scale of fp16 follows from what the host reads"
    if rule.forward_passes > 1:
        return f"the rule {rule.name!r} draws its masks within the update"
    if config.scale.compile:
        return "scale.compile is true"
    return None


@dataclass(frozen=True, slots=True)
class _Recording:
    """A graph with the memory that it reads its inputs from and writes its result to."""

    graph: torch.cuda.CUDAGraph
    batch: TrainBatch
    weights: LossWeights
    result: StepResult


class CapturedUpdates:
    """Calls a step like `Step` itself, from its fourth update on by replaying what was recorded of it.

    Updates with and without a penalty are recorded apart. Adam's epsilon is part of a recording: where it is added
    before the bias correction (`optim.eps_inside`), updates are launched until it has settled in fp32, in which Adam
    computes; with the paper's beta2 that is after 16,000 updates. If recording fails, updates go on as they were.

    Args:
        step: Of one rank; see `why_not_captured`.
        device: Its GPU.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._stream = torch.cuda.Stream(device)
        self._recordings: dict[bool, _Recording] = {}
        self._updates_before: dict[bool, int] = {}
        self._epsilon = 0.0
        self._pool: Any = None
        self._failure = ""
        self.say: Callable[[str], None] = _say_nothing

    def describe(self) -> str:
        """How the GPU is given updates, in words."""
        return f"not replayed as a CUDA graph ({self._failure})" if self._failure else "replayed as a CUDA graph"

    def __call__(self, batch: TrainBatch, weights: LossWeights) -> StepResult:
        """One update. The result is valid until the next one."""
        if self._failure:
            return self._step(batch, weights)
        self._forget_other_epsilon()
        key = weights.has_penalty
        recording = self._recordings.get(key)
        if recording is None:
            done = self._updates_before.get(key, 0)
            if done < _UPDATES_BEFORE:
                self._updates_before[key] = done + 1
                return self._update_on_own_stream(batch, weights)
            try:
                recording = self._record(batch, weights)
            except RuntimeError as error:
                return self._give_up(error, batch, weights)
            self._recordings[key] = recording
        _copy_tensors(batch, recording.batch)
        _fill_penalties(recording.weights, weights)
        self._step.draw()
        recording.graph.replay()
        return recording.result

    def _forget_other_epsilon(self) -> None:
        """Record anew where Adam's epsilon is no longer the one of the recordings."""
        (epsilon,) = struct.unpack("f", struct.pack("f", self._step.optimizer.param_groups[0]["eps"]))
        if epsilon != self._epsilon:
            self._epsilon = epsilon
            self.forget()

    def forget(self) -> None:
        """Record anew: what recordings work on, such as Adam's state, has been replaced."""
        self._recordings.clear()
        self._updates_before.clear()

    def _update_on_own_stream(self, batch: TrainBatch, weights: LossWeights) -> StepResult:
        """Update as usual, on the stream that is going to be recorded: what is created now belongs to it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._step(batch, weights)
        current.wait_stream(self._stream)
        return result

    def _record(self, batch: TrainBatch, weights: LossWeights) -> _Recording:
        """Record an update without running it."""
        own_batch = _clone_tensors(batch)
        device = self._stream.device
        own_penalties: dict[str, Any] = {
            name: torch.zeros((), device=device) for name in _PENALTIES if getattr(weights, name)
        }
        own_weights = dataclasses.replace(weights, **own_penalties)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        self._step.draws_in_forward = False
        try:
            # Other threads copy data and checkpoints meanwhile, which is none of the recording's business.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = self._step(own_batch, own_weights)
        finally:
            self._step.draws_in_forward = True
        self._pool = graph.pool()
        return _Recording(graph, own_batch, own_weights, result)

    def _give_up(self, error: RuntimeError, batch: TrainBatch, weights: LossWeights) -> StepResult:
        """Say why, forget what was recorded, and update as usual from now on."""
        self._failure = (str(error).strip().splitlines() or ["no reason was given"])[0]
        self.say(f"Updates are not replayed as a CUDA graph, and go on without: {self._failure}")
        self._recordings.clear()
        self._step.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self._stream.device)
        return self._step(batch, weights)


_PENALTIES = ("r1", "r2")  # the weights that change during a run


def _say_nothing(text: str) -> None:
    del text


def _walk_tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif batch is not None:
        for part in batch:
            yield from _walk_tensors(part)


def _clone_tensors(batch: Any) -> Any:
    """Nested named tuples of the same tensors, in memory of their own."""
    if isinstance(batch, Tensor):
        return batch.clone()
    return None if batch is None else type(batch)(*map(_clone_tensors, batch))


def _copy_tensors(source: TrainBatch, target: TrainBatch) -> None:
    for a, b in zip(_walk_tensors(source), _walk_tensors(target), strict=True):
        b.copy_(a)


def _fill_penalties(target: LossWeights, source: LossWeights) -> None:
    for name in _PENALTIES:
        weight = getattr(target, name)
        if isinstance(weight, Tensor):
            weight.fill_(getattr(source, name))
