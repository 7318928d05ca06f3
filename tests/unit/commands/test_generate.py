"""generate: pictures show what was asked for; what cannot be shown is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali_dist import generate
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.report.image_grids import CELL, GAP
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import write_arrays
from tests.helpers.trained import ATTRIBUTES, CLASSES, SIDE, run_folder
from tests.unit.commands.conftest import read_pixels, refusal, succeed


def test_pictures_go_into_the_run_s_folder(plain, capsys):
    for what in ("samples", "reconstructions", "interpolations"):
        capsys.readouterr()
        succeed(generate, plain, "--what", what, "--count", 4)
        line, *names = capsys.readouterr().out.splitlines()
        assert Path(line) == Path(plain) / "generated" / f"{what}-seed0.png"
        assert names == ([] if what == "samples" else [line.replace(".png", ".json")])
        assert read_pixels(Path(line)).std() > 0


def test_single_samples_have_the_data_s_size_and_may_come_with_a_grid(plain, tmp_path):
    succeed(generate, plain, "--count", 3, "--single", "--grid", "--out", tmp_path)
    singles = sorted((tmp_path / "samples-seed0").iterdir())
    assert [(image.size, image.mode) for image in map(Image.open, singles)] == [((SIDE, SIDE), "L")] * 3
    assert read_pixels(tmp_path / "samples-seed0.png").shape[0] == CELL + 2 * GAP  # one row


def test_a_seed_gives_the_same_picture_and_another_another(plain, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed(generate, plain, "--what", "reconstructions", "--count", 5, "--seed", seed, "--out", tmp_path / out)
    a, b, c = (read_pixels(next((tmp_path / name).glob("*.png"))) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_originals_of_reconstructions_are_images_of_the_holdout_split(plain, data, tmp_path):
    succeed(generate, plain, "--what", "reconstructions", "--count", 6, "--single", "--out", tmp_path)
    store = LocalStore(data / "test")
    x, _ = load_arrays(store, load_index(store))
    known = {image.numpy().tobytes() for image in x[:, 0]}
    originals = [read_pixels(path)[:, :, 0].copy() for path in sorted(tmp_path.rglob("*-original.png"))]
    assert len(originals) == 6
    assert {image.tobytes() for image in originals} <= known


@pytest.mark.parametrize("named", [True, False])
def test_the_images_of_a_gallery_are_named_in_order_beside_it(plain, tmp_path, named):
    """An image's id is its gray level, so that every original says which one it is."""
    x = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(SIDE, 2).repeat(SIDE, 3)
    origins = [f"photo{sample}.jpg" for sample in range(12)] if named else None
    write_arrays(tmp_path / "data" / "test", x, None, per_shard=5, origins=origins)
    what = (plain, "--data", tmp_path / "data", "--split", "test", "--count", 5, "--single")
    succeed(generate, *what, "--what", "reconstructions", "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "reconstructions-seed0.json").read_text())
    assert content["data"].endswith("data/test")
    originals = [int(read_pixels(path)[0, 0, 0]) for path in sorted((tmp_path / "out").rglob("*-original.png"))]
    assert content["images"] == [
        {"id": sample, "origin": f"photo{sample}.jpg" if named else None} for sample in originals
    ]
    succeed(generate, *what, "--what", "interpolations", "--out", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "interpolations-seed0.json").read_text())["images"]) == 10


