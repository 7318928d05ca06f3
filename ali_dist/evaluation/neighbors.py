"""The error of nearest neighbors: what a representation says of classes without any training on it.

Distances are Euclidean. Source of the measure: Donahue et al., ICLR 2017 (BiGAN, arXiv 1605.09782), section 4.1 (one
nearest neighbor on the encoder's features).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.evaluation.monitor import Advance
from ali_dist.evaluation.svm import EmbeddedSplit

NEIGHBORS = (1, 5)
_POOL_ROWS = 2048
_TEST_BYTES = 128_000_000  # of test features that are compared with one pass over the pool
_MOST_TEST_ROWS = 8192


def neighbor_errors(
    pool: EmbeddedSplit,
    test: EmbeddedSplit,
    *,
    columns: slice = slice(None),
    neighbors: Sequence[int] = NEIGHBORS,
    device: torch.device | str = "cpu",
    advance: Advance | None = None,
) -> list[float]:
    """Share (0 to 1) of wrong classes of test samples, by a vote of their nearest samples of a pool.

    Among classes with equally many votes, the one whose sample is nearest wins.

    Args:
        pool: Labelled samples.
        test: Labelled samples that are classified.
        columns: The features that distances are taken in.
        neighbors: Numbers of neighbors k; one error is given for each.
        device: Where distances are computed, in float32.
        advance: Called with the number of distances that are done; there are N of the pool times N of the test split.
    """
    classes = int(max(pool.labels.max(), test.labels.max())) + 1
    most = min(max(neighbors), len(pool.labels))
    step = max(1, min(_MOST_TEST_ROWS, _TEST_BYTES // (4 * pool.features.shape[1])))
    wrong = [0] * len(neighbors)
    for start in range(0, len(test.labels), step):
        queries = test[start : start + step]
        nearest = _nearest_labels(queries.features[:][:, columns], pool, columns, most, device, advance)
        truth = torch.from_numpy(queries.labels)
        for place, k in enumerate(neighbors):
            wrong[place] += int((vote(nearest[:, :k], classes) != truth).sum())
    return [count / len(test.labels) for count in wrong]


def vote(labels: Tensor, classes: int) -> Tensor:
    """The class [N] with most votes among `labels` [N, k], nearest first; of equals the one whose vote comes first."""
    k = labels.shape[1]
    # A vote counts 1 and a little more the nearer it is: all the little together is less than one vote, and each
    # little more than all the later ones.
    weights = 1 + 0.5 ** torch.arange(2, k + 2, dtype=torch.float64)
    return (F.one_hot(labels, classes) * weights[:, None]).sum(dim=1).argmax(dim=1)


def _nearest_labels(
    queries: NDArray[np.float32],
    pool: EmbeddedSplit,
    columns: slice,
    k: int,
    device: torch.device | str,
    advance: Advance | None,
) -> Tensor:
    """Labels int64 [N, k] of the pool's samples that are nearest to queries [N, F], nearest first."""
    x = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
    distances = torch.full((len(x), k), torch.inf, device=device)
    labels = torch.zeros(len(x), k, dtype=torch.int64, device=device)
    for start in range(0, len(pool.labels), _POOL_ROWS):
        rows = pool[start : start + _POOL_ROWS]
        others = torch.from_numpy(np.ascontiguousarray(rows.features[:][:, columns])).to(device)
        # |x|^2 is the same for all of a query's neighbors, so it is left out.
        gaps = torch.addmm(others.square().sum(dim=1), x, others.T, alpha=-2)
        candidates = torch.cat([distances, gaps], dim=1)
        known = torch.from_numpy(rows.labels).to(device).expand(len(x), -1)
        distances, places = candidates.topk(k, dim=1, largest=False, sorted=True)
        labels = torch.cat([labels, known], dim=1).gather(1, places)
        if advance is not None:
            advance(len(x) * len(rows.labels))
    return labels.cpu()
