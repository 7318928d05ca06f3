"""Fréchet distance between two sets of features, each seen as one Gaussian.

Source: Heusel et al., NeurIPS 2017 (arXiv 1706.08500), eq. 6, with the features of `classifiers.py` in place of
Inception's: these images are too small and too unlike photographs for an ImageNet network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

REFERENCE_VARIANCE = 1600.0
"""Total variance that the training images' features are scaled to. A convention: 64 features at 5 units each."""


@dataclass(frozen=True)
class Gaussian:
    """The first two moments of features: mean [F] and unbiased covariance [F, F], float64."""

    mean: Array
    covariance: Array

    @classmethod
    def fit(cls, features: Tensor) -> Self:
        """Take the moments of `features` [N, F], N >= 2.

        Raises:
            ValueError: They have another shape.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"Features must be [N >= 2, F], not {tuple(features.shape)}.")
        values = features.double().numpy()
        return cls(values.mean(axis=0), np.atleast_2d(np.cov(values, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), at least 0, in squared feature units.

    (A B)^(1/2) has the eigenvalues of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: no complex square root, and
    singular covariances (features that are always 0) do no harm.
    """
    root = _square_root(a.covariance)
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)).sum()
    gap = np.square(a.mean - b.mean).sum()
    return max(0.0, float(gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))


def scaled_frechet_distance(features: Tensor, reference: Gaussian) -> float:
    """Fréchet distance of `features` [N, F] to `reference`, in units where the reference's total variance is 1600.

    How large a classifier's features are is an accident of its training; without the scaling, two classifiers that
    agree on every label can give distances that differ tenfold.

    Raises:
        ValueError: The reference features are all alike.
    """
    total = float(np.trace(reference.covariance))
    if total <= 0:
        raise ValueError("The reference features do not vary: no distance can be scaled by them.")
    return frechet_distance(Gaussian.fit(features), reference) * REFERENCE_VARIANCE / total


def _square_root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
