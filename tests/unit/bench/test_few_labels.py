"""The few-label competitors: they learn from the rows that they are given, and from nothing else."""

from __future__ import annotations

import random

import numpy as np
import torch

from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.probe import balanced_rows
from tests.bench.few_labels import few_label_baselines, pixel_svm_error, shift_images, small_cnn_error


def bars(count: int, seed: int) -> LabelledArrays:
    """Images [N, 1, 8, 8] of a bright bar, upright or level (the class), anywhere, on noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 0.6, (count, 1, 8, 8)).astype(np.float32)
    labels = np.arange(count) % 2
    for image, label, place in zip(x, labels, rng.integers(0, 8, count), strict=True):
        line = image[0] if label else image[0].T
        line[place, 1:7] += 0.4
    return LabelledArrays(torch.from_numpy(x), torch.from_numpy(labels))


def test_the_network_learns_what_no_linear_machine_can_and_only_from_the_rows_it_is_given() -> None:
    """Bars anywhere: pixels are about as likely in both classes. Labels outside the rows are scrambled."""
    train, holdout = bars(200, 0), bars(200, 1)
    assert train.y is not None
    rows = balanced_rows(train.y.numpy(), 60, 0)
    scrambled = 1 - train.y
    scrambled[rows] = train.y[rows]
    errors = few_label_baselines(LabelledArrays(train.x, scrambled), holdout, rows, seed=0, device="cpu", steps=60)
    assert errors["few_labels_cnn_error"] < 0.1
    assert errors["few_labels_svm_error"] > 0.2


def test_the_pixel_svm_reads_pixels_and_lives_with_one_label_per_class() -> None:
    x = torch.zeros(40, 1, 2, 2)
    y = torch.arange(40) % 2
    x[y == 1, 0, 0, 0] = 1
    for labels in (2, 4, 20):
        assert pixel_svm_error(LabelledArrays(x[:labels], y[:labels]), LabelledArrays(x, y), seed=0) == 0


def test_same_seed_same_network_and_the_callers_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), repr(np.random.get_state()), repr(random.getstate())
    labelled, holdout = bars(60, 0), bars(300, 1)
    errors = [small_cnn_error(labelled, holdout, seed=seed, device="cpu", steps=25) for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]
    pixel_svm_error(labelled, holdout, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(np.random.get_state()), repr(random.getstate()))


def test_shifts_move_whole_images_by_at_most_an_eighth() -> None:
    """Each shifted image is a crop of its own edge-padded original; all channels move together; many moves occur."""
    x = torch.rand(64, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    moved = shift_images(x, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (1, 1, 2, 2), mode="replicate")
    crops = {(r, c): padded[:, :, r : r + 16, c : c + 8] for r in range(5) for c in range(3)}
    matches = [[move for move, crop in crops.items() if torch.equal(crop[n], moved[n])] for n in range(64)]
    assert all(len(moves) == 1 for moves in matches)
    assert {moves[0] for moves in matches} == set(crops)
