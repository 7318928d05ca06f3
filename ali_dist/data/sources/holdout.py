"""Hold out a share of a source's samples as another split, always the same ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.errors import InputError

HOLDOUT = 0.1  # of data without splits, as of folders
_LEAST = 2  # samples that can be evaluated on, and trained on with batch norm
Rows = NDArray[np.int64]


def check_share(share: float) -> None:
    """Refuse a share that leaves nothing to train on, or is none.

    Raises:
        InputError: It is not from 0 to less than 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"--holdout is {share:g}, but must be from 0 to less than 1.")


def choose_share(share: float | None, splits: Collection[str]) -> float:
    """The share of `train` that is held out as `test` of data with these splits: none if there are others already.

    Args:
        share: What the user says; None: nothing.
        splits: Names of the splits that the data have.

    Raises:
        InputError: The share is impossible, or there is no need of any.
    """
    if set(splits) == {"train"}:
        share = HOLDOUT if share is None else share
        check_share(share)
        return share
    if share is not None:
        raise InputError(f"--holdout is for data without splits, but these have {', '.join(splits)}: leave it out.")
    return 0.0


def measurable_share(num_samples: int, share: float) -> float:
    """The share that holds out at least two samples, which is what evaluation needs, or none where there are too few.

    Args:
        num_samples: Number of all samples.
        share: From 0 to less than 1.
    """
    if round(num_samples * share) != 1:
        return share
    return _LEAST / num_samples if num_samples >= 2 * _LEAST else 0.0


def hold_out_rows(num_samples: int, share: float, classes: NDArray[np.integer[Any]] | None = None) -> tuple[Rows, Rows]:
    """Divide rows at random into those that are kept and those that are held out, both ascending.

    The rows of each class are gone through in turn, so that every class is held out by the same share.

    Args:
        num_samples: Number of rows.
        share: From 0 to less than 1; see `measurable_share` for few rows.
        classes: The class of each row [num_samples], if there are classes.
    """
    keys = np.random.Philox(key=0).random_raw(num_samples)  # raw words are the same in every version of numpy
    order = np.lexsort((keys, np.zeros(num_samples) if classes is None else classes))
    share = measurable_share(num_samples, share)
    num_held_out = np.round(share * np.arange(num_samples + 1))  # among the first rows of the order
    is_held_out = np.zeros(num_samples, dtype=bool)
    is_held_out[order[np.flatnonzero(np.diff(num_held_out))]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
