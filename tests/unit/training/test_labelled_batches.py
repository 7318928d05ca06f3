"""Labels that a classifying discriminator may see: whose, in what order, on which rank, and nobody else's.

Run: `make test ARGS=tests/unit/training/test_labelled_batches.py`
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ali_dist.config import Config
from ali_dist.data.order import lanes_of_rank
from ali_dist.errors import InputError, Stopped
from ali_dist.runs.datasets import DataSplit, open_run_data
from ali_dist.training import labelled_batches as module
from ali_dist.training.labelled_batches import LabelledBatches, labelled_ids
from ali_dist.training.loop import fit
from tests.helpers.arrays import make_labelled_arrays, write_arrays
from tests.helpers.runs import StoppingContext, assert_same, tiny, weights

N, B, LANES = 96, 24, 6
SIZES = (48, 32, 16)  # of the classes: as unlike as those of real data
CPU = torch.device("cpu")
WHOLE = slice(0, B)


def dataset(folder: Path, y: np.ndarray) -> None:
    """Images whose first two pixels are the sample's number, as several shards."""
    x, _ = make_labelled_arrays(N, shape=(1, 8, 8))
    write_arrays(folder / "train", x, y, classes=("a", "b", "c"), per_shard=26)


def classes() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    dataset(folder, classes())
    return folder


def config_of(data: Path, folder: Path | None = None, **changes: Any) -> Config:
    semi = {"objective__supervised": 2.0, "data__labelled": 12, "data__source": "none"}
    return tiny(folder or data, data__url=str(data), **{**semi, **changes})


def part_of(config: Config) -> DataSplit:
    return open_run_data(config).train


def ids_of(x: torch.Tensor) -> list[int]:
    """Numbers of samples, read off their pixels."""
    first, second = x.flatten(1)[:, 0].int(), x.flatten(1)[:, 1].int()
    return (first + 256 * second).tolist()


def batches(config: Config, rows: slice = WHOLE) -> LabelledBatches:
    return LabelledBatches(part_of(config), config, rows, CPU)


