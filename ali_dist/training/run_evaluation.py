"""What a run measures of itself, and on which split: it chooses on one and reports on another.

Evaluations while a run trains, and what a sweep compares trials by, use the split `valid`, or, where the data have
none, a tenth of the training split. The split `data.holdout` is measured when training has ended, and chooses nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ali_dist.config.wording import format_count
from ali_dist.evaluation.evaluators import make_evaluator
from ali_dist.evaluation.interfaces import LabelledArrays, ModelEvaluator
from ali_dist.evaluation.monitor import EvaluationMonitor
from ali_dist.evaluation.protocol import LEAST_SAMPLES
from ali_dist.evaluation.reference_cache import ReferenceCache
from ali_dist.evaluation.split_loading import (
    count_samples,
    describe_samples,
    hold_out_share,
    load_evaluation_arrays,
)
from ali_dist.model.data_space import DataSpace
from ali_dist.model.inference_model import InferenceModel
from ali_dist.runs.datasets import DataSplit, RunData

SEED = 0
"""Seed of evaluations and galleries in every run: runs are compared, so classifiers and draws must not differ."""
SHARE = "train-share"
"""Name of the tenth of the training split that is chosen by where the data have no split for it."""

Purpose = Literal["choice", "report"]


@dataclass(frozen=True)
class SplitEvaluation:
    """What was measured on one split.

    Attributes:
        split: Its name.
        metrics: By key; empty where there are no metrics for such data.
        samples: What of which split was used, for files.
        notes: Sentences that stand beside the metrics.
    """

    split: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything but the metrics."""
        return {"split": self.split, **self.samples, **({"notes": self.notes} if self.notes else {})}


def describe_unmeasured(data: RunData, holdout: str) -> str:
    """Why the networks of a run cannot be measured, in a sentence; empty if they can.

    Args:
        data: The run's splits.
        holdout: Name of the split that was to be reported on.
    """
    if data.holdout is None:
        return f"The data have no split {holdout!r}: evaluation is left out."
    for split in (data.train, data.holdout):
        if split.index.num_samples < LEAST_SAMPLES:
            return (
                f"The split {split.name!r} holds {format_count(split.index.num_samples, 'sample')}, but evaluation "
                f"needs at least {LEAST_SAMPLES}: evaluation is left out."
            )
    return ""


class RunEvaluator:
    """Measures the networks of a run, on either split; what depends on the data alone is prepared once.

    Args:
        data: The run's splits.
        space: The ranges that the networks work in.
        samples: Decoder samples of an evaluation.
        memory_mb: Megabytes that a split may take; of a larger one a sample is used.
        device: Where the networks are.
        say: Takes sentences for the user.
        monitor: Is told of progress, and may end an evaluation.
        cache: Keeps what depends on the data alone.
    """

    def __init__(
        self,
        data: RunData,
        space: DataSpace,
        *,
        samples: int,
        memory_mb: float,
        device: torch.device,
        say: Callable[[str], None],
        monitor: EvaluationMonitor,
        cache: ReferenceCache,
    ) -> None:
        self._data = data
        self._space = space
        self._samples = samples
        self._memory_mb = memory_mb
        self._device = device
        self._say = say
        self._monitor = monitor
        self._cache = cache

    @property
    def chooses_by_report_split(self) -> bool:
        """Whether the split that is chosen by is the one that is reported on, because that is the data's `valid`."""
        valid, holdout = self._data.valid, self._data.holdout
        return valid is not None and holdout is not None and valid.index.fingerprint == holdout.index.fingerprint

    def measure(self, model: InferenceModel, purpose: Purpose) -> SplitEvaluation:
        """Measure the networks on the split for a purpose.

        Raises:
            EvaluationStopped: The monitor has ended it.
            FloatingPointError: The networks give NaN or infinity.
        """
        if purpose == "choice" and self.chooses_by_report_split:
            purpose = "report"
        evaluator, split, samples = self._prepare_choice if purpose == "choice" else self._prepare_report
        if evaluator is None:
            return SplitEvaluation(split)
        known = len(self._monitor.notes)
        metrics = evaluator.evaluate(model)
        for sentence in self._monitor.notes[known:]:
            self._say(sentence)
        return SplitEvaluation(split, metrics, samples, list(self._monitor.notes))

    @functools.cached_property
    def _prepare_report(self) -> tuple[ModelEvaluator | None, str, dict[str, Any]]:
        holdout = self._data.holdout
        assert holdout is not None
        return self._prepare(lambda: self._load(self._data.train), lambda: self._load(holdout), holdout.name)

    @functools.cached_property
    def _prepare_choice(self) -> tuple[ModelEvaluator | None, str, dict[str, Any]]:
        train, valid = self._data.train, self._data.valid
        if valid is not None and valid.index.num_samples >= LEAST_SAMPLES:
            return self._prepare(lambda: self._load(train), lambda: self._load(valid), valid.name)
        share, rest = hold_out_share(train.index.num_samples)
        what = "'valid'" if valid is None else f"'valid' of at least {LEAST_SAMPLES} samples"
        self._say(
            f"The data have no split {what} to choose by: evaluations before the end use {len(share):,} of the "
            f"{train.index.num_samples:,} samples of {train.name}, which are trained on, too."
        )
        return self._prepare(
            lambda: self._load(train, rest if len(rest) >= len(share) else share),
            lambda: self._load(train, share),
            SHARE,
        )

    def _prepare(
        self, load_train: Callable[[], LabelledArrays], load_holdout: Callable[[], LabelledArrays], split: str
    ) -> tuple[ModelEvaluator | None, str, dict[str, Any]]:
        """The evaluator (None where there are no metrics for such data), its split, and the samples it uses."""
        loaded: dict[str, LabelledArrays] = {}

        def keep(name: str, load: Callable[[], LabelledArrays]) -> LabelledArrays:
            loaded[name] = load()
            return loaded[name]

        evaluator = make_evaluator(
            self._data.train.index.spec,
            lambda: keep("train", load_train),
            lambda: keep("holdout", load_holdout),
            samples=self._samples,
            seed=SEED,
            native_from_unit=self._space.native_from_unit,
            device=self._device,
            monitor=self._monitor,
            cache=self._cache,
        )
        if evaluator is None:
            self._say("Evaluation is skipped: there are no metrics for points that are of no known mixture.")
            return None, split, {}
        samples = {name: count_samples(arrays) for name, arrays in loaded.items()}
        if any(arrays.total for arrays in loaded.values()):
            self._say(f"{describe_samples(samples)[:-1]} (data.memory_mb).")
        return evaluator, split, samples

    def _load(self, split: DataSplit, among: Any = None) -> LabelledArrays:
        return load_evaluation_arrays(
            split.store, split.index, self._space, self._memory_mb, among=among, monitor=self._monitor
        )
