"""The labels that a classifying discriminator may see: of which samples, in which order, and on which rank.

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
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, load_weights, tiny_config

SAMPLE_COUNT = 96
BATCH_SIZE = 24
LANES = 6
CLASS_SIZES = (48, 32, 16)  # as uneven as those of real data
CPU = torch.device("cpu")
WHOLE_BATCH = slice(0, BATCH_SIZE)


def write_data(folder: Path, y: np.ndarray) -> None:
    """Write images whose first two pixels are the number of the sample, as several shards."""
    x, _ = make_labelled_arrays(SAMPLE_COUNT, shape=(1, 8, 8))
    write_arrays(folder / "train", x, y, classes=("a", "b", "c"), per_shard=26)


def true_classes() -> np.ndarray:
    """The class of every sample, [SAMPLE_COUNT]."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(CLASS_SIZES)), CLASS_SIZES))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_data(folder, true_classes())
    return folder


def make_config(data: Path, folder: Path | None = None, **changes: Any) -> Config:
    """Configure a semi-supervised run of 12 labels on `data`."""
    semi_supervised = {"objective__supervised": 2.0, "data__labelled": 12, "data__source": "none"}
    return tiny_config(folder or data, data__url=str(data), **{**semi_supervised, **changes})


def open_train_split(config: Config) -> DataSplit:
    return open_run_data(config).train


def read_ids(x: torch.Tensor) -> list[int]:
    """Read the numbers of samples off their pixels."""
    pixels = x.flatten(1).int()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def open_labelled_batches(config: Config, rows: slice = WHOLE_BATCH) -> LabelledBatches:
    return LabelledBatches(open_train_split(config), config, rows, CPU)


