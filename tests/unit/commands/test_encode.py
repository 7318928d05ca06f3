"""encode: features are right, in order, resumable, and the same however they are made."""

import io
import json

import numpy as np
import pytest
import torch

from ali_dist import encode
from ali_dist.data.shards.index import load_index, load_sidecar
from ali_dist.data.shards.reader import load_arrays
from ali_dist.inference.load import load_run
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import damage_sample, write_arrays
from tests.helpers.trained import COUNTS, SIDE, labelled_images
from tests.unit.commands.conftest import read_arrays, refusal, succeed


def test_features_are_the_encoder_s_means_in_the_index_s_order(plain, data, tmp_path):
    succeed(encode, plain, "--out", tmp_path / "f.npz")
    arrays = read_arrays(tmp_path / "f.npz")
    store = LocalStore(data / "train")
    x, y = load_arrays(store, load_index(store))
    run = load_run(plain)
    with torch.inference_mode():
        mu = run.model.encode(run.space.unit_from_stored(x))[0]
    assert arrays["features"].dtype == np.float32
    assert np.allclose(arrays["features"], mu.numpy(), atol=1e-5)
    assert arrays["ids"].tolist() == list(range(COUNTS["train"]))
    assert y is not None
    assert arrays["labels"].tolist() == y.tolist()


def test_each_row_has_the_name_of_its_sample_where_the_data_have_names(plain, tmp_path, capsys):
    """In both forms of output; names need be neither ASCII nor, as names of files, UTF-8."""
    x = np.random.default_rng(0).integers(0, 256, (10, 1, SIDE, SIDE), dtype=np.uint8)
    names = [f"a/{number}.png" for number in range(8)] + ["größe.jpg", "old\udcff.jpg"]
    write_arrays(tmp_path / "named" / "train", x, None, per_shard=4, origins=names)
    what = (plain, "--data", tmp_path / "named")
    succeed(encode, *what, "--out", tmp_path / "all.npz")
    succeed(encode, *what, "--out", tmp_path / "folder")
    assert read_arrays(tmp_path / "all.npz")["origins"].tolist() == names
    parts = [read_arrays(path)["origins"] for path in sorted((tmp_path / "folder").glob("*.npz"))]
    assert np.concatenate(parts).tolist() == names
    succeed(encode, plain, "--out", tmp_path / "nameless.npz")
    assert set(read_arrays(tmp_path / "nameless.npz")) == {"features", "ids", "labels"}
    store = LocalStore(tmp_path / "named" / "train")
    damage_sample(store, load_index(store), 5)
    message = refusal(capsys, encode, *what, "--out", tmp_path / "damaged.npz")
    assert "sample 1 of 00001.tar, a/5.png (its crc32" in message


@pytest.mark.parametrize("features", ["mu", "mu+sigma", "mu+hidden", "mu+layers", "joint"])
def test_threads_folders_and_files_change_nothing(plain, tmp_path, features):
    what = (plain, "--features", features, "--sample", "--seed", 3)
    succeed(encode, *what, "--out", tmp_path / "one.npz", "--workers", 1)
    succeed(encode, *what, "--out", tmp_path / "three.npz", "--workers", 3)
    succeed(encode, *what, "--out", tmp_path / "folder")
    one, three = read_arrays(tmp_path / "one.npz"), read_arrays(tmp_path / "three.npz")
    parts = [read_arrays(path) for path in sorted((tmp_path / "folder").glob("*.npz"))]
    assert len(parts) > 1
    for name in ("features", "ids", "labels"):
        assert np.array_equal(one[name], three[name])
        assert np.array_equal(one[name], np.concatenate([part[name] for part in parts]))
    note = json.loads((tmp_path / "folder" / "features.json").read_text())
    assert (note["complete"], [note["samples"], note["size"]]) == (True, list(one["features"].shape))


def test_draws_of_z_differ_by_seed_and_scatter_about_the_mean(plain, tmp_path):
    for name, words in {"mu": [], "a": ["--sample"], "b": ["--sample", "--seed", 1]}.items():
        succeed(encode, plain, "--out", tmp_path / f"{name}.npz", *words)
    mu, a, b = (read_arrays(tmp_path / f"{name}.npz")["features"] for name in ("mu", "a", "b"))
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, mu)
    succeed(encode, plain, "--out", tmp_path / "both.npz", "--features", "mu+sigma")
    sigma = read_arrays(tmp_path / "both.npz")["features"][:, mu.shape[1] :]
    assert abs(float(((a - mu) / sigma).std()) - 1) < 0.2


