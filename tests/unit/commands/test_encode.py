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
from tests.unit.commands.conftest import done, read, refused


def test_features_are_the_encoder_s_means_in_the_index_s_order(plain, data, tmp_path):
    done(encode, plain, "--out", tmp_path / "f.npz")
    found = read(tmp_path / "f.npz")
    store = LocalStore(data / "train")
    x, y = load_arrays(store, load_index(store))
    saved = load_run(plain)
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
    write_arrays(tmp_path / "rgb" / "train", np.zeros((4, 3, SIDE, SIDE), np.uint8), None)
    assert "[3, 8, 8]" in refused(capsys, encode, plain, "--data", tmp_path / "rgb", "--out", tmp_path / "f.npz")
    assert "valid" in refused(capsys, encode, plain, "--split", "valid", "--out", tmp_path / "f.npz")
    assert "nowhere" in refused(capsys, encode, plain, "--data", tmp_path / "nowhere", "--out", tmp_path / "f.npz")


def test_a_damaged_sample_stops_encoding_and_is_named(plain, tmp_path, capsys):
    data = labelled_images(tmp_path / "images", "classes")
    store = LocalStore(data / "train")
    shard, number = damage_sample(store, load_index(store), 50)
    said = refused(capsys, encode, plain, "--data", data, "--out", tmp_path / "f.npz")
    assert f"sample {number} of {shard}" in said
