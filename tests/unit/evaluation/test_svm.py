"""The SVM protocol: splits, draws, the choice of C, and errors with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ali_dist.errors import InputError
from ali_dist.evaluation.probe import balanced_rows
from ali_dist.evaluation.svm import PENALTIES, EmbeddedSplit, LinearMachine, fit_svm, hold_out_rows, svm_protocol


def blobs(count: int, seed: int, *, classes: int = 3, features: int = 40, gap: float = 0.25) -> EmbeddedSplit:
    """Gaussian classes around fixed random centers, in turn."""
    rng = np.random.default_rng(seed)
    centers = gap * np.random.default_rng(99).normal(size=(classes, features))
    labels = np.arange(count) % classes
    return EmbeddedSplit((centers[labels] + rng.normal(size=(count, features))).astype(np.float32), labels)


POOL, VALIDATION, TEST = blobs(600, 0), blobs(100, 1), blobs(5000, 2)


def test_the_paper_holds_out_the_last_10_000_of_73_257() -> None:
    assert hold_out_rows(73_257) == (slice(0, 63_257), slice(63_257, 73_257))
    pool, validation = hold_out_rows(1437)
    assert pool.stop == validation.start == 1437 - 196
    with pytest.raises(InputError, match="holds 3 samples"):
        hold_out_rows(3)


def test_the_candidates_for_c_are_natural_powers() -> None:
    assert len(PENALTIES) == 50
    np.testing.assert_allclose(np.diff(np.log(PENALTIES)), 40 / 49)
    assert (PENALTIES[0], PENALTIES[-1]) == pytest.approx((np.exp(-20), np.exp(20)))


@pytest.mark.parametrize("classes", [2, 3])
def test_fitting_in_the_span_of_the_samples_changes_nothing(classes: int) -> None:
    """More features than samples: weights and answers equal those of scikit-learn's solver on the features."""
    from sklearn.svm import LinearSVC

    train, test = blobs(30, 3, classes=classes, features=100), blobs(400, 4, classes=classes, features=100)
    ours = fit_svm(train, 0.1, seed=5)
    theirs = LinearSVC(C=0.1, random_state=5).fit(train.features[:].astype(np.float64), train.labels)
    np.testing.assert_allclose(ours.weights[:, -len(theirs.coef_) :], theirs.coef_.T, rtol=1e-6, atol=1e-9)
    assert ours.error(test) == pytest.approx(1 - theirs.score(test.features, test.labels))
    assert ours.error(test) > 0  # not a comparison of two perfect scores


def test_standardizing_undoes_scales_and_shifts() -> None:
    scales = np.geomspace(1e-3, 1e3, 40).astype(np.float32)
    plain, bent = (
        fit_svm(split, 0.1, seed=0, standardize=True)
        for split in (POOL, EmbeddedSplit(POOL.features[:] * scales + 5, POOL.labels))
    )
    assert bent.error(EmbeddedSplit(TEST.features[:] * scales + 5, TEST.labels)) == pytest.approx(
        plain.error(TEST), abs=0.01
    )
    assert fit_svm(
        EmbeddedSplit(np.ones((4, 2), np.float32), np.arange(4) % 2), 1.0, seed=0, standardize=True
    ).converged


def test_errors_are_counted_over_all_chunks_of_rows() -> None:
    """A machine that always answers class 7 is wrong on the rest, in a split larger than one chunk."""
    labels = np.where(np.arange(10_000) < 2_500, 7, 1)
    machine = LinearMachine(np.zeros((1, 2)), np.array([1.0, 0.0]), np.array([7, 1]), converged=True)
    assert machine.error(EmbeddedSplit(np.zeros((10_000, 1), np.float32), labels)) == 0.75