def test_an_interrupted_folder_is_completed_and_what_it_holds_is_kept(plain, tmp_path, capsys):
    succeed(encode, plain, "--out", tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "features-00001.npz").unlink()
    kept = (tmp_path / "features-00000.npz").stat().st_mtime_ns
    capsys.readouterr()
    succeed(encode, plain, "--out", tmp_path)
    assert (tmp_path / "features-00000.npz").stat().st_mtime_ns == kept
    assert "there already" in capsys.readouterr().err
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert again.keys() == whole.keys()
    for name in ("features-00000.npz", "features-00001.npz"):
        mine, theirs = (dict(np.load(io.BytesIO(files[name]))) for files in (whole, again))
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


def test_a_folder_never_mixes_features_of_two_kinds(plain, tmp_path, capsys):
    succeed(encode, plain, "--out", tmp_path)
    assert "mu+sigma" in refusal(capsys, encode, plain, "--out", tmp_path, "--features", "mu+sigma")
    assert "weights" in refusal(capsys, encode, plain, "--out", tmp_path, "--weights", "raw")


def test_ranks_share_the_shards_and_the_last_one_completes_the_folder(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        succeed(encode, plain, "--out", tmp_path / "shared")
        note = json.loads((tmp_path / "shared" / "features.json").read_text())
        assert note["complete"] == (rank == 0)
    assert "give a folder" in refusal(capsys, encode, plain, "--out", tmp_path / "f.npz")
    monkeypatch.delenv("RANK")
    succeed(encode, plain, "--out", tmp_path / "alone")
    for path in (tmp_path / "alone").glob("*.npz"):
        assert np.array_equal(read_arrays(path)["features"], read_arrays(tmp_path / "shared" / path.name)["features"])


def test_features_beside_the_data_leave_the_data_alone(plain, tmp_path):
    data = labelled_images(tmp_path / "images", "classes")
    succeed(encode, plain, "--data", data, "--out", data / "train")
    store = LocalStore(data / "train")
    index = load_index(store)
    assert len(load_sidecar(store, index, 0).offsets) == index.shards[0].samples


def test_a_conditional_encoder_is_given_the_labels_of_the_data(by_class, folder, tmp_path, capsys):
    succeed(encode, by_class, "--out", tmp_path / "f.npz")
    unlabelled = labelled_images(folder / "unlabelled", "none")
    assert "no labels" in refusal(capsys, encode, by_class, "--data", unlabelled, "--out", tmp_path / "g.npz")
    other = labelled_images(folder / "other", "attributes")
    assert "another kind" in refusal(capsys, encode, by_class, "--data", other, "--out", tmp_path / "g.npz")
    assert not (tmp_path / "g.npz").exists()


def test_data_that_do_not_fit_the_model_are_refused(plain, tmp_path, capsys):
    write_arrays(tmp_path / "rgb" / "train", np.zeros((4, 3, SIDE, SIDE), np.uint8), None)
    assert "[3, 8, 8]" in refusal(capsys, encode, plain, "--data", tmp_path / "rgb", "--out", tmp_path / "f.npz")
    assert "valid" in refusal(capsys, encode, plain, "--split", "valid", "--out", tmp_path / "f.npz")
    assert "nowhere" in refusal(capsys, encode, plain, "--data", tmp_path / "nowhere", "--out", tmp_path / "f.npz")


def test_a_damaged_sample_stops_encoding_and_is_named(plain, tmp_path, capsys):
    data = labelled_images(tmp_path / "images", "classes")
    store = LocalStore(data / "train")
    shard, number = damage_sample(store, load_index(store), 50)
    sentence = refusal(capsys, encode, plain, "--data", data, "--out", tmp_path / "f.npz")
    assert f"sample {number} of {shard}" in sentence


def test_a_file_of_another_kind_is_refused(tmp_path, capsys):
    """It would have been the name of a folder."""
    out = tmp_path / "features.csv"
    assert encode.main(["no-run", "--out", str(out)]) == 2
    assert "FILE.npz, FILE.parquet or a folder" in capsys.readouterr().err
    assert not out.exists()
