"""Competitors of a K+1 discriminator: classifiers trained on the same few labels alone.

- a linear SVM on raw pixels, its C chosen by cross-validation among those labels;
- a small convolutional network with batch norm, dropout, weight decay and random shifts.

Neither sees an unlabelled sample or a label beyond those given. The network's settings are fixed here: with 100 labels
there is no honest way to tune them. On scikit-learn's digits at 16x16 with 20, 100, 1000 labels the SVM is wrong on
about 26, 10, 5 % of 360 test images, the network on 19, 2, 0.3 %.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.evaluation.batched import in_batches, make_generator
from ali_dist.evaluation.classifiers import fill_weights
from ali_dist.evaluation.interfaces import LabelledArrays

PENALTIES = tuple(10.0**power for power in range(-5, 1))
FOLDS = 5
UNTUNED_PENALTY = 0.1
"""C where a class has a single label, so that nothing can be held out."""

STEPS = 600
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.3
FEATURES = 128
LARGEST_SHIFT = 1 / 8
"""Largest random shift in each direction, as a share of the image's side."""


def few_label_baselines(
    train: LabelledArrays,
    holdout: LabelledArrays,
    rows: NDArray[np.int64],
    *,
    seed: int,
    device: torch.device | str,
    steps: int = STEPS,
) -> dict[str, float]:
    """Measure the errors of both competitors on the whole holdout split.

    Args:
        train: Labelled images; nothing but `rows` of it is used.
        holdout: Labelled images.
        rows: Row numbers of the labelled samples, as `balanced_rows` draws them.
        seed: Seed of folds, weights and augmentation.
        device: Where the network runs.
        steps: Updates of the network.

    Returns:
        few_labels_svm_error, few_labels_cnn_error: Share (0 to 1) of wrong holdout labels.
    """
    assert train.y is not None, "few-label baselines need labels"
    chosen = torch.from_numpy(rows)
    labelled = LabelledArrays(train.x[chosen], train.y[chosen])
    return {
        "few_labels_svm_error": pixel_svm_error(labelled, holdout, seed=seed),
        "few_labels_cnn_error": small_cnn_error(labelled, holdout, seed=seed, device=device, steps=steps),
    }


def pixel_svm_error(labelled: LabelledArrays, holdout: LabelledArrays, *, seed: int) -> float:
    """Share (0 to 1) of wrong holdout labels of a linear SVM on centered pixels in [0, 1].

    C is the best of the powers of 10 from 1e-5 to 1 by stratified 5-fold cross-validation on `labelled` (fewer folds
    where a class has fewer labels). Pixels are not standardised: on digits that costs a third more errors, since
    pixels of the border are noise then. A larger C is a hard margin that takes the solver minutes.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import LinearSVC

    assert labelled.y is not None
    assert holdout.y is not None
    mean = labelled.x.mean(dim=0)
    x, x_holdout = ((split.x - mean).flatten(1).numpy() for split in (labelled, holdout))
    dual = len(x) < x.shape[1]
    if dual:  # the span of the samples holds the same solution in fewer dimensions: see `fit_svm` of evaluation
        basis = np.linalg.qr(x.T)[0]
        x, x_holdout = x @ basis, x_holdout @ basis
    svm = LinearSVC(C=UNTUNED_PENALTY, random_state=seed, dual=dual)
    folds = min(FOLDS, int(labelled.y.unique(return_counts=True)[1].min()))
    if folds >= 2:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        svm = GridSearchCV(svm, {"C": PENALTIES}, cv=splitter)
    with warnings.catch_warnings():  # a C too large to converge with is a candidate like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(x, labelled.y.numpy())
    return 1 - float(svm.score(x_holdout, holdout.y.numpy()))


def small_cnn_error(
    labelled: LabelledArrays, holdout: LabelledArrays, *, seed: int, device: torch.device | str, steps: int = STEPS
) -> float:
    """Share (0 to 1) of wrong holdout labels of a small network trained on `labelled` [N, C, H, W] alone.

    AdamW with a cosine decay to 0, random shifts of up to 1/8 of the side with the border repeated. No flips: they
    change what a digit says. The same arguments give the same error (bit for bit on a CPU).
    """
    assert labelled.y is not None
    assert holdout.y is not None
    draws = make_generator(seed, "few-label network")
    device = torch.device(device)
    trunk, head = _build_small_cnn(labelled.x.shape[1], int(labelled.y.max()) + 1, draws)
    network = nn.Sequential(trunk, head).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(labelled.x), (BATCH_SIZE,), generator=draws)
            # Masks are drawn here because nn.Dropout would draw from torch's global generator, which is the caller's.
            kept = (torch.rand(BATCH_SIZE, FEATURES, generator=draws) >= DROPOUT).float() / (1 - DROPOUT)
            features = trunk(shift_images(labelled.x[rows], draws).to(device)) * kept.to(device)
            loss = F.cross_entropy(head(features), labelled.y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    answers = in_batches(network.eval(), holdout.x, device, "few-label network's logits").argmax(dim=1)
    return float((answers != holdout.y).double().mean())


def shift_images(x: Tensor, draws: torch.Generator) -> Tensor:
    """Move each of the images [N, C, H, W] by up to 1/8 of its sides; what that uncovers repeats the border."""
    count, _, height, width = x.shape
    sources = []
    for size in (height, width):
        reach = int(size * LARGEST_SHIFT)
        offset = torch.randint(-reach, reach + 1, (count, 1), generator=draws)
        sources.append((torch.arange(size) + offset).clamp(0, size - 1))
    rows, columns = sources
    return x[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _build_small_cnn(channels: int, classes: int, draws: torch.Generator) -> tuple[nn.Module, nn.Module]:
    """Build four convolutions with batch norm and a hidden layer, about 200,000 weights, for images of any size."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    with torch.device("meta"):
        trunk = nn.Sequential(
            *block(channels, 32),
            *block(32, 32),
            nn.MaxPool2d(2, ceil_mode=True),
            *block(32, 64),
            *block(64, 64),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, FEATURES),
            nn.ReLU(),
        )
        head = nn.Linear(FEATURES, classes)
    fill_weights(nn.Sequential(trunk, head), draws)
    return trunk, head
