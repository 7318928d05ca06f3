"""MNIST's IDX files: pictures, labels and splits are those of the files, whoever of the family published them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ali_dist.data.sources.mnist import mnist_splits
from tests.helpers.commands import content, refused, run
from tests.helpers.originals import encode_idx, write_mnist
from tests.helpers.prepared import read_prepared


def prepare(capsys: pytest.CaptureFixture[str], out: Path, source: Path, *options: object) -> None:
    code, _, err = run(capsys, "mnist", out, "--from", source, "--jobs", 1, *options)
    assert code == 0, err


def framed(x: np.ndarray) -> np.ndarray:
    return np.pad(x, 2)[None]


def test_splits_are_the_files_with_the_last_sixth_of_training_held_out_in_a_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_mnist(tmp_path / "MNIST" / "raw")
    prepare(capsys, tmp_path / "out", tmp_path, "--verify")
    x, y = written["train"]
    parts = {"train": (x, y, range(50)), "valid": (x, y, range(50, 60)), "test": (*written["test"], range(20))}
    for split, (images, labels, rows) in parts.items():
        prepared = read_prepared(tmp_path / "out" / split)
        assert (prepared.index.shape, prepared.index.classes) == ((1, 32, 32), tuple("0123456789"))
        file = "t10k" if split == "test" else "train"
        assert prepared.y == {f"{file}-images-idx3-ubyte.gz:{row}": labels[row] for row in rows}
        for row in rows:
            assert np.array_equal(prepared.x[f"{file}-images-idx3-ubyte.gz:{row}"], framed(images[row]))


def test_unpacked_files_give_the_same_pictures_and_are_taken_where_there_are_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "a", packed=False)
    write_mnist(tmp_path / "b", packed=False)
    write_mnist(tmp_path / "b", packed=True)
    for name in "ab":
        prepare(capsys, tmp_path / f"out-{name}", tmp_path / name)
    assert content(tmp_path / "out-a") == content(tmp_path / "out-b")


def test_emnist_is_put_upright_and_named_by_its_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Letters are numbered from 1, and one class is both cases of a letter."""
    folder = tmp_path / "gzip"
    written = write_mnist(folder, prefix="emnist-letters-", first_label=1)
    write_mnist(folder, prefix="emnist-digits-")
    mapping = "".join(f"{label} {64 + label} {96 + label}\n" for label in range(1, 27))
    (folder / "emnist-letters-mapping.txt").write_text(mapping)
    message = refused(capsys, "mnist", tmp_path / "out", "--from", folder)
    assert "several sets (digits, letters): choose one with --variant" in message
    assert "did you mean letters" in refused(capsys, "mnist", tmp_path / "out", "--from", folder, "--variant", "leters")
    prepare(capsys, tmp_path / "out", tmp_path, "--variant", "letters", "--holdout", 0)
    prepared = read_prepared(tmp_path / "out" / "train")
    x, y = written["train"]
    assert prepared.index.classes == tuple(f"{chr(65 + n)}{chr(97 + n)}" for n in range(26))
    for row in range(60):
        name = f"emnist-letters-train-images-idx3-ubyte.gz:{row}"
        assert np.array_equal(prepared.x[name], framed(x[row].T))
        assert prepared.y[name] == y[row] - 1
    assert not (tmp_path / "out" / "valid").exists()
    (folder / "emnist-letters-mapping.txt").write_text("A 1\n")
    message = refused(capsys, "mnist", tmp_path / "x", "--from", folder, "--variant", "letters")
    assert "'A 1', but a label and codes of letters are needed" in message


def test_letters_without_a_mapping_are_numbers_from_1_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_mnist(tmp_path / "raw", prefix="emnist-letters-", first_label=1)
    code, out, _ = run(capsys, "mnist", tmp_path / "out", "--from", tmp_path / "raw", "--jobs", 1, "--holdout", 0)
    assert code == 0
    assert out.count("Classes are numbers, because emnist-letters-mapping.txt") == 1
    highest = int(written["train"][1].max())
    prepared = read_prepared(tmp_path / "out" / "train")
    assert prepared.index.classes == tuple(str(label) for label in range(1, highest + 1))
    assert prepared.y["emnist-letters-train-images-idx3-ubyte.gz:0"] == written["train"][1][0] - 1
    names = [f"letter{label}" for label in range(1, highest + 1)]
    assert next(iter(mnist_splits(tmp_path / "raw", names=names))).classes == tuple(names)


def test_pictures_of_different_sizes_in_train_and_test_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "raw", packed=False)
    (tmp_path / "raw" / "t10k-images-idx3-ubyte").write_bytes(encode_idx(np.zeros((20, 16, 16), np.uint8)))
    message = refused(capsys, "mnist", tmp_path / "out", "--from", tmp_path / "raw")
    assert "train have 1 channel of 32x32 pixels and those of test 1 channel of 16x16 pixels" in message
    assert not (tmp_path / "out" / "train").exists()


def test_classes_are_named_by_the_folder_or_as_the_user_says(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    write_mnist(tmp_path / "other")

    def classes(folder: str, *names: str) -> tuple[str, ...]:
        return next(iter(mnist_splits(tmp_path / folder, names=names or None))).classes

    assert classes("FashionMNIST")[0] == "T-shirt/top"
    assert classes("other", "fashion")[9] == "Ankle boot"
    assert classes("other", "kmnist")[1] == "ki"
    assert classes("FashionMNIST", *"abcdefghij") == tuple("abcdefghij")
    with pytest.raises(ValueError, match="labels of 2, but the 2 class names are of 0 to 1"):
        classes("other", "a", "b")


@pytest.mark.parametrize("size", [16, 28, 64])
def test_a_size_resizes_in_place_of_the_frame(tmp_path: Path, size: int) -> None:
    x, _ = write_mnist(tmp_path)["test"]
    (split,) = mnist_splits(tmp_path, size=size, splits=["test"])
    sample = split.select_samples(np.array([3])).read_sample(0)
    assert split.shape == sample.x.shape == (1, size, size)
    assert abs(float(sample.x.mean()) - float(x[3].mean())) < 4
    assert (size != 28) or np.array_equal(sample.x[0], x[3])


def test_files_that_are_missing_damaged_or_of_another_kind_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "raw"

    def refusal(*options: object) -> str:
        return refused(capsys, "mnist", tmp_path / "out", "--from", folder, "--jobs", 1, *options)

    assert "no files of MNIST" in refusal()
    x, y = write_mnist(folder)["train"]
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    for data, words in [
        (whole[:-9], "train-images-idx3-ubyte.gz cannot be read"),
        (encode_idx(y), "begins with 00000801, but an IDX file of 3-dimensional bytes begins with 00000803"),
        (encode_idx(x)[:-1], "holds 47039 bytes, but its header says 60 x 28 x 28"),
        (struct.pack(">I", 0x803), "begins with 00000803"),
        (encode_idx(x[:10]), "has 10 pictures and train-labels-idx1-ubyte.gz has 60 labels"),
        (b"", "train-images-idx3-ubyte.gz is empty (0 bytes)"),
    ]:
        images.write_bytes(data)
        assert words in refusal(), words
    images.write_bytes(whole)
    for option, value, words in [("--holdout", 1, "--holdout is 1"), ("--size", 0, "--size is 0")]:
        assert words in refusal(option, value)
    labels.unlink()
    assert "no labels of train" in refusal()
    prepare(capsys, tmp_path / "test-only", folder, "--splits", "test")
    (folder / "copy").mkdir()
    (folder / "copy" / images.name).write_bytes(gzip.compress(b""))
    assert "give --from one of these folders" in refusal()
