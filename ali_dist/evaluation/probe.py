"""How much a linear classifier can read off a representation, and class-balanced draws of labels.

A linear SVM on 1000 class-balanced training labels, mean over 3 draws of them, accuracy on the whole holdout split.
Source: the protocol of arXiv 1606.00704 section 4 for SVHN (L2-SVM on the encoder's features), in small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.interfaces import LabelledArrays

LABELS = 1000
DRAWS = 3
PENALTY = 0.1


class LinearProbe:
    """Measures representations of one labelled pair of splits; the seed fixes the draws, so that scores compare.

    Args:
        train: Labelled samples that the draws come from.
        holdout: Labelled samples that accuracies are measured on.
        seed: Seed of the draws and of the solver.

    Raises:
        InputError: The training split holds a single class.
    """

    def __init__(self, train: LabelledArrays, holdout: LabelledArrays, *, seed: int) -> None:
        assert train.y is not None and holdout.y is not None, "a probe needs labels"
        rng = np.random.default_rng([seed, LABELS, DRAWS])
        labels = train.y.numpy()
        drawn = [balanced_draw(labels, LABELS, rng) for _ in range(DRAWS)]
        # Draws overlap: each drawn image is embedded once.
        self._rows, places = np.unique(np.concatenate(drawn), return_inverse=True)
        self._draws = np.split(places, DRAWS)
        self._train = train
        self._holdout = holdout
        self._seed = seed

    def accuracy(self, embed: Callable[[Tensor], Tensor]) -> float:
        """Share (0 to 1) of holdout labels that a linear SVM on `embed(x)` gets right; x [N, ...] -> [N, F]."""
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        assert self._train.y is not None and self._holdout.y is not None
        pool = embed(self._train.x[torch.from_numpy(self._rows)]).flatten(1).double().numpy()
        pool_labels = self._train.y.numpy()[self._rows]
        holdout = embed(self._holdout.x).flatten(1).double().numpy()
        scores = []
        for places in self._draws:
            scaler = StandardScaler().fit(pool[places])
            svm = LinearSVC(C=PENALTY, random_state=self._seed, max_iter=5000)
            svm.fit(scaler.transform(pool[places]), pool_labels[places])
            scores.append(svm.score(scaler.transform(holdout), self._holdout.y.numpy()))
        return float(np.mean(scores))


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
