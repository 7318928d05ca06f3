"""What evaluation reads of a split, what it keeps of the data alone, and how it ends when it is asked to."""

from __future__ import annotations

import functools
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation import classifiers
from ali_dist.evaluation.evaluators import ImageEvaluator
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.monitor import EvaluationMonitor, EvaluationStopped
from ali_dist.evaluation.probe import LinearProbe, principal_components
from ali_dist.evaluation.reference_cache import FOLDER, ReferenceCache
from ali_dist.evaluation.split_loading import hold_out_share, load_evaluation_arrays, load_rows
from ali_dist.model.data_space import DataSpace
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import WatchedStore, make_labelled_arrays, write_arrays
from tests.unit.evaluation.test_evaluators import PixelModel, stripes

SHAPE = (1, 8, 8)
SPACE = DataSpace(SHAPE, 8)


# ---- reading ---------------------------------------------------------------------------------------------------


def test_a_large_split_is_sampled_within_its_memory_from_all_of_it(tmp_path: Path) -> None:
    """0.1 MB hold 390 of 2000 images; the same ones each time, in their order, with their own labels."""
    x, y = make_labelled_arrays(2000, shape=SHAPE)
    store, index = write_arrays(tmp_path / "extra", x, y, per_shard=300)
    stored = sum(shard.bytes for shard in index.shards)
    watched = WatchedStore(store)
    arrays = load_evaluation_arrays(watched, index, SPACE, 0.1)
    again = load_evaluation_arrays(store, index, SPACE, 0.1)
    assert (len(arrays.x), arrays.total, arrays.split) == (390, 2000, "extra")
    assert arrays.x.nbytes <= 100_000
    assert sum(length for key, _, length in watched.reads if key.endswith(".tar")) < 0.2 * stored
    assert torch.equal(arrays.x, again.x)
    assert arrays.y is not None
    numbers = (arrays.x * 255).round().flatten(1)[:, :2].long() @ torch.tensor([1, 256])  # each image has its own
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    assert arrays.y.tolist() == y[numbers].tolist()
    assert numbers.max() > 1700  # not the first ones


def test_a_split_that_fits_is_used_whole(tmp_path: Path) -> None:
    x, y = make_labelled_arrays(100, shape=SHAPE)
    store, index = write_arrays(tmp_path / "test", x, y)
    arrays = load_evaluation_arrays(store, index, SPACE, 1)
    assert (len(arrays.x), arrays.total) == (100, None)
    assert torch.equal((arrays.x * 255).round().to(torch.uint8), torch.from_numpy(x))


def test_memory_for_less_than_two_samples_is_refused(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(10, shape=SHAPE))
    with pytest.raises(InputError, match=r"memory_mb.* allow at least"):
        load_evaluation_arrays(store, index, SPACE, 0.0003)


def test_the_share_to_choose_by_and_the_rest_part_the_split() -> None:
    share, rest = hold_out_share(1437)
    assert len(share) == 144
    assert sorted([*share, *rest]) == list(range(1437))
    assert hold_out_share(1437)[0].tolist() == share.tolist()


def test_rows_are_read_in_the_order_asked_for_and_no_others(tmp_path: Path) -> None:
    x, y = make_labelled_arrays(200, shape=SHAPE)
    store, index = write_arrays(tmp_path, x, y)
    watched = WatchedStore(store)
    rows = load_rows(watched, index, SPACE, [150, 3, 77])
    assert rows.y is not None
    assert rows.y.tolist() == y[[150, 3, 77]].tolist()
    assert torch.equal((rows.x * 255).round().to(torch.uint8), torch.from_numpy(x[[150, 3, 77]]))
    assert sum(length for _, _, length in watched.reads) == 3 * 64


# ---- references ------------------------------------------------------------------------------------------------


def measure(folders: list[Path], monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> tuple[dict[str, float], int]:
    """The metrics of a model with references kept in folders, and the number of classifiers that were trained."""
    trained: list[int] = []
    original = classifiers._train_network

    def count_training(*words: Any) -> None:
        trained.append(1)
        original(*words)

    monkeypatch.setattr(classifiers, "_train_network", count_training)
    train, holdout = stripes(300, 0), stripes(100, 1)
    known = [LabelledArrays(split.x, split.y, identity=name) for split, name in ((train, "a"), (holdout, "b"))]
    cache = ReferenceCache([LocalStore(folder) for folder in folders])
    metrics = ImageEvaluator(*known, samples=50, seed=seed, cache=cache).evaluate(PixelModel(log_sigma=-1.0))
    monkeypatch.setattr(classifiers, "_train_network", original)
    return metrics, len(trained)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 20)


