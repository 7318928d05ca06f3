"""scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ali_dist.data.sources.base import SourceSplit, samples_from_arrays


def digits_splits() -> Iterator[SourceSplit]:
    """Give uint8 [1, 8, 8] in ten classes, 1437 to train and 360 to test on.

    The gray levels v from 0 to 16 become round(v * 255 / 16).

    Source: UCI "Optical Recognition of Handwritten Digits" test set, as shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(x, labels, test_size=360, stratify=labels, random_state=0)
    for name, xs, ys in (("train", x_train, y_train), ("test", x_test, y_test)):
        yield SourceSplit(
            name=name,
            num_samples=len(xs),
            shape=(1, 8, 8),
            select_samples=samples_from_arrays(xs, ys, f"Digit of {name}"),
            settings={"name": "digits"},
            classes=tuple(str(digit) for digit in range(10)),
            class_numbers=ys,
            is_shuffled=True,
        )
