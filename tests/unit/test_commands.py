"""The commands that use a trained model: what they write is right, and what they refuse they name."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ali_dist import encode, evaluate, generate
from ali_dist.data.index import load_index, load_sidecar
from ali_dist.data.reader import load_arrays
from ali_dist.data.storage import LocalStore
from ali_dist.evaluation.interpolation import along_sphere, straight
from ali_dist.report.gallery import CELL, GAP, save_conditions, save_image
from ali_dist.report.metric_table import Measured
from ali_dist.training.saved import open_saved
from tests.helpers.arrays import damage, write
from tests.helpers.trained import ATTRIBUTES, CLASSES, COUNTS, SIDE, labelled_images, run_folder, trained


@pytest.fixture(scope="module", autouse=True)
def _quick_judges():
    """Judges of random images need no training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ali_dist.evaluation.classifier.STEPS", 5)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def data(place) -> Path:
    return labelled_images(place / "classes", "classes")


@pytest.fixture(scope="module")
def plain(place, data) -> str:
    config = trained(place, data, "plain", report__evaluation="auto", report__evaluation_samples=50)
    return str(run_folder(config))


@pytest.fixture(scope="module")
def by_class(place, data) -> str:
    return str(run_folder(trained(place, data, "by-class", model__condition="classes")))


@pytest.fixture(scope="module")
def by_attributes(place) -> str:
    images = labelled_images(place / "attributes", "attributes")
    return str(run_folder(trained(place, images, "by-attributes", model__condition="attributes")))


def refused(capsys, command, *words) -> str:
    """The one sentence with which a wrong command ends."""
    capsys.readouterr()
    assert command.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def done(command, *words) -> None:
    assert command.main([str(word) for word in words]) == 0


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


# ---- encode ----------------------------------------------------------------------------------------------------------


def test_features_are_the_encoder_s_means_in_the_index_s_order(plain, data, tmp_path):
    done(encode, plain, "--out", tmp_path / "f.npz")
    found = read(tmp_path / "f.npz")
    store = LocalStore(data / "train")
    x, y = load_arrays(store, load_index(store))
    saved = open_saved(plain)
    with torch.inference_mode():
        mu = saved.model.encode(saved.space.unit_from_stored(x))[0]
    assert found["features"].dtype == np.float32
    assert np.allclose(found["features"], mu.numpy(), atol=1e-5)
    assert found["ids"].tolist() == list(range(COUNTS["train"]))
    assert y is not None
    assert found["labels"].tolist() == y.tolist()


@pytest.mark.parametrize("features", ["mu", "mu+sigma", "mu+hidden", "mu+layers", "joint"])
def test_threads_folders_and_files_change_nothing(plain, tmp_path, features):
    what = (plain, "--features", features, "--sample", "--seed", 3)
    done(encode, *what, "--out", tmp_path / "one.npz", "--workers", 1)
    done(encode, *what, "--out", tmp_path / "three.npz", "--workers", 3)
    done(encode, *what, "--out", tmp_path / "folder")
    one, three = read(tmp_path / "one.npz"), read(tmp_path / "three.npz")
    parts = [read(path) for path in sorted((tmp_path / "folder").glob("*.npz"))]
    assert len(parts) > 1
    for name in ("features", "ids", "labels"):
        assert np.array_equal(one[name], three[name])
        assert np.array_equal(one[name], np.concatenate([part[name] for part in parts]))
    note = json.loads((tmp_path / "folder" / "features.json").read_text())
    assert (note["complete"], [note["samples"], note["size"]]) == (True, list(one["features"].shape))


def test_draws_of_z_differ_by_seed_and_scatter_about_the_mean(plain, tmp_path):
    for name, words in {"mu": [], "a": ["--sample"], "b": ["--sample", "--seed", 1]}.items():
        done(encode, plain, "--out", tmp_path / f"{name}.npz", *words)
    mu, a, b = (read(tmp_path / f"{name}.npz")["features"] for name in ("mu", "a", "b"))
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, mu)
    done(encode, plain, "--out", tmp_path / "both.npz", "--features", "mu+sigma")
    sigma = read(tmp_path / "both.npz")["features"][:, mu.shape[1] :]
    assert abs(float(((a - mu) / sigma).std()) - 1) < 0.2


