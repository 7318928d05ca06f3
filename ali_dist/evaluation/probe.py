"""How much a linear classifier can read off a representation, and class-balanced draws of labels.

A linear SVM on 1000 class-balanced training labels, mean over 3 draws of them, accuracy on the whole holdout split.
Source: the protocol of arXiv 1606.00704, section 4.3, for SVHN (L2-SVM on the encoder's features), in small.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.monitor import EvaluationMonitor
from ali_dist.loading_note import collector_paused

LABELS = 1000
DRAWS = 3
PENALTY = 0.1
MOST_ITERATIONS = 5000
MOST_RAW_DIMENSIONS = 256
"""Dimensions that raw pixels are reduced to."""
_ROWS_AT_ONCE = 2000  # a multiple of the batch, so that a model sees the same batches as in one piece

Array = NDArray[np.float64]


class LinearProbe:
    """Measures representations of one labelled pair of splits; the seed fixes the draws, so that scores compare.

    Args:
        train: Labelled samples that the draws come from; only what is drawn is kept.
        holdout: Labelled samples that accuracies are measured on.
        seed: Seed of the draws and of the solver.
        monitor: Is told of each fit, and of those that do not converge.

    Raises:
        InputError: The training split holds a single class.
    """

    def __init__(
        self, train: LabelledArrays, holdout: LabelledArrays, *, seed: int, monitor: EvaluationMonitor | None = None
    ) -> None:
        assert train.y is not None and holdout.y is not None, "a probe needs labels"
        rng = np.random.default_rng([seed, LABELS, DRAWS])
        labels = train.y.numpy()
        drawn = [balanced_draw(labels, LABELS, rng) for _ in range(DRAWS)]
        # Draws overlap: each drawn image is embedded once.
        rows, places = np.unique(np.concatenate(drawn), return_inverse=True)
        self._draws = np.split(places, DRAWS)
        self._pool = train.x[torch.from_numpy(rows)]
        self._pool_labels = labels[rows]
        self._holdout = holdout
        self._seed = seed
        self._monitor = monitor or EvaluationMonitor()

    def accuracy(
        self, embed: Callable[[Tensor], Tensor], *, name: str = "a representation", dimensions: int | None = None
    ) -> float:
        """Share (0 to 1) of holdout labels that a linear SVM on `embed(x)` gets right.

        Args:
            embed: Maps samples [N, ...] to their representation [N, F]; called with a part of the split at a time.
            name: What a note calls the representation.
            dimensions: Principal components of the drawn samples that a larger F is reduced to; None: all is used.
        """
        assert self._holdout.y is not None
        advance = self._monitor.start(f"Linear probe on {name}", DRAWS)
        pool = embed(self._pool).flatten(1).double().numpy()
        machines = []
        for places in self._draws:
            drawn, labels = pool[places], self._pool_labels[places]
            machines.append(self._monitor.wait_for(functools.partial(self._fit, drawn, labels, dimensions)))
            advance(1)
        unconverged = sum(not machine.converged for machine in machines)
        if unconverged:
            self._monitor.note(
                f"{unconverged} of {DRAWS} linear probes on {name} reached the solver's limit of {MOST_ITERATIONS:,} "
                "iterations: their accuracy may be a little low."
            )
        right = [0] * DRAWS
        for start in range(0, len(self._holdout.x), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            features = embed(self._holdout.x[rows]).flatten(1).double().numpy()
            truth = self._holdout.y[rows].numpy()
            for number, machine in enumerate(machines):
                right[number] += int((machine.predict(features) == truth).sum())
            self._monitor.check()
        return float(np.mean([count / len(self._holdout.x) for count in right]))

    def _fit(self, x: Array, labels: NDArray[np.int64], dimensions: int | None) -> _Machine:
        with collector_paused():
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.preprocessing import StandardScaler
            from sklearn.svm import LinearSVC

        scaler = StandardScaler().fit(x)
        z = scaler.transform(x)
        components = None
        if dimensions is not None and z.shape[1] > dimensions:
            components = principal_components(z, dimensions)
            z = z @ components
        elif z.shape[1] > len(z):
            # The dual solver sees inner products alone: it takes the same steps in the span of the samples.
            components, triangle = np.linalg.qr(z.T)
            z = triangle.T
        is_dual = components is not None and dimensions is None
        options = {"dual": True} if is_dual else {}
        svm = LinearSVC(C=PENALTY, random_state=self._seed, max_iter=MOST_ITERATIONS, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            svm.fit(z, labels)
        return _Machine(scaler.mean_, scaler.scale_, components, svm, int(svm.n_iter_) < MOST_ITERATIONS)


@dataclass(frozen=True)
class _Machine:
    """A fitted classifier: standardize, reduce where there are components [F, D], and ask the SVM."""

    mean: Array
    scale: Array
    components: Array | None
    svm: object
    converged: bool

    def predict(self, features: Array) -> NDArray[np.int64]:
        z = (features - self.mean) / self.scale
        if self.components is not None:
            z = z @ self.components
        labels: NDArray[np.int64] = self.svm.predict(z)  # type: ignore[attr-defined]  # scikit-learn has no types
        return labels


def principal_components(z: Array, count: int) -> Array:
    """The first principal components [F, D] of centered samples `z` [N, F], D at most `count` and N.

    They share one factor, with which the D scores have a mean variance of 1 over `z`: a solver then works on values of
    its usual size, and distances keep their proportions. Found in the N-dimensional space of the samples.
    """
    values, vectors = np.linalg.eigh(z @ z.T)
    kept = np.flatnonzero(values > values[-1] * 1e-10)[::-1][:count]
    if not len(kept):
        return np.zeros((z.shape[1], 1))
    directions = z.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    components: Array = directions / np.sqrt(values[kept].mean() / len(z))
    return components


def balanced_draw(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the row numbers of `count` samples, equally many of each class, without replacement.

    Where the rarest class has fewer than `count / classes` samples, every class gives as many as that one has.

    Raises:
        InputError: There are fewer than two classes.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise InputError(
            f"The training split holds {len(classes)} class, but a linear probe needs at least 2: "
            f"use a split with more classes, or set report.evaluation to none."
        )
    per_class = min(max(1, count // len(classes)), int(sizes.min()))
    return np.concatenate([rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in classes])


def balanced_rows(labels: NDArray[np.int64], count: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Draw as `balanced_draw` does, but refuse what it would cut: exactly `count // classes` rows of each class.

    Raises:
        InputError: There are fewer labels than classes, fewer than two classes, or too few samples of a class.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    per_class = count // len(classes)
    if per_class < 1:
        raise InputError(f"{count} labels are fewer than the {len(classes)} classes: ask for at least one per class.")
    if sizes.min() < per_class:
        raise InputError(
            f"{count} labels are {per_class} per class, but class {classes[sizes.argmin()]} has only {sizes.min()} "
            f"samples: ask for at most {int(sizes.min()) * len(classes)} labels."
        )
    return balanced_draw(labels, count, np.random.default_rng(seed))
