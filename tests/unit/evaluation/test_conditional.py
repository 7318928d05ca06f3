"""How conditions are kept: shares with known answers, and a classifier of several attributes at once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ali_dist.evaluation import classifiers
from ali_dist.evaluation.classifiers import AttributeClassifier, Classifier, train_attribute_classifier
from ali_dist.evaluation.conditional import condition_kept, real_image_reference

CPU = torch.device("cpu")


def pixels(x: list[list[float]]) -> Tensor:
    """Images [N, C, 1, 1] whose channels the classifiers below read as logits."""
    return torch.tensor(x)[:, :, None, None]


READS_CLASSES = Classifier(nn.Flatten(), nn.Identity(), CPU)
READS_ATTRIBUTES = AttributeClassifier(nn.Sequential(nn.Flatten(), nn.Identity()), CPU)


def test_class_shares_are_over_all_samples_and_over_those_of_each_class() -> None:
    """3 of 4 nils are kept and the only two is not; one is never asked for, so it has no key."""
    predicted = torch.eye(3)[[0, 0, 0, 2, 1]]
    requested = torch.eye(3)[[0, 0, 0, 0, 2]]
    metrics = condition_kept(READS_CLASSES, predicted[:, :, None, None], requested, ["nil", "one", "two"])
    assert metrics == {"condition_kept": 0.6, "condition_kept_nil": 0.75, "condition_kept_two": 0.0}


def test_keys_are_printable_whatever_classes_are_called() -> None:
    """A line break would tear a line of metrics apart, and a byte that is not UTF-8 cannot be written at all."""
    names = ["a\nb", "caf\udce9", "\x1b[2J", "é 字"]
    metrics = condition_kept(READS_CLASSES, torch.eye(4)[:, :, None, None], torch.eye(4), names)
    assert list(metrics)[1:] == [
        "condition_kept_a\\nb",
        "condition_kept_caf\\xe9",
        "condition_kept_\\x1b[2J",
        "condition_kept_é 字",
    ]


def test_attribute_shares_count_presence_and_absence() -> None:
    """Requested: (1,0) (1,0) (1,1) (0,1); predicted: (1,0) (1,1) (1,1) (1,1)."""
    predicted = pixels([[1, -1], [1, 1], [1, 1], [1, 1]])
    requested = torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1]])
    metrics = condition_kept(READS_ATTRIBUTES, predicted, requested, ["hat", "tie"])
    assert metrics == pytest.approx(
        {
            "condition_kept": 0.75,
            "condition_kept_hat": 0.75,
            "condition_kept_tie": 0.75,
            "condition_balanced": 0.625,
            "condition_balanced_hat": 0.5,
            "condition_balanced_tie": 0.75,
        }
    )


def test_ignoring_a_rare_attribute_looks_good_only_unbalanced() -> None:
    requested = torch.zeros(100, 1)
    requested[:3] = 1
    metrics = condition_kept(READS_ATTRIBUTES, pixels([[-1.0]] * 100), requested, ["bald"])
    assert metrics["condition_kept_bald"] == pytest.approx(0.97)
    assert metrics["condition_balanced_bald"] == 0.5


def test_an_attribute_that_is_always_requested_is_balanced_over_what_occurs() -> None:
    metrics = condition_kept(READS_ATTRIBUTES, pixels([[1.0], [1], [1], [-1]]), torch.ones(4, 1), ["hat"])
    assert metrics["condition_balanced_hat"] == metrics["condition_kept_hat"] == 0.75


def test_without_names_classes_are_numbered() -> None:
    metrics = condition_kept(READS_CLASSES, torch.eye(2)[:, :, None, None], torch.eye(2), ())
    assert metrics == {"condition_kept": 1, "condition_kept_0": 1, "condition_kept_1": 1}


def test_real_images_get_the_same_measure_under_reference_keys() -> None:
    x, c = pixels([[1, -1], [1, 1]]), torch.tensor([[1.0, 0], [0, 1]])
    metrics = condition_kept(READS_ATTRIBUTES, x, c, ["hat", "tie"])
    assert real_image_reference(READS_ATTRIBUTES, x, c, ["hat", "tie"]) == {
        f"{k}_reference": v for k, v in metrics.items()
    }


# ---- the classifier of attributes -----------------------------------------------------------------------------------


def corners(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] with a bright spot in each of 3 corners or not, independently: 3 attributes."""
    draws = torch.Generator().manual_seed(seed)
    y = (torch.rand(count, 3, generator=draws) < torch.tensor([0.5, 0.5, 0.2])).float()
    x = 0.3 * torch.rand(count, 1, 8, 8, generator=draws)
    for attribute, (row, column) in enumerate([(0, 0), (0, 6), (6, 0)]):
        x[:, 0, row : row + 2, column : column + 2] += 0.6 * y[:, attribute, None, None]
    return x, y


def test_one_classifier_learns_all_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 150)
    classifier = train_attribute_classifier(*corners(600, 0), seed=0, device="cpu")
    x, y = corners(300, 1)
    assert classifier.detect_attributes(x).dtype == torch.bool
    metrics = real_image_reference(classifier, x, y, ["a", "b", "c"])
    assert metrics["condition_kept_reference"] > 0.98
    assert metrics["condition_balanced_c_reference"] > 0.95
    # The reverse of the true conditions is not kept.
    assert condition_kept(classifier, x, 1 - y, ["a", "b", "c"])["condition_kept"] < 0.02


def test_larger_images_get_more_updates_within_a_bound() -> None:
    sizes = {side: classifiers.classifier_updates(torch.zeros(1, 3, side, side)) for side in (8, 16, 24, 32, 64)}
    assert sizes == {8: 400, 16: 400, 24: 900, 32: 1600, 64: 1600}


def test_same_seed_same_classifier_and_the_callers_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 3)
    before = torch.get_rng_state(), repr(np.random.get_state()), repr(random.getstate())
    x, y = corners(30, 0)
    one, again, other = (train_attribute_classifier(x, y, seed=seed, device="cpu").network(x) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(np.random.get_state()), repr(random.getstate()))
