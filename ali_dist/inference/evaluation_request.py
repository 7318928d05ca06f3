"""What an evaluation is asked for: of which model, on which data, with which seed; and what it has to say beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.monitor import EvaluationMonitor
from ali_dist.evaluation.split_loading import count_samples, load_evaluation_arrays
from ali_dist.inference.load import LoadedRun
from ali_dist.inference.samples import conditions_for_samples
from ali_dist.runs.datasets import DataSplit


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What is measured, whatever the evaluation.

    Attributes:
        run: The run of the model.
        open_train: Opens the training split.
        holdout: The split that is measured on.
        seed: Seed of the (first) evaluation.
        memory_mb: Megabytes that a split may take; of a larger one a sample is used.
        device: Where the model is.
        open_split: Opens the first that the data have of some splits, by name; None: there are no others.
        notes: Sentences that stand beside the metrics; an evaluation adds to them.
        samples: What of which split was used; an evaluation adds to it.
        details: What else there is to tell programs, JSON-able; an evaluation adds to it.
        listing: Lines that are printed below everything else; an evaluation adds to it.
    """

    run: LoadedRun
    open_train: Callable[[], DataSplit]
    holdout: DataSplit
    seed: int
    memory_mb: int
    device: torch.device
    open_split: Callable[[Sequence[str]], DataSplit] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    samples: dict[str, dict[str, str | int]] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    listing: list[str] = dataclasses.field(default_factory=list)

    def load_train(self, monitor: EvaluationMonitor | None = None) -> LabelledArrays:
        """Load the training split; see `load_holdout`."""
        return self._load_split("train", self.open_train(), monitor)

    def load_holdout(self, monitor: EvaluationMonitor | None = None) -> LabelledArrays:
        """Load a split, at the size the model works at: whole where it fits, else a sample; `samples` says so.

        Raises:
            InputError: It is damaged, or lacks the labels that the model needs.
        """
        return self._load_split("holdout", self.holdout, monitor)

    def count_samples(self, samples: int | None) -> int:
        """Decoder samples to draw: those asked for, else as many as the run's own setting says."""
        return samples or self.run.config.report.evaluation_samples

    def _load_split(self, purpose: str, split: DataSplit, monitor: EvaluationMonitor | None) -> LabelledArrays:
        arrays = load_evaluation_arrays(split.store, split.index, self.run.space, self.memory_mb, monitor=monitor)
        conditions_for_samples(self.run, split, arrays.y)  # refuses labels that do not fit the model
        self.samples[purpose] = count_samples(arrays)
        return arrays
