"""Arrays that an evaluation cannot take are refused in a sentence.

Run: `make test ARGS=tests/unit/evaluation/test_refusals.py`
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ali_dist.evaluation.classifiers import train_attribute_classifier, train_classifier
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.reconstruction import mean_squared_error
from ali_dist.evaluation.svm import EmbeddedSplit

X = torch.zeros(3, 1, 4, 4)
CLASSES = torch.zeros(3, dtype=torch.int64)
ATTRIBUTES = torch.zeros(3, 2)
FEATURES = np.zeros((3, 2), np.float32)

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "pixels in bytes": (lambda: LabelledArrays(X.byte()), r"x must be float32 .*, not torch.uint8 \(3, 1, 4, 4\)"),
    "images without channels": (lambda: LabelledArrays(X[:, 0]), r"x must be .* \(3, 4, 4\)"),
    "classes in floats": (lambda: LabelledArrays(X, CLASSES.float()), r"y must be class labels int64 \[3\]"),
    "too few labels": (lambda: LabelledArrays(X, CLASSES[:2]), r"not torch.int64 \(2,\)"),
    "a classifier without labels": (lambda: train_classifier(LabelledArrays(X), seed=0, device="cpu"), "have none"),
    "a classifier of attributes": (
        lambda: train_classifier(LabelledArrays(X, ATTRIBUTES), seed=0, device="cpu"),
        "needs images with class labels",
    ),
    "attributes of other images": (
        lambda: train_attribute_classifier(X, ATTRIBUTES[:2], seed=0, device="cpu"),
        r"must be float32 \[3, A\], not torch.float32 \(2, 2\)",
    ),
    "features in doubles": (lambda: EmbeddedSplit(FEATURES.astype(float), np.zeros(3, int)), "not float64"),
    "too few labels of features": (lambda: EmbeddedSplit(FEATURES, np.zeros(2, int)), "one for each row"),
    "reconstructions of other images": (lambda: mean_squared_error(X, X[:2]), "must have one shape"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_arrays_of_another_form_are_refused(refused: str) -> None:
    call, sentence = REFUSED[refused]
    with pytest.raises(ValueError, match=sentence):
        call()