@pytest.mark.usefixtures("_quick")
def test_references_are_found_again_and_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = measure([], monkeypatch)
    first, trained = measure([tmp_path], monkeypatch)
    found, trained_again = measure([tmp_path], monkeypatch)
    assert (trained, trained_again) == (1, 0)
    assert plain == first == found
    assert measure([tmp_path], monkeypatch, seed=1)[1] == 1  # another seed, another classifier
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_a_damaged_reference_is_computed_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = measure([tmp_path], monkeypatch)
    path = next((tmp_path / FOLDER).glob("classifier-*"))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-100] ^= 0xFF
    content = {"cut": bytes(data[:500]), "flip": bytes(data), "foreign": b"no tensors at all"}[damage]
    path.write_bytes(content)
    assert measure([tmp_path], monkeypatch) == (first, 1)
    assert path.read_bytes() != content
    assert measure([tmp_path], monkeypatch) == (first, 0)


@pytest.mark.usefixtures("_quick")
def test_where_the_data_cannot_be_written_the_run_folder_keeps_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "data"
    blocked.mkdir()
    (blocked / FOLDER).write_text("a file where the folder would be")
    measure([blocked, tmp_path / "run"], monkeypatch)
    assert measure([blocked, tmp_path / "run"], monkeypatch)[1] == 0
    assert list((tmp_path / "run" / FOLDER).iterdir())


# ---- progress, stops and warnings ------------------------------------------------------------------------------


def test_an_evaluation_ends_at_the_next_batch_after_it_was_asked_to() -> None:
    """Asked before anything, in the middle of the classifier, and in the middle of the encoder."""
    train, holdout = stripes(300, 0), stripes(1200, 1)
    for after in (0, 100, 450):
        answers = iter([False] * after)
        monitor = EvaluationMonitor(should_stop=functools.partial(next, answers, True))
        with pytest.raises(EvaluationStopped):
            ImageEvaluator(train, holdout, samples=50, seed=0, monitor=monitor).evaluate(PixelModel())


def test_a_fit_that_cannot_be_interrupted_is_not_waited_for() -> None:
    begun = time.monotonic()
    monitor = EvaluationMonitor(should_stop=lambda: time.monotonic() > begun + 0.5)
    with pytest.raises(EvaluationStopped):
        monitor.wait_for(lambda: time.sleep(60))
    with pytest.raises(ZeroDivisionError):
        EvaluationMonitor().wait_for(lambda: 1 // 0)


def test_every_part_that_is_shown_arrives_where_it_said_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 20)
    bars: dict[str, list[int]] = {}
    totals: dict[str, int | None] = {}

    def start_bar(name: str, total: int | None):
        totals[name] = total
        return bars.setdefault(name, []).append

    monitor = EvaluationMonitor(start_bar)
    ImageEvaluator(stripes(300, 0), stripes(600, 1), samples=50, seed=0, monitor=monitor).evaluate(PixelModel())
    assert "Training the classifier" in bars
    assert "Encoding and decoding" in bars
    for name, total in totals.items():
        assert total is None or sum(bars[name]) == total, name


def test_fits_that_do_not_converge_are_told_in_a_sentence_and_by_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ali_dist.evaluation.probe.MOST_ITERATIONS", 1)
    monitor = EvaluationMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearProbe(stripes(1200, 5), stripes(400, 6), seed=0, monitor=monitor).accuracy(lambda x: x, name="pixels")
    assert [note.split(" reached")[0] for note in monitor.notes] == ["3 of 3 linear probes on pixels"]


# ---- raw pixels ------------------------------------------------------------------------------------------------


def test_many_raw_dimensions_are_reduced_and_few_are_not() -> None:
    """Classes that lie in few directions of many are found; up to the limit nothing changes."""
    probe = LinearProbe(stripes(1200, 5), stripes(400, 6), seed=0)
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 900, generator=g)

    def spread(x: Tensor) -> Tensor:
        return x.flatten(1) @ directions

    assert probe.accuracy(spread, dimensions=100) == 1.0
    assert probe.accuracy(lambda x: x, dimensions=64) == probe.accuracy(lambda x: x)


def test_principal_components_are_orthogonal_and_keep_most_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 300))
    z -= z.mean(axis=0)
    scores = z @ principal_components(z, 4)
    assert scores.var(axis=0).mean() == pytest.approx(1)
    covariance = scores.T @ scores
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-8)
    distances = np.linalg.norm(scores[1:] - scores[:-1], axis=1) / np.linalg.norm(z[1:] - z[:-1], axis=1)
    np.testing.assert_allclose(distances, distances[0])  # all four directions are kept: distances keep their ratios
