"""SVHN's .mat files: pixels upright, label 10 the digit 0, the paper's splits, clear when a file is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.svhn import HOLDOUT, svhn_splits
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import refused, run
from tests.helpers.originals import write_svhn


def test_images_digits_and_splits_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_svhn(tmp_path / "mat", {"train": 73, "extra": 30, "test": 26})
    assert run(capsys, "svhn", tmp_path / "out", "--from", tmp_path / "mat", "--verify", "--jobs", 1)[0] == 0
    x, y = written["train"]
    expected = {
        "train": (x[:63], y[:63]),
        "valid": (x[63:], y[63:]),
        "extra": written["extra"],
        "test": written["test"],
    }
    for split, (images, labels) in expected.items():
        store = LocalStore(tmp_path / "out" / split)
        index = load_index(store)
        assert index.classes == tuple("0123456789")
        loaded_x, loaded_y = load_arrays(store, index)
        assert loaded_y is not None
        labels_by_image = {
            image.tobytes(): label for image, label in zip(loaded_x.numpy(), loaded_y.tolist(), strict=True)
        }
        assert labels_by_image == {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}


def test_the_paper_holds_out_ten_thousand_of_the_real_training_file() -> None:
    assert round(73_257 * HOLDOUT) == 10_000


def test_a_missing_file_is_named_and_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mat"
    write_svhn(folder, {"train": 20, "test": 5})
    message = refused(capsys, "svhn", tmp_path / "out", "--from", folder)
    assert "no extra_32x32.mat" in message
    assert "--splits train,valid,test" in message
    assert not (tmp_path / "out" / "train").exists(), "nothing is begun before all files are there"
    assert run(capsys, "svhn", tmp_path / "out", "--from", folder, "--splits", "train,test", "--jobs", 1)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train"]
    assert "'tset'" in refused(capsys, "svhn", tmp_path / "out", "--from", folder, "--splits", "train,tset")


def test_files_that_are_not_svhn_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    folder = tmp_path / "mat"
    write_svhn(folder, {"train": 20})
    path = folder / "train_32x32.mat"
    whole = path.read_bytes()
    x, y = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
    cases = {
        "cut": (lambda: path.write_bytes(whole[:-500]), "cannot be read"),
        "text": (lambda: path.write_text("not a mat file" * 50), "cannot be read"),
        "keys": (lambda: savemat(path, {"X": x}), "cannot be read"),
        "shape": (lambda: savemat(path, {"X": x[..., :3], "y": y}), "holds uint8 images"),
        "label": (lambda: savemat(path, {"X": x, "y": y * 11}), "labels that are not from 1 to 10"),
    }
    for name, (spoil, words) in cases.items():
        spoil()
        message = refused(capsys, "svhn", tmp_path / "out", "--from", folder, "--splits", "train")
        assert words in message, name
        assert "train_32x32.mat" in message, name


def test_the_whole_training_file_can_be_kept(tmp_path: Path) -> None:
    write_svhn(tmp_path, {"train": 20, "extra": 3, "test": 5})
    assert {split.name: split.num_samples for split in svhn_splits(tmp_path, holdout=0)} == {
        "train": 20,
        "extra": 3,
        "test": 5,
    }