@pytest.mark.parametrize(("what", "files", "images"), [("reconstructions", 2, 1), ("interpolations", 11, 2)])
def test_few_images_give_fewer_pairs_unless_a_count_is_given(
    plain, data, tmp_path, monkeypatch, capsys, what, files, images
):
    """Each pair or row is so many files, and takes so many images."""
    monkeypatch.setitem(generate.DEFAULT_COUNTS, what, 10_000)
    words = ("--what", what, "--single", "--out", tmp_path)
    succeed(generate, plain, *words)
    assert len(list(tmp_path.rglob("*.png"))) == files * (load_index(LocalStore(data / "test")).num_samples // images)
    assert "give a smaller --count" in refusal(capsys, generate, plain, *words, "--count", 10_000)


def test_the_mean_and_a_draw_reconstruct_differently(plain, tmp_path):
    for out, words in (("draw", []), ("mean", ["--use-mean"])):
        succeed(generate, plain, "--what", "reconstructions", "--count", 5, "--out", tmp_path / out, *words)
    draw, mean = (read_pixels(next((tmp_path / name).glob("*.png"))) for name in ("draw", "mean"))
    assert not np.array_equal(draw, mean)


def test_straight_and_spherical_paths_share_their_ends_only(plain, tmp_path):
    words = ("--what", "interpolations", "--count", 1, "--steps", 5, "--single", "--out", tmp_path)
    succeed(generate, plain, *words)
    succeed(generate, plain, *words, "--spherical")
    lines, arcs = (
        [read_pixels(path) for path in sorted((tmp_path / name).glob("*.png"))]
        for name in ("interpolations-seed0", "interpolations-spherical-seed0")
    )
    same = [np.array_equal(a, b) for a, b in zip(lines, arcs, strict=True)]
    assert (same[0], same[-1], all(same)) == (True, True, False)


def test_an_interpolation_has_the_papers_eleven_points(plain, tmp_path):
    succeed(generate, plain, "--what", "interpolations", "--count", 2, "--single", "--out", tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 2 * 11


def test_all_samples_are_given_the_class_that_is_asked_for(by_class, tmp_path):
    for words in (["--class", "two"], ["--class", "2"], ["--class", "one"], []):
        succeed(generate, by_class, "--count", 8, "--single", "--out", tmp_path / "-".join(words or ["turns"]), *words)

    def images(name: str) -> list[np.ndarray]:
        return [read_pixels(path) for path in sorted((tmp_path / name).rglob("*.png"))]

    two, one, turns = images("--class-two"), images("--class-one"), images("turns")
    assert all(np.array_equal(a, b) for a, b in zip(two, images("--class-2"), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(two, one, strict=True))
    equal = [
        [np.array_equal(a, b) for a, b in zip(turns, images_of_class, strict=True)] for images_of_class in (one, two)
    ]
    assert equal == [[i % len(CLASSES) == k for i in range(8)] for k in (1, 2)]


def test_attributes_asked_for_replace_those_of_the_data(by_attributes, tmp_path):
    for out, words in (("data", []), ("same", ["Hat=1"]), ("all", ["Smiling=0,Male=1,Hat=1"])):
        options = ["--attributes", *words] if words else []
        succeed(generate, by_attributes, "--count", 12, "--single", "--out", tmp_path / out, *options)
    images = {out: [read_pixels(p) for p in sorted((tmp_path / out).rglob("*.png"))] for out in ("data", "same", "all")}
    kept = [np.array_equal(a, b) for a, b in zip(images["data"], images["same"], strict=True)]
    assert 0 < sum(kept) < 12  # those that had a hat already stay as they were
    assert sum(np.array_equal(a, b) for a, b in zip(images["same"], images["all"], strict=True)) < 12


def test_a_column_turns_one_attribute_and_leaves_z_alone(by_attributes, tmp_path):
    succeed(generate, by_attributes, "--what", "attributes", "--count", 2, "--single", "--grid", "--out", tmp_path)
    succeed(
        generate,
        by_attributes,
        "--what",
        "attributes",
        "--attributes",
        "Hat=1",
        "--vary",
        "Hat",
        "--count",
        2,
        "--single",
        "--out",
        tmp_path,
    )
    none, hat = tmp_path / "attributes-seed0", tmp_path / "attributes-Hat=1-seed0"
    assert {p.name for p in none.iterdir()} == {
        f"{row:05d}-{label}.png" for row in range(2) for label in ("none", "+Smiling", "+Male", "+Hat")
    }
    assert np.array_equal(read_pixels(none / "00001-+Hat.png"), read_pixels(hat / "00001-Hat=1.png"))
    assert np.array_equal(read_pixels(none / "00001-none.png"), read_pixels(hat / "00001--Hat.png"))
    assert not np.array_equal(read_pixels(none / "00001-none.png"), read_pixels(none / "00001-+Hat.png"))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--class", "3"], ["--class", "not conditional"]),
        (["--what", "attributes"], ["conditional", "model.condition"]),
        (["--what", "picture"], ["picture", "samples"]),
        (["--spherical"], ["--spherical", "interpolations"]),
        (["--count", "0"], ["--count", "from 1 to"]),
        (["--what", "reconstructions", "--count", "41"], ["--count", "40"]),
        (["--out", "s3://bucket/pictures"], ["s3://bucket/pictures", "folder"]),
        (["--sead", "3"], ["--sead", "did you mean --seed"]),
    ],
)
def test_a_wrong_command_ends_with_one_sentence(words, names, plain, capsys):
    sentence = refusal(capsys, generate, plain, *words)
    for name in names:
        assert name in sentence


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--attributes", "Smilling=1"], ["Smilling", "did you mean Smiling"]),
        (["--attributes", "Smiling"], ["Smiling=1"]),
        (["--attributes", "Smiling=2"], ["Smiling=2", "Smiling=0"]),
        (["--class", "two"], ["--class", "attributes"]),
        (["--what", "attributes", "--vary", "Mail"], ["Mail", *ATTRIBUTES]),
    ],
)
def test_unknown_attributes_are_named(words, names, by_attributes, capsys):
    sentence = refusal(capsys, generate, by_attributes, *words)
    for name in names:
        assert name in sentence


def test_an_unknown_class_is_named(by_class, capsys):
    assert "did you mean three" in refusal(capsys, generate, by_class, "--class", "tree")
    assert "4" in refusal(capsys, generate, by_class, "--class", "4")


def test_a_mixture_gives_points_and_a_figure_without_its_data(tmp_path):
    from ali_dist.data.preparation.builtin import ensure_prepared
    from ali_dist.training.loop import fit
    from tests.helpers.runs import StoppingContext, tiny_config

    config = tiny_config(tmp_path, "mixture", data__url=str(tmp_path / "grid"))
    ensure_prepared("mixture-grid", config.data.url, samples=500)
    fit(config, StoppingContext())
    (tmp_path / "grid").rename(tmp_path / "gone")
    succeed(generate, run_folder(config), "--count", 30, "--out", tmp_path / "out")
    assert np.load(tmp_path / "out" / "samples-seed0.npy", allow_pickle=False).shape == (30, 2)
    assert read_pixels(tmp_path / "out" / "samples-seed0.png").std() > 0