# ---- the draw ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 12, 48])
def test_equally_many_samples_of_each_class_are_drawn(data, count):
    """However uneven the classes are, and up to all samples of the rarest."""
    config = make_config(data, data__labelled=count)
    ids, y = labelled_ids(open_train_split(config), config)
    assert len(set(ids.tolist())) == count
    assert list(ids) == sorted(ids)
    assert Counter(y.tolist()) == {c: count // 3 for c in range(3)}
    assert np.array_equal(y, true_classes()[ids])


def test_the_draw_depends_on_its_own_seed_alone(data):
    def draw_ids(**changes: Any) -> list[int]:
        config = make_config(data, **changes)
        return labelled_ids(open_train_split(config), config)[0].tolist()

    assert draw_ids() == draw_ids(run__seed=7, data__global_batch_size=48, data__lanes=4, objective__supervised=0.1)
    assert draw_ids() != draw_ids(data__labelled_seed=1)


def test_all_samples_are_labelled_where_no_number_is_given(data):
    config = make_config(data, data__labelled="none")
    ids, y = labelled_ids(open_train_split(config), config)
    assert ids.tolist() == list(range(SAMPLE_COUNT))
    assert np.array_equal(y, true_classes())


def test_a_class_that_the_index_does_not_name_is_refused(tmp_path):
    write_arrays(
        tmp_path / "train", make_labelled_arrays(8, shape=(1, 8, 8))[0], [0, 1, 2, 5] * 2, classes=("a", "b", "c")
    )
    config = make_config(tmp_path, data__labelled="none")
    with pytest.raises(InputError, match="Sample 3 of 00000.tar .* has class 5, but the index names 3 classes"):
        labelled_ids(open_train_split(config), config)


# ---- the order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [12, 48, 36])
def test_every_labelled_sample_is_used_once_in_each_pass_with_its_own_class(data, count):
    """A pass may be shorter or longer than a batch, and may end in the middle of one."""
    config = make_config(data, data__labelled=count)
    source = open_labelled_batches(config)
    batches = [source.at_step(step) for step in range(6)]
    ids = [sample for x, _ in batches for sample in read_ids(x)]
    labels = torch.cat([y for _, y in batches])
    drawn_ids = labelled_ids(open_train_split(config), config)[0].tolist()
    for start in range(0, len(ids), count):
        assert sorted(ids[start : start + count]) == drawn_ids
    assert labels.tolist() == true_classes()[ids].tolist()
    assert labels.dtype == torch.int64
    passes = {tuple(ids[start : start + count]) for start in range(0, len(ids), count)}
    assert len(passes) == len(ids) // count, "every pass has an order of its own"


def test_shifted_images_are_moved_by_whole_pixels_and_alike_on_every_rank(data):
    config = make_config(data, data__labelled=12, data__labelled_shift=1)
    plain = open_labelled_batches(make_config(data, data__labelled=12))
    shifted = open_labelled_batches(config)
    all_shifts = set()
    for x, moved in zip(plain.at_step(3)[0], shifted.at_step(3)[0], strict=True):
        padded = torch.nn.functional.pad(x[None].float(), (1, 1, 1, 1), mode="replicate")[0].to(x.dtype)
        side = x.shape[-1]
        shifts = [
            (down, right)
            for down in range(3)
            for right in range(3)
            if torch.equal(padded[:, down : down + side, right : right + side], moved)
        ]
        assert shifts
        all_shifts |= set(shifts)
    assert len(all_shifts) > 4
    of_a_rank = open_labelled_batches(config, slice(6, 18))
    assert torch.equal(of_a_rank.at_step(3)[0], shifted.at_step(3)[0][6:18])
    assert not torch.equal(shifted.at_step(3)[0], shifted.at_step(5)[0])


def test_the_order_follows_from_the_seed_of_the_run_and_the_step_alone(data):
    """A run that is continued may begin with any step."""

    def ids_at(step: int, **changes: Any) -> list[int]:
        return read_ids(open_labelled_batches(make_config(data, **changes)).at_step(step)[0])

    source = open_labelled_batches(make_config(data))
    in_order = [read_ids(source.at_step(step)[0]) for step in range(4)]
    assert [ids_at(step) for step in (3, 0, 2)] == [in_order[step] for step in (3, 0, 2)]
    assert ids_at(0, run__seed=1) != in_order[0]
    assert sorted(set(ids_at(0, run__seed=1))) == sorted(set(in_order[0]))


@pytest.mark.parametrize("world_size", range(1, LANES + 1))
def test_ranks_have_slices_of_the_same_batch(data, world_size):
    config = make_config(data, data__labelled=36)
    per_lane = BATCH_SIZE // LANES
    for step in (0, 1, 5):
        whole_x, whole_y = open_labelled_batches(config).at_step(step)
        parts = []
        for rank in range(world_size):
            lanes = lanes_of_rank(LANES, rank, world_size)
            rows = slice(lanes.start * per_lane, lanes.stop * per_lane)
            parts.append(open_labelled_batches(config, rows).at_step(step))
        assert torch.equal(torch.cat([x for x, _ in parts]), whole_x)
        assert torch.equal(torch.cat([y for _, y in parts]), whole_y)


# ---- whole runs ----------------------------------------------------------------------------------------------------


def test_the_class_of_an_unlabelled_sample_changes_nothing(tmp_path, data, monkeypatch):
    """With wrong labels on all the others, the weights are the same to the last bit."""
    correct = make_config(data, tmp_path, run__name="correct")
    ids, y = labelled_ids(open_train_split(correct), correct)
    fit(correct, StoppingContext())

    wrong_classes = (true_classes() + 1) % 3
    wrong_classes[ids] = y
    write_data(tmp_path / "mislabelled", wrong_classes)
    # The draw depends on all labels, so it is held as it was.
    monkeypatch.setattr(module, "labelled_ids", lambda part, config: (ids, y))
    mislabelled = make_config(tmp_path / "mislabelled", tmp_path, run__name="mislabelled")
    fit(mislabelled, StoppingContext())
    assert_bitwise_equal(load_weights(correct), load_weights(mislabelled))

    # Other labels of the samples that are drawn do change the weights.
    monkeypatch.setattr(module, "labelled_ids", lambda part, config: (ids, (y + 1) % 3))
    other = make_config(data, tmp_path, run__name="other")
    fit(other, StoppingContext())
    weights = load_weights(other)
    assert any(not torch.equal(weight, weights[name]) for name, weight in load_weights(correct).items())


def test_a_semi_supervised_run_that_is_stopped_continues_bit_for_bit(tmp_path, data):
    """The labelled batches and the averages, including that of D, continue where they were."""
    same = {"optim__ema_half_life": 100, "model__discriminator_dropout": 0.2}
    unbroken, broken = (make_config(data, tmp_path, run__name=name, **same) for name in ("unbroken", "broken"))
    fit(unbroken, StoppingContext())
    with pytest.raises(Stopped):
        fit(broken, StoppingContext(stop_before=3))
    fit(broken, StoppingContext())
    for file in ("model", "optimizer", "ema"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(broken, file))
    averaged = load_weights(unbroken, "ema")
    assert {name.partition(".")[0] for name in averaged} == {"encoder", "decoder", "discriminator"}
    last = load_weights(unbroken)
    assert any(not torch.equal(t, last[name]) for name, t in averaged.items() if name.startswith("discriminator"))
