"""Data of one's own: never mistaken for the preset's, never written into, and never made smaller without a word."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.preparation.advice import find_prepared_split
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.encode import main as encode
from ali_dist.errors import InputError
from ali_dist.generate import main as generate
from ali_dist.model.build import find_architecture
from ali_dist.prepare import main as prepare
from ali_dist.runs.datasets import open_run_data
from ali_dist.storage import open_store
from ali_dist.train import main, parse_arguments
from tests.helpers.arrays import make_labelled_arrays, write_arrays
from tests.helpers.runs import TINY_SETTINGS, tiny_config
from tuning.options import parse_arguments as parse_sweep
from tuning.sweep import main as sweep

TINY = [f"--{name}={value}" for name, value in TINY_SETTINGS.items()]


def make_pictures(folder: Path, count: int = 4, side: int = 64) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def write_shards(folder: Path, side: int) -> str:
    for split in ("train", "test"):
        x, y = make_labelled_arrays(24, shape=(3, side, side))
        write_arrays(folder / split, x, y)
    return str(folder)


def refusal(capsys: pytest.CaptureFixture, command=main, *words: str) -> str:
    assert command(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("command", [main, sweep], ids=["train", "sweep"])
def test_a_folder_of_pictures_is_refused_with_the_line_that_prepares_them(tmp_path, monkeypatch, capsys, command):
    """It was once written full of digits, and these were trained on. The printed line is run as it stands."""
    monkeypatch.chdir(tmp_path)
    pictures = make_pictures(tmp_path / "my pictures")
    before = sorted(tmp_path.rglob("*.*"))
    said = refusal(capsys, command, "--data.url", str(pictures))
    assert sorted(path for path in tmp_path.rglob("*.*") if path.is_file()) == before
    words = shlex.split(said.partition("`python -m ali_dist.prepare ")[2].partition("`")[0])
    assert words[words.index("--from") + 1] == str(pictures)
    assert prepare([*words, "--holdout", "0.5"]) == 0
    trains = shlex.split(said.partition("`python -m ali_dist.train ")[2].partition("`")[0])
    config, _ = parse_arguments(trains)
    assert open_run_data(config).train.index.shape == (3, 64, 64)


@pytest.mark.parametrize("url", ["data/mnie", "s3://bucket/mine"])
def test_a_misspelt_url_is_never_filled_with_built_in_data(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "data" / "mine", 16)
    config, _ = parse_arguments(["--data.url", url])
    assert config.data.source is None
    if "://" in url:
        return
    with pytest.raises(InputError, match=r"no such folder \(did you mean mine\); check .* --from PICTURES"):
        open_run_data(config)
    assert refuse_tars(tmp_path).endswith(f"with `python -m ali_dist.prepare webdataset '{tmp_path}/some tars'`.")


@pytest.mark.parametrize(("name", "source"), [("pics.zip", "folder"), ("a.npz", "npz"), ("a.parquet", "parquet")])
def test_a_file_in_place_of_shards_is_answered_with_the_command_that_writes_them(tmp_path, monkeypatch, name, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    config, _ = parse_arguments(["--data.url", name])
    with pytest.raises(InputError) as refused:
        open_run_data(config)
    shards = f"{tmp_path}/{name.split('.')[0]}-shards"
    assert f"with `python -m ali_dist.prepare {source} {shards} --from {tmp_path}/{name}" in str(refused.value)


def refuse_tars(folder: Path) -> str:
    (folder / "some tars").mkdir()
    (folder / "some tars" / "a.tar").write_bytes(b"")
    with pytest.raises(InputError) as refused:
        find_prepared_split(open_store(str(folder / "some tars")), "train")
    return str(refused.value)


def test_built_in_data_go_to_the_presets_own_place_or_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def source(*words: str) -> str | None:
        return parse_arguments(list(words))[0].data.source

    assert source() == "digits"
    assert source("--data.url", "data/digits") == "digits"
    assert source("--data.url", str(tmp_path / "data/digits/")) == "digits"
    assert source("--data.url", "elsewhere") is None
    assert source("--data.url", "elsewhere", "--data.source", "digits") == "digits"
    assert source("--preset", "shapes", "--data.url", "data/digits") is None
    _, settings = parse_sweep(["--data.url", "elsewhere"])
    assert settings == {"data.url": "elsewhere"}


def test_built_in_data_are_not_written_beside_other_files_even_where_asked_for(tmp_path):
    pictures = make_pictures(tmp_path / "pictures")
    with pytest.raises(InputError, match=r"holds other files: choose another data.url, or .*ali_dist.prepare folder"):
        ensure_prepared("digits", str(pictures))
    assert len(list(pictures.iterdir())) == 4
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").write_text("")
    assert ensure_prepared("mixture-ring", str(tmp_path / "empty"), samples=50)


def test_a_shrink_by_more_than_two_is_refused_unless_it_is_asked_for(tmp_path, capsys):
    large, half = write_shards(tmp_path / "large", 64), write_shards(tmp_path / "half", 32)
    said = refusal(capsys, main, "--data.url", large)
    assert "64x64" in said
    assert f"--preset images --data.url {large}" in said
    assert "give --data.image_size 16" in said
    assert "64x64" in refusal(capsys, sweep, "--data.url", large)
    assert parse_arguments(["--data.url", large, "--data.image_size", "16"])[0].data.image_size == 16
    assert parse_arguments(["--data.url", half])[0].data.image_size == 16
    (tmp_path / "mine.yaml").write_text(f"base: digits\ndata: {{url: {large}, image_size: 16}}\n")
    assert parse_arguments(["--preset", str(tmp_path / "mine.yaml")])[0].data.image_size == 16


@pytest.mark.parametrize(
    ("side", "says"),
    [
        (8, "Images of 8x8 are enlarged to 16x16, the size of the networks."),
        (32, "Images of 32x32 are shrunk to 16x16, the size of the networks."),
        (16, ""),
    ],
)
def test_a_resize_is_among_the_first_lines_of_a_run(tmp_path, capsys, side, says):
    url = write_shards(tmp_path / "data", side)
    words = [*TINY, "--data.url", url, "--run.dir", str(tmp_path / "runs"), "--run.images=24"]
    assert main(words) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(says and line.endswith(says) for line in lines[:3]) == bool(says)  # behind the time of day
    assert any("resized" in line or "shrunk" in line for line in lines) == (side == 32)


@pytest.mark.parametrize("command", [encode, generate], ids=["encode", "generate"])
def test_data_of_another_size_than_a_runs_own_are_said_to_be_resized(tmp_path, capsys, command):
    own, other = write_shards(tmp_path / "own", 16), write_shards(tmp_path / "other", 32)
    assert main([*TINY, "--data.url", own, "--run.dir", str(tmp_path), "--run.name=run", "--run.images=24"]) == 0
    words = [str(tmp_path / "run"), "--device=cpu", "--out", str(tmp_path / "out")]
    words += ["--what=reconstructions", "--count=4"] if command is generate else []
    for url, says in ((own, ""), (other, "Images of 32x32 are shrunk to 16x16, the size of the networks.\n")):
        capsys.readouterr()
        assert command([*words, "--data", url, *(["--seed=1"] if says else [])]) == 0
        assert capsys.readouterr().err == says
        words[words.index("--out") + 1] += "-other"


def test_images_that_no_size_was_asked_for_are_refused_with_the_preset_for_them(tmp_path):
    url = write_shards(tmp_path / "data", 48)
    config = tiny_config(tmp_path, data__url=url, data__source="none", data__image_size="none")
    spec = open_run_data(config).train.index.spec
    with pytest.raises(InputError, match="take --preset images for pictures of your own"):
        find_architecture(config, spec)


def test_a_holdout_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    url = write_shards(tmp_path / "data", 16)

    def open_with(**settings: str):
        return open_run_data(tiny_config(tmp_path, data__source="none", **settings))

    with pytest.raises(InputError, match="data.holdout is 'tets', .* whose splits are test, train: name one of those"):
        open_with(data__url=url, data__holdout="tets")
    with pytest.raises(InputError, match="data.holdout is 'valid', .* which is one split: leave it out"):
        open_with(data__url=f"{url}/train", data__holdout="valid")
    assert open_with(data__url=f"{url}/train").holdout is None, "the usual one need not be there"


def test_a_damaged_index_of_the_holdout_is_not_taken_for_none(tmp_path):
    url = write_shards(tmp_path / "data", 16)
    (tmp_path / "data" / "test" / "index.json").write_text("{}")
    with pytest.raises(InputError, match="test/index.json is not"):
        open_run_data(tiny_config(tmp_path, data__source="none", data__url=url))