def test_the_protocol_reports_mean_and_population_spread_of_its_draws() -> None:
    result = svm_protocol(POOL, VALIDATION, TEST, labels=30, draws=4, seed=1, penalties=[1e-2])
    errors = [
        fit_svm(POOL[balanced_rows(POOL.labels, 30, [1, draw])], 1e-2, seed=1).error(TEST) for draw in (1, 2, 3, 4)
    ]
    assert len(set(errors)) > 1
    assert result.error_mean == pytest.approx(np.mean(errors))
    assert result.error_std == pytest.approx(np.std(errors))
    assert (result.draws, result.labels, result.features, result.unconverged) == (4, 30, 40, 0)


def test_c_is_chosen_on_validation_alone() -> None:
    """Validation labels that contradict the pool's make another C best; the test split does not matter to it."""
    penalties = [1e-7, 1e-1]
    rare = EmbeddedSplit(np.vstack([POOL.features[:], POOL.features[:1]]), np.append(POOL.labels, 0))
    usual = svm_protocol(rare, VALIDATION, TEST, labels=60, draws=1, penalties=penalties)
    turned = EmbeddedSplit(TEST.features, (TEST.labels + 1) % 3)
    assert usual.penalty == svm_protocol(rare, VALIDATION, turned, labels=60, draws=1, penalties=penalties).penalty
    wrong = EmbeddedSplit(VALIDATION.features, (VALIDATION.labels + 1) % 3)
    errors = [fit_svm(rare[balanced_rows(rare.labels, 60, [0, 0])], C, seed=0).error(wrong) for C in penalties]
    opposed = svm_protocol(rare, wrong, TEST, labels=60, draws=1, penalties=penalties)
    assert opposed.penalty == penalties[int(np.argmin(errors))]
    assert opposed.validation_error == min(errors)


def test_noise_gets_chance_level_and_the_labels_themselves_full_marks() -> None:
    rng = np.random.default_rng(0)
    noise = [
        EmbeddedSplit(rng.normal(size=split.features.shape).astype(np.float32), split.labels)
        for split in (POOL, VALIDATION, TEST)
    ]
    assert svm_protocol(*noise, labels=60, draws=3, penalties=[1e-2, 1]).error_mean == pytest.approx(2 / 3, abs=0.05)
    revealed = [
        EmbeddedSplit(np.eye(3, dtype=np.float32)[split.labels], split.labels) for split in (POOL, VALIDATION, TEST)
    ]
    assert svm_protocol(*revealed, labels=60, draws=3, penalties=[1.0]).error_mean == 0


def test_two_processes_give_the_result_of_one_and_progress_counts_every_fit() -> None:
    reported: list[tuple[int, int]] = []
    arguments: dict[str, Any] = {"labels": 30, "draws": 3, "seed": 2, "penalties": [1e-3, 1e-1]}
    one = svm_protocol(POOL, VALIDATION, TEST, **arguments, on_fit=lambda *counts: reported.append(counts))
    assert reported == [(done, 5) for done in range(1, 6)]
    assert svm_protocol(POOL, VALIDATION, TEST, **arguments, jobs=2) == one
    assert svm_protocol(POOL, VALIDATION, TEST, **(arguments | {"seed": 3})) != one


def test_a_class_that_the_pool_lacks_is_named() -> None:
    with pytest.raises(InputError, match="test split holds class 2"):
        svm_protocol(POOL[POOL.labels < 2], VALIDATION[VALIDATION.labels < 2], TEST, draws=1)


def test_balanced_rows_are_distinct_and_equally_many_per_class() -> None:
    labels = np.repeat([0, 1, 2], [500, 40, 60])
    rows = balanced_rows(labels, 100, 0)
    assert len(set(rows.tolist())) == len(rows) == 99
    assert np.bincount(labels[rows]).tolist() == [33, 33, 33]
    assert balanced_rows(labels, 100, 0).tolist() == rows.tolist() != balanced_rows(labels, 100, 1).tolist()


def test_labels_that_are_not_there_are_not_made_up() -> None:
    labels = np.repeat([4, 5], [500, 40])
    with pytest.raises(InputError, match="50 per class, but class 5 has only 40 samples: ask for at most 80"):
        balanced_rows(labels, 100, 0)
    with pytest.raises(InputError, match="1 labels are fewer than the 2 classes"):
        balanced_rows(labels, 1, 0)
