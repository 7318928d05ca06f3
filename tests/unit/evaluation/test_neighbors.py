"""Nearest neighbors, and features that are kept in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from ali_dist.evaluation import neighbors
from ali_dist.evaluation.neighbors import neighbor_errors, vote
from ali_dist.evaluation.stored_features import StoredFeatures
from ali_dist.evaluation.svm import EmbeddedSplit, svm_protocol
from tests.unit.evaluation.test_svm import POOL, TEST, VALIDATION, blobs


@pytest.fixture
def files() -> Iterator[ExitStack]:
    """Closes files of features."""
    with ExitStack() as stack:
        yield stack


def stored(split: EmbeddedSplit, files: ExitStack, rows_at_once: int = 70) -> EmbeddedSplit:
    features = files.enter_context(StoredFeatures(*split.features.shape))
    for start in range(0, len(split.labels), rows_at_once):
        features.write(start, split.features[start : start + rows_at_once])
    return EmbeddedSplit(features, split.labels)


def test_the_errors_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts that do not divide the splits; distances of float32 blobs have no ties."""
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr(neighbors, "_POOL_ROWS", 77)
    monkeypatch.setattr(neighbors, "_MOST_TEST_ROWS", 130)
    pool, test = blobs(400, 0), blobs(500, 2)
    done: list[int] = []
    first, second = neighbor_errors(pool, test, neighbors=(1, 3), advance=done.append)
    assert sum(done) == 400 * 500
    theirs = KNeighborsClassifier(1).fit(pool.features[:], pool.labels)
    assert first == pytest.approx(1 - theirs.score(test.features[:], test.labels))
    _, places = KNeighborsClassifier(3).fit(pool.features[:], pool.labels).kneighbors(test.features[:])
    voted = vote(torch.from_numpy(pool.labels[places]), 3).numpy()
    assert second == pytest.approx((voted != test.labels).mean())
    assert 0 < second < first < 1


def test_some_columns_alone_can_decide() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise = rng.normal(size=(200, 5)).astype(np.float32) * 100
    split = EmbeddedSplit(np.hstack([labels[:, None].astype(np.float32) * 50, noise]), labels)
    other = EmbeddedSplit(np.hstack([labels[:, None].astype(np.float32) * 50 + 1, noise[::-1]]), labels)
    assert neighbor_errors(split, other, columns=slice(0, 1)) == [0, 0]
    assert neighbor_errors(split, other)[0] > 0.2


@pytest.mark.parametrize(
    ("labels", "winner"),
    [([2, 0, 0, 1, 1], 0), ([1, 0, 0, 1, 2], 1), ([0, 1, 1, 0, 2], 0), ([3, 2, 1, 0, 4], 3), ([0, 4, 4, 4, 0], 4)],
)
def test_most_votes_win_and_among_equals_the_nearest(labels: list[int], winner: int) -> None:
    assert vote(torch.tensor([labels]), 5).tolist() == [winner]


def test_features_in_a_file_are_those_in_memory(files: ExitStack) -> None:
    kept = stored(POOL, files)
    for rows in (slice(3, 9), np.array([5, 500, 5]), POOL.labels == 1, slice(None)):
        np.testing.assert_array_equal(kept.features[rows], POOL.features[rows])
    assert isinstance(kept.features, StoredFeatures)
    np.testing.assert_array_equal(kept.features.first(20)[:], POOL.features[:20])
    assert kept.features.first(20).shape == (20, 40)


def test_a_file_of_features_has_no_name_that_could_stay_behind(
    files: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = stored(POOL, files)
    assert kept.features[:].nbytes == POOL.features[:].nbytes
    assert not list(tmp_path.iterdir())


def test_the_protocol_on_files_gives_the_result_of_memory_also_with_two_processes(files: ExitStack) -> None:
    in_memory = svm_protocol(POOL, VALIDATION, TEST, labels=30, draws=2, penalties=[1e-3, 1e-1])
    splits = [stored(split, files) for split in (POOL, VALIDATION, TEST)]
    for jobs in (1, 2):
        assert svm_protocol(*splits, labels=30, draws=2, penalties=[1e-3, 1e-1], jobs=jobs) == in_memory
