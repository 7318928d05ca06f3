"""Drawn shapes: each from its number alone, labels true and balanced, every attribute to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.shapes import (
    ATTRIBUTES,
    CLASSES,
    ShapeSamples,
    draw_random_numbers,
    draw_scene,
    scene_from_label,
    shapes_splits,
)
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import refused, run


def draw_samples(
    labels: Any, n: int, *, seed: int = 0, size: int = 32, split: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    samples = list(shapes_splits(labels, size=size, samples=n, seed=seed))[split].select_samples(np.arange(n))
    pairs = [samples.read_sample(row) for row in range(n)]
    return np.stack([sample.x for sample in pairs]), np.array([sample.label for sample in pairs])


@pytest.mark.parametrize("labels", ["classes", "attributes"])
def test_a_sample_depends_on_seed_split_and_number_alone(labels: Any) -> None:
    x, y = draw_samples(labels, 40)
    samples = ShapeSamples(labels, 32, 0, (31, 7))
    for row, number in enumerate((31, 7)):
        sample = samples.read_sample(row)
        assert np.array_equal(sample.x, x[number])
        assert np.array_equal(np.asarray(sample.label), y[number])
    everything = np.concatenate([x, draw_samples(labels, 40, seed=1)[0], draw_samples(labels, 40, split=1)[0]])
    assert len({image.tobytes() for image in everything}) == 120, "no two are equal, across seeds and splits too"


def test_classes_are_balanced_and_a_simple_classifier_can_tell_them_apart() -> None:
    """Nearest neighbors on the object's outline are far above the 12.5 % of guessing, unless labels are wrong."""
    from sklearn.neighbors import KNeighborsClassifier

    x, y = draw_samples("classes", 1600)
    assert np.bincount(y, minlength=len(CLASSES)).min() > 1600 / 8 * 0.7
    masks = np.stack([center_object(image) for image in x])
    classifier = KNeighborsClassifier(5).fit(masks[:1300], y[:1300])
    assert classifier.score(masks[1300:], y[1300:]) > 0.7


def center_object(image: np.ndarray) -> np.ndarray:
    """Where an image differs from its corner's color, cut out and resized to 16x16."""
    from PIL import Image

    mask = np.abs(image.astype(int) - image[:, :1, :1]).sum(axis=0) > 120
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray((box * 255).astype(np.uint8)).resize((16, 16))).ravel() / 255.0


def test_attributes_are_fair_coins_independent_of_each_other() -> None:
    bits = np.stack([draw_random_numbers(0, number)[: len(ATTRIBUTES)] < 0.5 for number in range(4000)]).astype(float)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.04
    assert np.abs(np.corrcoef(bits.T) - np.eye(len(ATTRIBUTES))).max() < 0.08


@pytest.mark.parametrize("attribute", range(len(ATTRIBUTES)), ids=ATTRIBUTES)
def test_every_attribute_is_seen_whatever_the_others_are(attribute: int) -> None:
    """Switching one attribute, all else equal, changes at least a few pixels well beyond a just visible amount."""
    for number in range(150):
        u = draw_random_numbers(5, number)
        bits = (u[: len(ATTRIBUTES)] < 0.5).tolist()
        flipped = [bit != (k == attribute) for k, bit in enumerate(bits)]
        a, b = (
            draw_scene(scene_from_label(choice, u[len(ATTRIBUTES) :]), 32).astype(int) for choice in (bits, flipped)
        )
        assert (np.abs(a - b).max(axis=0) > 30).sum() >= 4, (number, bits)


def test_attributes_mean_what_they_say() -> None:
    x, y = draw_samples("attributes", 600)
    has = {name: y[:, k] == 1 for k, name in enumerate(ATTRIBUTES)}
    inner = x[:, :, 3:-3, 3:-3].astype(float)
    ground = np.median(inner, axis=(2, 3))
    assert ground[has["light"]].mean() > 180
    assert ground[~has["light"]].mean() < 90
    plain = ~has["striped"]
    mass = np.abs(inner - ground[:, :, None, None]).max(axis=1) > 60
    area = mass.sum(axis=(1, 2))
    assert area[plain & has["large"]].mean() > 2 * area[plain & ~has["large"]].mean()
    assert area[plain & has["filled"]].mean() > 1.2 * area[plain & ~has["filled"]].mean()
    positions = np.arange(mass.shape[1])
    across = (mass.sum(axis=1) * positions).sum(axis=1) / np.maximum(area, 1)
    down = (mass.sum(axis=2) * positions).sum(axis=1) / np.maximum(area, 1)
    middle = (mass.shape[1] - 1) / 2
    assert ((across > middle) == has["right"])[plain].mean() > 0.99
    assert ((down < middle) == has["top"])[plain].mean() > 0.99
    red_blue = np.where(mass[:, None], inner, np.nan)[plain & ~has["dotted"]]
    warm = np.nanmean(red_blue[:, 0], axis=(1, 2)) > np.nanmean(red_blue[:, 2], axis=(1, 2))
    assert (warm == has["warm"][plain & ~has["dotted"]]).mean() > 0.99


def test_the_command_writes_both_kinds_of_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--samples", 60, "--jobs", 1)
    assert run(capsys, "shapes", tmp_path / "c", *arguments, "--size", 64, "--verify")[0] == 0
    assert run(capsys, "shapes", tmp_path / "a", *arguments, "--labels", "attributes")[0] == 0
    classes, attributes = (LocalStore(tmp_path / name / "train") for name in "ca")
    assert load_index(classes).classes == CLASSES
    assert load_index(classes).shape == (3, 64, 64)
    x, y = load_arrays(attributes, load_index(attributes))
    expected_x, expected_y = draw_samples("attributes", 60)
    assert y is not None
    assert np.array_equal(x.numpy(), expected_x)
    assert np.array_equal(y.numpy(), expected_y)
    assert load_index(LocalStore(tmp_path / "c" / "test")).num_samples == 6
    assert "32 or 64 pixels, not 48" in refused(capsys, "shapes", tmp_path / "x", "--size", 48)
    assert "at least 10" in refused(capsys, "shapes", tmp_path / "x", "--samples", 9)
    assert "--seed is -1" in refused(capsys, "shapes", tmp_path / "x", "--seed", -1)
    assert "already holds other data" in refused(capsys, "shapes", tmp_path / "a", *arguments, "--seed", 1)


def test_first_use_takes_shapes_of_either_kind_and_not_the_other(tmp_path: Path) -> None:
    run_once = main_shapes(tmp_path)
    assert run_once == 0
    assert not ensure_prepared("shapes-attributes", str(tmp_path))
    with pytest.raises(InputError, match="data.source is 'shapes', but .* holds 'shapes-attributes'"):
        ensure_prepared("shapes", str(tmp_path))


def main_shapes(folder: Path) -> int:
    from ali_dist.prepare import main

    return main(["shapes", str(folder), "--labels", "attributes", "--samples", "40", "--jobs", "1"])


def test_first_use_draws_twenty_thousand_with_a_tenth_more_to_test(tmp_path: Path) -> None:
    sizes = {split.name: (split.num_samples, split.shape) for split in shapes_splits()}
    assert sizes == {"train": (20_000, (3, 32, 32)), "test": (2_000, (3, 32, 32))}
