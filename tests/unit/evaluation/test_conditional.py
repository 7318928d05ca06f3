"""Judges of conditional samples: shares with known answers, and a judge that sees several attributes at once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ali_dist.evaluation import classifiers as classifier
from ali_dist.evaluation.classifiers import AttributeJudge, Classifier, train_attribute_judge
from ali_dist.evaluation.conditional import condition_kept, real_image_reference

CPU = torch.device("cpu")


def pixels(x: list[list[float]]) -> Tensor:
    """Images [N, C, 1, 1] whose channels are what the judges below read as logits."""
    return torch.tensor(x)[:, :, None, None]


READS_CLASSES = Classifier(nn.Flatten(), nn.Identity(), CPU)
READS_ATTRIBUTES = AttributeJudge(nn.Sequential(nn.Flatten(), nn.Identity()), CPU)


def test_class_shares_are_per_sample_in_all_and_per_class_asked() -> None:
    """3 of 4 zeros kept, the only two kept wrongly, one never asked for: no key rather than a made-up share."""
    seen = torch.eye(3)[[0, 0, 0, 2, 1]]
    asked = torch.eye(3)[[0, 0, 0, 0, 2]]
    metrics = condition_kept(READS_CLASSES, seen[:, :, None, None], asked, ["nil", "one", "two"])
    assert metrics == {"condition_kept": 0.6, "condition_kept_nil": 0.75, "condition_kept_two": 0.0}


def test_attribute_shares_count_presence_and_absence() -> None:
    """Asked (1,0) (1,0) (1,1) (0,1); seen (1,0) (1,1) (1,1) (1,1)."""
    seen = pixels([[1, -1], [1, 1], [1, 1], [1, 1]])
    asked = torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1]])
    metrics = condition_kept(READS_ATTRIBUTES, seen, asked, ["hat", "tie"])
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
    asked = torch.zeros(100, 1)
    asked[:3] = 1
    metrics = condition_kept(READS_ATTRIBUTES, pixels([[-1.0]] * 100), asked, ["bald"])
    assert metrics["condition_kept_bald"] == pytest.approx(0.97)
    assert metrics["condition_balanced_bald"] == 0.5


def test_an_attribute_that_is_always_asked_for_is_judged_on_what_occurs() -> None:
    metrics = condition_kept(READS_ATTRIBUTES, pixels([[1.0], [1], [1], [-1]]), torch.ones(4, 1), ["hat"])
    assert metrics["condition_balanced_hat"] == metrics["condition_kept_hat"] == 0.75


def test_without_names_numbers_stand_in() -> None:
    metrics = condition_kept(READS_CLASSES, torch.eye(2)[:, :, None, None], torch.eye(2), ())
    assert metrics == {"condition_kept": 1, "condition_kept_0": 1, "condition_kept_1": 1}


def test_the_ceiling_is_the_same_measure_under_reference_keys() -> None:
    x, c = pixels([[1, -1], [1, 1]]), torch.tensor([[1.0, 0], [0, 1]])
    metrics = condition_kept(READS_ATTRIBUTES, x, c, ["hat", "tie"])
    assert real_image_reference(READS_ATTRIBUTES, x, c, ["hat", "tie"]) == {
        f"{k}_reference": v for k, v in metrics.items()
    }


# ---- the judge of attributes -----------------------------------------------------------------------------------


def corners(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] with a bright spot in each of 3 corners or not, independently: 3 attributes."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(count, 3, generator=g) < torch.tensor([0.5, 0.5, 0.2])).float()
    x = 0.3 * torch.rand(count, 1, 8, 8, generator=g)
    for attribute, (row, column) in enumerate([(0, 0), (0, 6), (6, 0)]):
        x[:, 0, row : row + 2, column : column + 2] += 0.6 * y[:, attribute, None, None]
    return x, y


def test_one_judge_learns_all_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "STEPS", 150)
    judge = train_attribute_judge(*corners(600, 0), seed=0, device="cpu")
    x, y = corners(300, 1)
    assert judge.has(x).dtype == torch.bool
    metrics = real_image_reference(judge, x, y, ["a", "b", "c"])
    assert metrics["condition_kept_reference"] > 0.98
    assert metrics["condition_balanced_c_reference"] > 0.95
    # Conditions that are the wrong way round are noticed.
    assert condition_kept(judge, x, 1 - y, ["a", "b", "c"])["condition_kept"] < 0.02


def test_larger_images_get_more_updates_within_a_bound() -> None:
    sizes = {side: classifier.judge_updates(torch.zeros(1, 3, side, side)) for side in (8, 16, 24, 32, 64)}
    assert sizes == {8: 400, 16: 400, 24: 900, 32: 1600, 64: 1600}


def test_same_seed_same_judge_and_the_callers_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "STEPS", 3)
    before = torch.get_rng_state(), repr(np.random.get_state()), repr(random.getstate())
    x, y = corners(30, 0)
    one, again, other = (train_attribute_judge(x, y, seed=seed, device="cpu").network(x) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(np.random.get_state()), repr(random.getstate()))
