"""Mirrored training images: half of each global batch, by draws that follow from (seed, update, row).

Run: `make test ARGS=tests/unit/training/test_flips.py`
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World
from ali_dist.errors import InputError
from ali_dist.model.build import build_networks
from ali_dist.runs.datasets import open_run_data
from ali_dist.training.randomness import HorizontalFlips
from ali_dist.training.train_batches import TrainBatches
from tests.helpers.networks import CPU
from tests.helpers.runs import index_without_shards, tiny_config


def test_half_the_images_are_mirrored_whoever_has_them():
    x = torch.randint(0, 256, (400, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flipped = HorizontalFlips(5, 400, slice(0, 400), CPU).at_step(x, 7)
    is_flipped = (flipped != x).flatten(1).any(1)
    assert 0.4 < is_flipped.float().mean() < 0.6
    assert torch.equal(flipped[is_flipped], x[is_flipped].flip(-1))
    parts = [HorizontalFlips(5, 400, slice(a, b), CPU).at_step(x[a:b], 7) for a, b in ((0, 7), (7, 300), (300, 400))]
    assert torch.equal(torch.cat(parts), flipped)
    assert not torch.equal(HorizontalFlips(5, 400, slice(0, 400), CPU).at_step(x, 8), flipped)
    assert not torch.equal(HorizontalFlips(6, 400, slice(0, 400), CPU).at_step(x, 7), flipped)


def images_of_run(config: Config) -> torch.Tensor:
    """Take the images [3 updates, B, ...] that a run would be trained on."""
    data = open_run_data(config)
    _, space = build_networks(config, data.train.index.spec, 0)
    options = {"world": World(), "device": CPU, "condition_size": 0, "start_step": 0}
    with TrainBatches(config, data.train, space, None, **options) as batches:  # type: ignore[arg-type]
        return torch.stack([batches.next_batch(step).x for step in range(3)])


def test_a_run_is_given_its_images_or_their_mirror_images(tmp_path: Path):
    ensure_prepared("digits", str(tmp_path / "data"))
    plain, flipped = (images_of_run(tiny_config(tmp_path, data__flip=flip)) for flip in (False, True))
    is_flipped = (plain != flipped).flatten(2).any(2)
    assert 20 < is_flipped.sum() < 52  # of 72
    assert len({tuple(row.tolist()) for row in is_flipped}) == 3
    torch.testing.assert_close(flipped[is_flipped], plain.flip(-1)[is_flipped])


def test_points_are_not_flipped(tmp_path: Path):
    config = tiny_config(tmp_path, "mixture", data__flip=True)
    with pytest.raises(InputError, match="data.flip is true, but architecture 'mixture' takes points"):
        build_networks(config, index_without_shards((2,)).spec, 0)