# ---- the draw ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [3, 12, 48])
def test_equally_many_samples_of_each_class_are_drawn(data, wanted):
    """However unequal the classes are, up to all of the rarest."""
    config = config_of(data, data__labelled=wanted)
    ids, y = labelled_ids(part_of(config), config)
    assert len(set(ids.tolist())) == wanted
    assert list(ids) == sorted(ids)
    assert Counter(y.tolist()) == {c: wanted // 3 for c in range(3)}
    assert np.array_equal(y, classes()[ids])


def test_the_draw_is_decided_by_its_own_seed_alone(data):
    def drawn(**changes: Any) -> list[int]:
        config = config_of(data, **changes)
        return labelled_ids(part_of(config), config)[0].tolist()

    assert drawn() == drawn(run__seed=7, data__global_batch_size=48, data__lanes=4, objective__supervised=0.1)
    assert drawn() != drawn(data__labelled_seed=1)


def test_without_a_number_all_samples_are_labelled(data):
    config = config_of(data, data__labelled="none")
    ids, y = labelled_ids(part_of(config), config)
    assert ids.tolist() == list(range(N))
    assert np.array_equal(y, classes())


def test_a_class_that_the_index_does_not_name_is_refused(tmp_path):
    write_arrays(
        tmp_path / "train", make_labelled_arrays(8, shape=(1, 8, 8))[0], [0, 1, 2, 5] * 2, classes=("a", "b", "c")
    )
    config = config_of(tmp_path, data__labelled="none")
    with pytest.raises(InputError, match="Sample 3 of 00000.tar .* has class 5, but the index names 3 classes"):
        labelled_ids(part_of(config), config)


# ---- the order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [12, 48, 36])
def test_every_labelled_sample_is_used_once_in_each_pass_with_its_own_class(data, wanted):
    """Passes may be shorter or longer than a batch, and end in the middle of one."""
    config = config_of(data, data__labelled=wanted)
    source = batches(config)
    found = [source.at_step(step) for step in range(6)]
    numbers = [number for x, _ in found for number in ids_of(x)]
    labels = torch.cat([y for _, y in found])
    drawn = labelled_ids(part_of(config), config)[0].tolist()
    for start in range(0, len(numbers), wanted):
        assert sorted(numbers[start : start + wanted]) == drawn
    assert labels.tolist() == classes()[numbers].tolist()
    assert labels.dtype == torch.int64
    passes = {tuple(numbers[start : start + wanted]) for start in range(0, len(numbers), wanted)}
    assert len(passes) == len(numbers) // wanted, "every pass has an order of its own"


def test_shifted_images_are_whole_moves_of_the_samples_and_the_same_in_every_part(data):
    config = config_of(data, data__labelled=12, data__labelled_shift=1)
    plain, moved = batches(config_of(data, data__labelled=12)), batches(config)
    seen = set()
    for x, y in zip(plain.at_step(3)[0], moved.at_step(3)[0], strict=True):
        padded = torch.nn.functional.pad(x[None].float(), (1, 1, 1, 1), mode="replicate")[0].to(x.dtype)
        side = x.shape[-1]
        moves = [(a, b) for a in range(3) for b in range(3) if torch.equal(padded[:, a : a + side, b : b + side], y)]
        assert moves
        seen |= set(moves)
    assert len(seen) > 4
    assert torch.equal(batches(config, slice(6, 18)).at_step(3)[0], moved.at_step(3)[0][6:18])
    assert not torch.equal(moved.at_step(3)[0], moved.at_step(5)[0])


def test_the_order_follows_the_runs_seed_and_nothing_that_happened_before(data):
    """Resuming asks for any update first."""

    def numbers(step: int, **changes: Any) -> list[int]:
        return ids_of(batches(config_of(data, **changes)).at_step(step)[0])

    source = batches(config_of(data))
    in_order = [ids_of(source.at_step(step)[0]) for step in range(4)]
    assert [numbers(step) for step in (3, 0, 2)] == [in_order[step] for step in (3, 0, 2)]
    assert numbers(0, run__seed=1) != in_order[0]
    assert sorted(set(numbers(0, run__seed=1))) == sorted(set(in_order[0]))


@pytest.mark.parametrize("world_size", range(1, LANES + 1))
def test_ranks_have_slices_of_the_same_batch(data, world_size):
    config = config_of(data, data__labelled=36)
    each = B // LANES
    for step in (0, 1, 5):
        whole, y = batches(config).at_step(step)
        lanes = [lanes_of_rank(LANES, rank, world_size) for rank in range(world_size)]
        parts = [batches(config, slice(r.start * each, r.stop * each)).at_step(step) for r in lanes]
        assert torch.equal(torch.cat([x for x, _ in parts]), whole)
        assert torch.equal(torch.cat([y for _, y in parts]), y)


# ---- whole runs ----------------------------------------------------------------------------------------------------


def test_the_class_of_an_unlabelled_sample_changes_nothing(tmp_path, data, monkeypatch):
    """All other labels in the data are wrong: the same weights, to the last bit."""
    honest = config_of(data, tmp_path, run__name="honest")
    ids, y = labelled_ids(part_of(honest), honest)
    fit(honest, StoppingContext())

    wrong = (classes() + 1) % 3
    wrong[ids] = y
    dataset(tmp_path / "poisoned", wrong)
    # The draw depends on all labels; the labels that are drawn are held as they were.
    monkeypatch.setattr(module, "labelled_ids", lambda part, config: (ids, y))
    poisoned = config_of(tmp_path / "poisoned", tmp_path, run__name="poisoned")
    fit(poisoned, StoppingContext())
    assert_same(weights(honest), weights(poisoned))

    monkeypatch.setattr(module, "labelled_ids", lambda part, config: (ids, (y + 1) % 3))
    other = config_of(data, tmp_path, run__name="other")
    fit(other, StoppingContext())
    assert any(not torch.equal(a, weights(other)[name]) for name, a in weights(honest).items())


def test_a_broken_semi_supervised_run_goes_on_bit_for_bit(tmp_path, data):
    """The labelled batches and the averages, D's among them, are where they would have been."""
    same = {"optim__ema_half_life": 100, "model__discriminator_dropout": 0.2}
    unbroken, broken = (config_of(data, tmp_path, run__name=name, **same) for name in ("unbroken", "broken"))
    fit(unbroken, StoppingContext())
    with pytest.raises(Stopped):
        fit(broken, StoppingContext(stop_before=3))
    fit(broken, StoppingContext())
    for file in ("model", "optimizer", "ema"):
        assert_same(weights(unbroken, file), weights(broken, file))
    averaged = weights(unbroken, "ema")
    assert {name.partition(".")[0] for name in averaged} == {"encoder", "decoder", "discriminator"}
    last = weights(unbroken)
    assert any(not torch.equal(t, last[name]) for name, t in averaged.items() if name.startswith("discriminator"))
