"""What follows from the pictures in presets that are sized by them, and what the user gives is kept.

Run: `make test ARGS=tests/unit/data/test_image_sizes.py`
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ali_dist.config.loading import from_mapping, load_preset, read_preset
from ali_dist.errors import InputError
from ali_dist.runs import image_sizes
from ali_dist.runs.image_sizes import settings_from_data, sizes_for_images
from ali_dist.train import parse_arguments
from tests.helpers.arrays import make_labelled_arrays, write_arrays

SIDES = (16, 32, 64, 128, 256)


def write_pictures(folder: Path, count: int, side: int) -> str:
    x, y = make_labelled_arrays(count, shape=(3, side, side))
    write_arrays(folder / "train", x, y)
    return str(folder)


def test_the_penalty_follows_the_pixels_and_the_batch_shrinks_with_them() -> None:
    sizes = [sizes_for_images(side, 20_000) for side in SIDES]
    assert [s["objective.r1"] for s in sizes] == [0.5, 2.0, 8.0, 32.0, 128.0]
    assert all(s["objective.r1"] == s["objective.r2"] for s in sizes)
    assert [s["data.global_batch_size"] for s in sizes] == [64, 64, 64, 16, 16]
    assert [sizes_for_images(32, n)["data.global_batch_size"] for n in (100, 2_999, 3_000, 5_000, 20_000)] == [
        *(8, 8, 16, 32, 64)
    ]
    rates = [s["optim.lr_d"] for s in sizes]
    assert rates == sorted(rates, reverse=True)
    assert rates[:2] == [7e-4, 7e-4]
    assert [s["optim.lr_g"] for s in sizes] == pytest.approx([2 * rate for rate in rates], rel=0.05)


def test_the_length_is_100_passes_within_bounds_and_the_average_follows_it() -> None:
    sizes = {count: sizes_for_images(32, count) for count in (100, 13_353, 1_000_000)}
    assert {count: s["run.images"] for count, s in sizes.items()} == {
        100: 256_000,
        13_353: 1_335_300,
        1_000_000: 10_000_000,
    }
    assert sizes[100]["optim.ema_half_life"] == 12_800
    assert sizes[1_000_000]["optim.ema_half_life"] == 500_000
    assert "objective.augment" in sizes[100]
    assert "objective.augment" not in sizes[13_353]


@pytest.mark.parametrize("side", SIDES)
def test_what_follows_for_every_side_goes_together(side: int) -> None:
    config = from_mapping(load_preset("images"), sizes_for_images(side, 1_000))
    assert config.total_steps() > 0


def test_pictures_that_are_there_but_unlike_are_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data" / "mine", 4, 16)
    write_arrays(tmp_path / "data" / "mine" / "test", np.zeros((4, 1, 16, 16), np.uint8), None)
    with pytest.raises(InputError, match=r"Samples of the split 'test' are uint8 \[1, 16, 16\]"):
        settings_from_data(read_preset("images").settings, {})


def test_one_picture_is_told_to_be_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 1 picture, but training needs at least 2"):
        settings_from_data(read_preset("images").settings, {"data.url": write_pictures(tmp_path, 1, 16)})


def test_the_command_line_wins_and_what_follows_from_it_follows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    url = write_pictures(tmp_path / "pictures", 24, 16)
    given = ["--run.images", "4000", "--optim.lr_d", "1e-3"]
    words = ["--preset", "images", "--data.url", url, "--data.split", "train", *given]
    config, _ = parse_arguments(words)
    assert config.model.architecture == "residual"
    assert (config.run.images, config.optim.lr_d, config.optim.lr_g) == (4000, 1e-3, 1.4e-3)
    assert (config.data.global_batch_size, config.report.gallery_every) == (8, 200)
    assert config.optim.warmup == 200
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "optim.lr_g 0.0014" in said
    assert "optim.lr_d" not in said


def test_a_preset_of_ones_own_can_build_on_it_or_leave_the_sizing_out(tmp_path: Path) -> None:
    for text, sized_by in (("base: images\n", "images"), ("base: images\nsized_by: none\n", None)):
        (tmp_path / "mine.yaml").write_text(text + "optim: {beta1: 0.0}\n")
        preset = read_preset(str(tmp_path / "mine.yaml"))
        assert (preset.name, preset.sized_by, preset.settings["optim.beta1"]) == ("mine", sized_by, "0.0")
        assert "sized_by" not in preset.settings
    (tmp_path / "mine.yaml").write_text("sized_by: weight\n")
    with pytest.raises(InputError, match="'sized_by: weight'"):
        read_preset(str(tmp_path / "mine.yaml"))


def test_data_that_are_not_there_or_no_pictures_are_refused(tmp_path: Path) -> None:
    preset = load_preset("images")
    with pytest.raises(InputError, match="no prepared shards"):
        settings_from_data(preset, {"data.url": str(tmp_path / "nowhere")})
    write_arrays(tmp_path / "points" / "train", np.zeros((4, 2), np.float32), None)
    with pytest.raises(InputError, match="for pictures"):
        settings_from_data(preset, {"data.url": str(tmp_path / "points"), "data.split": "train"})


def test_settings_that_need_what_follows_are_not_refused_before(tmp_path: Path) -> None:
    """A batch and a length that do not go together with the defaults, and settings of other sections."""
    url = write_pictures(tmp_path / "pictures", 24, 16)
    words = ["--preset", "images", "--data.url", url, "--objective.supervised", "1", "--data.labelled", "10"]
    config, _ = parse_arguments([*words, "--run.images", "40"])
    assert (config.run.images, config.data.labelled, config.data.global_batch_size) == (40, 10, 8)


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (3, 3), (24, 8)])
def test_a_batch_is_never_larger_than_the_pictures(count: int, batch: int) -> None:
    assert sizes_for_images(32, count)["data.global_batch_size"] == batch


def test_a_run_keeps_what_it_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules have changed since, or the pictures; what the user gives now wins all the same."""
    url = write_pictures(tmp_path / "pictures", 24, 16)
    words = ["--preset", "images", "--data.url", url, "--run.dir", str(tmp_path / "runs")]
    first, _ = parse_arguments(words)
    folder = tmp_path / "runs" / first.run.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(first.to_mapping()))
    monkeypatch.setattr(image_sizes, "_PENALTY_AT_32", 9.0)
    assert parse_arguments(words)[0] == first
    assert parse_arguments([*words, "--objective.r1", "3"])[0].objective.r1 == 3.0
    assert parse_arguments([*words, "--run.name", "another"])[0].objective.r1 == 2.25


def test_sizes_without_networks_and_a_preset_without_data_are_refused(tmp_path: Path) -> None:
    url = write_pictures(tmp_path / "pictures", 4, 16)
    with pytest.raises(InputError, match="data.image_size is 512"):
        parse_arguments(["--preset", "images", "--data.url", url, "--data.image_size", "512"])
    with pytest.raises(InputError, match="prepare folder"):
        settings_from_data({**load_preset("images"), "data.url": str(tmp_path / "nothing")}, {})