def test_an_interrupted_folder_is_gone_on_with_and_not_done_again(plain, tmp_path, capsys):
    done(encode, plain, "--out", tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "features-00001.npz").unlink()
    kept = (tmp_path / "features-00000.npz").stat().st_mtime_ns
    capsys.readouterr()
    done(encode, plain, "--out", tmp_path)
    assert (tmp_path / "features-00000.npz").stat().st_mtime_ns == kept
    assert "there already" in capsys.readouterr().err
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert again.keys() == whole.keys()
    for name in ("features-00000.npz", "features-00001.npz"):
        mine, theirs = (dict(np.load(io.BytesIO(files[name]))) for files in (whole, again))
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


def test_a_folder_never_mixes_features_of_two_kinds(plain, tmp_path, capsys):
    done(encode, plain, "--out", tmp_path)
    assert "mu+sigma" in refused(capsys, encode, plain, "--out", tmp_path, "--features", "mu+sigma")
    assert "weights" in refused(capsys, encode, plain, "--out", tmp_path, "--weights", "raw")


def test_ranks_share_the_shards_and_the_last_one_completes_the_folder(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        done(encode, plain, "--out", tmp_path / "shared")
        note = json.loads((tmp_path / "shared" / "features.json").read_text())
        assert note["complete"] == (rank == 0)
    assert "give a folder" in refused(capsys, encode, plain, "--out", tmp_path / "f.npz")
    monkeypatch.delenv("RANK")
    done(encode, plain, "--out", tmp_path / "alone")
    for path in (tmp_path / "alone").glob("*.npz"):
        assert np.array_equal(read(path)["features"], read(tmp_path / "shared" / path.name)["features"])


def test_features_beside_the_data_leave_the_data_alone(plain, tmp_path):
    data = labelled_images(tmp_path / "images", "classes")
    done(encode, plain, "--data", data, "--out", data / "train")
    store = LocalStore(data / "train")
    index = load_index(store)
    assert len(load_sidecar(store, index, 0).offsets) == index.shards[0].samples


def test_a_conditional_encoder_is_given_the_labels_of_the_data(by_class, place, tmp_path, capsys):
    done(encode, by_class, "--out", tmp_path / "f.npz")
    unlabelled = labelled_images(place / "unlabelled", "none")
    assert "no labels" in refused(capsys, encode, by_class, "--data", unlabelled, "--out", tmp_path / "g.npz")
    other = labelled_images(place / "other", "attributes")
    assert "another kind" in refused(capsys, encode, by_class, "--data", other, "--out", tmp_path / "g.npz")
    assert not (tmp_path / "g.npz").exists()


def test_data_that_do_not_fit_the_model_are_refused(plain, tmp_path, capsys):
    write(tmp_path / "rgb" / "train", np.zeros((4, 3, SIDE, SIDE), np.uint8), None)
    assert "[3, 8, 8]" in refused(capsys, encode, plain, "--data", tmp_path / "rgb", "--out", tmp_path / "f.npz")
    assert "valid" in refused(capsys, encode, plain, "--split", "valid", "--out", tmp_path / "f.npz")
    assert "nowhere" in refused(capsys, encode, plain, "--data", tmp_path / "nowhere", "--out", tmp_path / "f.npz")


def test_a_damaged_sample_stops_encoding_and_is_named(plain, tmp_path, capsys):
    data = labelled_images(tmp_path / "images", "classes")
    store = LocalStore(data / "train")
    shard, number = damage(store, load_index(store), 50)
    said = refused(capsys, encode, plain, "--data", data, "--out", tmp_path / "f.npz")
    assert f"sample {number} of {shard}" in said


# ---- generate --------------------------------------------------------------------------------------------------------


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_go_into_the_run_s_folder(plain, capsys):
    for what in ("samples", "reconstructions", "interpolations"):
        capsys.readouterr()
        done(generate, plain, "--what", what, "--count", 4)
        (line,) = capsys.readouterr().out.splitlines()
        assert Path(line) == Path(plain) / "generated" / f"{what}-seed0.png"
        assert pixels(Path(line)).std() > 0


def test_single_samples_have_the_data_s_size_and_may_come_with_a_grid(plain, tmp_path):
    done(generate, plain, "--count", 3, "--single", "--grid", "--out", tmp_path)
    singles = sorted((tmp_path / "samples-seed0").iterdir())
    assert [pixels(path).shape for path in singles] == [(SIDE, SIDE, 3)] * 3
    assert pixels(tmp_path / "samples-seed0.png").shape[0] == CELL + 2 * GAP  # one row


def test_a_seed_gives_the_same_picture_and_another_another(plain, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        done(generate, plain, "--what", "reconstructions", "--count", 5, "--seed", seed, "--out", tmp_path / out)
    a, b, c = (pixels(next((tmp_path / name).iterdir())) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_originals_of_reconstructions_are_images_of_the_holdout_split(plain, data, tmp_path):
    done(generate, plain, "--what", "reconstructions", "--count", 6, "--single", "--out", tmp_path)
    store = LocalStore(data / "test")
    x, _ = load_arrays(store, load_index(store))
    known = {image.numpy().tobytes() for image in x[:, 0]}
    originals = [pixels(path)[:, :, 0].copy() for path in sorted(tmp_path.rglob("*-original.png"))]
    assert len(originals) == 6
    assert {image.tobytes() for image in originals} <= known


def test_the_mean_and_a_draw_reconstruct_differently(plain, tmp_path):
    for out, words in (("draw", []), ("mean", ["--use-mean"])):
        done(generate, plain, "--what", "reconstructions", "--count", 5, "--out", tmp_path / out, *words)
    draw, mean = (pixels(next((tmp_path / name).iterdir())) for name in ("draw", "mean"))
    assert not np.array_equal(draw, mean)


def test_straight_and_spherical_ways_share_their_ends_only(plain, tmp_path):
    words = ("--what", "interpolations", "--count", 1, "--steps", 5, "--single", "--out", tmp_path)
    done(generate, plain, *words)
    done(generate, plain, *words, "--spherical")
    lines, arcs = (
        [pixels(path) for path in sorted((tmp_path / name).iterdir())]
        for name in ("interpolations-seed0", "interpolations-spherical-seed0")
    )
    same = [np.array_equal(a, b) for a, b in zip(lines, arcs, strict=True)]
    assert (same[0], same[-1], all(same)) == (True, True, False)


def test_a_class_that_is_asked_for_is_what_all_samples_are_given(by_class, tmp_path):
    for words in (["--class", "two"], ["--class", "2"], ["--class", "one"], []):
        done(generate, by_class, "--count", 8, "--single", "--out", tmp_path / "-".join(words or ["turns"]), *words)

    def images(name: str) -> list[np.ndarray]:
        return [pixels(path) for path in sorted((tmp_path / name).rglob("*.png"))]

    two, one, turns = images("--class-two"), images("--class-one"), images("turns")
    assert all(np.array_equal(a, b) for a, b in zip(two, images("--class-2"), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(two, one, strict=True))
    equal = [[np.array_equal(a, b) for a, b in zip(turns, asked, strict=True)] for asked in (one, two)]
    assert equal == [[i % len(CLASSES) == k for i in range(8)] for k in (1, 2)]


def test_attributes_asked_for_replace_those_of_the_data(by_attributes, tmp_path):
    for out, words in (("data", []), ("same", ["Hat=1"]), ("all", ["Smiling=0,Male=1,Hat=1"])):
        options = ["--attributes", *words] if words else []
        done(generate, by_attributes, "--count", 12, "--single", "--out", tmp_path / out, *options)
    images = {out: [pixels(p) for p in sorted((tmp_path / out).rglob("*.png"))] for out in ("data", "same", "all")}
    kept = [np.array_equal(a, b) for a, b in zip(images["data"], images["same"], strict=True)]
    assert 0 < sum(kept) < 12  # those that had a hat already stay as they were
    assert sum(np.array_equal(a, b) for a, b in zip(images["same"], images["all"], strict=True)) < 12


def test_a_column_turns_one_attribute_and_leaves_z_alone(by_attributes, tmp_path):
    done(generate, by_attributes, "--what", "attributes", "--count", 2, "--single", "--grid", "--out", tmp_path)
    done(
        generate, by_attributes, "--what", "attributes", "--attributes", "Hat=1", "--vary", "Hat",
        "--count", 2, "--single", "--out", tmp_path,
    )  # fmt: skip
    none, hat = tmp_path / "attributes-seed0", tmp_path / "attributes-Hat=1-seed0"
    assert {p.name for p in none.iterdir()} == {
        f"{row:05d}-{label}.png" for row in range(2) for label in ("none", "+Smiling", "+Male", "+Hat")
    }
    assert np.array_equal(pixels(none / "00001-+Hat.png"), pixels(hat / "00001-Hat=1.png"))
    assert np.array_equal(pixels(none / "00001-none.png"), pixels(hat / "00001--Hat.png"))
    assert not np.array_equal(pixels(none / "00001-none.png"), pixels(none / "00001-+Hat.png"))


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
def test_wrong_wishes_are_one_sentence(words, names, plain, capsys):
    said = refused(capsys, generate, plain, *words)
    for name in names:
        assert name in said


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
    said = refused(capsys, generate, by_attributes, *words)
    for name in names:
        assert name in said


def test_an_unknown_class_is_named(by_class, capsys):
    assert "did you mean three" in refused(capsys, generate, by_class, "--class", "tree")
    assert "4" in refused(capsys, generate, by_class, "--class", "4")


def test_a_mixture_gives_points_and_a_figure_without_its_data(tmp_path):
    from ali_dist.data.sources import ensure_prepared
    from ali_dist.training.loop import fit
    from tests.helpers.runs import StoppingContext, tiny

    config = tiny(tmp_path, "mixture", data__url=str(tmp_path / "grid"))
    ensure_prepared("mixture-grid", config.data.url, mixture_samples=500)
    fit(config, StoppingContext())
    (tmp_path / "grid").rename(tmp_path / "gone")
    done(generate, run_folder(config), "--count", 30, "--out", tmp_path / "out")
    assert np.load(tmp_path / "out" / "samples-seed0.npy", allow_pickle=False).shape == (30, 2)
    assert pixels(tmp_path / "out" / "samples-seed0.png").std() > 0


# ---- evaluate --------------------------------------------------------------------------------------------------------


def evaluated(tmp_path: Path, *words) -> dict:
    done(evaluate, *words, "--json", tmp_path / "e.json")
    return json.loads((tmp_path / "e.json").read_text())


def test_evaluating_a_run_gives_the_numbers_of_its_summary(plain, tmp_path, capsys):
    found = evaluated(tmp_path, plain)
    assert found["metrics"] == json.loads((Path(plain) / "summary.json").read_text())["metrics"]
    assert (found["weights"], found["images"], found["intervals"]) == ("ema", 192, {})
    assert "Reconstruction error" in capsys.readouterr().out


def test_several_seeds_give_the_mean_of_each_with_an_interval_about_it(plain, tmp_path):
    words = (plain, "--samples", 50, "--metrics", "frechet,latent_mmd2")
    together = evaluated(tmp_path, *words, "--seeds", 2, "--seed", 4)
    apart = [evaluated(tmp_path, *words, "--seed", seed)["metrics"] for seed in (4, 5)]
    assert together["seeds"] == [4, 5]
    for name in ("frechet", "latent_mmd2"):
        values = [metrics[name] for metrics in apart]
        assert together["values"][name] == values
        assert together["metrics"][name] == pytest.approx(sum(values) / 2)
        low, high = together["intervals"][name]
        assert low < together["metrics"][name] < high
    assert "frechet_reference" in together["metrics"]
    assert "label_kept" not in together["metrics"]


def test_an_interval_is_student_s():
    """2, 4, 6: mean 4, s = 2, and t(0.975; 2) = 4.303."""
    measured = Measured.of([2.0, 4.0, 6.0])
    assert measured.high == pytest.approx(4 + 4.303 * 2 / 3**0.5)
    assert Measured.of([2.0]).low is None


def test_the_svm_protocol_runs_on_mu_and_three_layers(plain, tmp_path):
    done(encode, plain, "--features", "mu+layers", "--out", tmp_path / "f.npz")
    found = evaluated(tmp_path, plain, "--what", "svm", "--labels", 8, "--draws", 2)["metrics"]
    assert found["svm_features"] == read(tmp_path / "f.npz")["features"].shape[1]
    assert found["svm_labels"] == 8
    assert 0 <= found["svm_error"] <= 1


def test_anomaly_scores_come_with_bootstrap_intervals(plain, tmp_path):
    found = evaluated(tmp_path, plain, "--what", "anomaly", "--normal-class", "zero,1")
    low, high = found["intervals"]["auroc_reconstruction"]
    assert 0 <= low <= found["metrics"]["auroc_reconstruction"] <= high <= 1
    assert "auroc_egbad_features_standardised" in found["metrics"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--metrics", "freshet"], ["freshet", "did you mean frechet"]),
        (["--what", "fid"], ["--inception-weights"]),
        (["--what", "fid", "--inception-weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--what", "anomaly"], ["--normal-class"]),
        (["--what", "anomaly", "--normal-class", "ten"], ["ten", *CLASSES]),
        (["--labels", "10"], ["--labels", "svm"]),
        (["--seeds", "31"], ["31", "30"]),
        (["--memory-mb", "0"], ["--memory-mb"]),
        (["--split", "valid"], ["valid", "test"]),
        (["--endpoint-url", "nonsense", "--data", "s3://bucket/x"], ["nonsense"]),
    ],
)
def test_evaluations_that_cannot_be_are_one_sentence(words, names, plain, capsys):
    said = refused(capsys, evaluate, plain, *words)
    for name in names:
        assert name in said


def test_data_larger_than_memory_allows_are_refused(plain, place, capsys):
    large = place / "large"
    for split in ("train", "test"):
        write(large / split, np.zeros((1000, 1, SIDE, SIDE), np.uint8), [0] * 1000)
    assert "--memory-mb" in refused(capsys, evaluate, plain, "--data", large, "--memory-mb", 1)


def test_conditional_models_are_measured_under_the_holdout_s_conditions(by_class, by_attributes, tmp_path):
    for run in (by_class, by_attributes):
        found = evaluated(tmp_path, run, "--samples", 40)["metrics"]
        assert 0 <= found["condition_kept"] <= 1


@pytest.mark.parametrize("command", [evaluate, generate, encode])
def test_help_is_readable_and_a_missing_run_is_named(command, capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "RUN" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert "RUN" in refused(capsys, command)


# ---- what they are made of -------------------------------------------------------------------------------------------


def test_ways_start_and_end_where_they_should_and_arcs_keep_the_radius():
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    for way in (straight, along_sphere):
        path = way(a, b, 5)
        assert torch.allclose(path[:, 0], a)
        assert torch.allclose(path[:, -1], b)
        assert not path.isnan().any()
    assert torch.allclose(along_sphere(a, b, 5)[0].norm(dim=1), torch.full((5,), 2.0))
    assert torch.allclose(straight(a, b, 3)[0, 1], torch.tensor([1.0, 1.0]))
    middle = along_sphere(a, b, 3)[0, 1]
    assert torch.allclose(middle, torch.tensor([2.0, 2.0]) / 2**0.5)


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["a very long label", "b", "c"]], ids=["level", "sideways"])
def test_labels_stand_above_their_columns_and_change_no_image(tmp_path, labels):
    rows = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(-1, -1, 1, 8, 8)
    save_conditions(tmp_path / "c.png", rows, labels)
    picture = pixels(tmp_path / "c.png")
    grid = picture[-(2 * (CELL + GAP) + GAP) :]
    for row in range(2):
        for column in range(3):
            top, left = GAP + row * (CELL + GAP), GAP + column * (CELL + GAP)
            values = set(grid[top : top + CELL, left : left + CELL].ravel().tolist())
            assert values == {round(float(rows[row, column, 0, 0, 0]) * 255)}
    head = picture[: len(picture) - len(grid)]
    for column in range(3):
        left = GAP + column * (CELL + GAP)
        assert head[:, left : left + CELL].min() < 150  # ink
    assert len(head) > CELL if "long" in labels[0] else len(head) < CELL


def test_a_single_image_is_written_pixel_by_pixel(tmp_path):
    image = torch.arange(12.0).view(3, 2, 2) / 255
    save_image(tmp_path / "i.png", image)
    assert pixels(tmp_path / "i.png").transpose(2, 0, 1).tolist() == torch.arange(12).view(3, 2, 2).tolist()
