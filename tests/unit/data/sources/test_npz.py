"""Arrays in .npz files: every usual layout, type and kind of label; what could mean several things is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.sources.npz import npz_splits
from tests.helpers.commands import refused, run
from tests.helpers.originals import make_noise
from tests.helpers.prepared import read_prepared


def prepare(capsys: pytest.CaptureFixture[str], out: Path, source: Path, *options: object) -> None:
    code, _, err = run(capsys, "npz", out, "--from", source, "--jobs", 1, *options)
    assert code == 0, err


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def first_sample(path: Path, **options: Any) -> np.ndarray:
    split = next(iter(npz_splits(path, **options)))
    x = split.select_samples(np.array([0])).read_sample(0).x
    assert x.shape == split.shape
    return x


def test_medmnist_is_three_splits_of_framed_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"train": 30, "val": 6, "test": 9}
    images = {part: make_noise(n, (28, 28, 3), seed) for seed, (part, n) in enumerate(counts.items())}
    labels = {part: np.arange(n)[:, None] % 3 for part, n in counts.items()}
    save(
        tmp_path / "pathmnist.npz",
        **{f"{part}_images": x for part, x in images.items()},
        **{f"{part}_labels": y.astype(np.uint8) for part, y in labels.items()},
    )
    prepare(capsys, tmp_path / "out", tmp_path, "--verify")
    for split, part in (("train", "train"), ("valid", "val"), ("test", "test")):
        prepared = read_prepared(tmp_path / "out" / split)
        assert (prepared.index.shape, prepared.index.classes) == ((3, 32, 32), ("0", "1", "2"))
        assert prepared.y == {f"{part}_images[{row}]": row % 3 for row in range(counts[part])}
        for row in range(counts[part]):
            expected = np.pad(images[part][row], ((2, 2), (2, 2), (0, 0))).transpose(2, 0, 1)
            assert np.array_equal(prepared.x[f"{part}_images[{row}]"], expected)


def test_keras_arrays_are_train_and_test(tmp_path: Path) -> None:
    x, y = make_noise(20, (28, 28)), np.arange(20, dtype=np.uint8) % 10
    path = save(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    assert [(split.name, split.num_samples, split.shape) for split in npz_splits(path)] == [
        ("train", 20, (1, 32, 32)),
        ("test", 5, (1, 32, 32)),
    ]
    with pytest.raises(ValueError, match="--holdout is for data without splits, but these have train, test"):
        next(iter(npz_splits(path, holdout=0.2)))


@pytest.mark.parametrize(("images", "labels"), [("x", "y"), ("images", "labels"), ("arr_0", "arr_1")])
def test_plain_arrays_hold_out_a_share_of_every_class(tmp_path: Path, images: str, labels: str) -> None:
    x, y = make_noise(40, (1, 8, 8)), np.arange(40) // 20
    path = save(tmp_path / "mine.npz", **{images: x, labels: y, "note": np.zeros(3)})
    train, test = npz_splits(path, holdout=0.2)
    assert (train.num_samples, test.num_samples) == (32, 8)
    assert test.class_numbers is not None
    assert np.bincount(test.class_numbers).tolist() == [4, 4]
    rows = np.arange(8)
    samples = test.select_samples(rows)
    origins = [samples.read_sample(row).origin for row in range(8)]
    assert origins == [f"{images}[{row}]" for row in sorted(int(name[len(images) + 1 : -1]) for name in origins)]
    assert not {int(name[len(images) + 1 : -1]) for name in origins} & {
        int(train.select_samples(np.array([row])).read_sample(0).origin[len(images) + 1 : -1]) for row in range(32)
    }
    assert [split.name for split in npz_splits(path, holdout=0)] == ["train"]


@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x[:, 0],
        lambda x: x,
        lambda x: x.transpose(0, 2, 3, 1),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32),
        lambda x: x / 255,
        lambda x: (x / 255).astype(np.float32),
        lambda x: np.asfortranarray(x),
    ],
)
def test_every_layout_and_type_gives_the_same_pictures(tmp_path: Path, stored: Any) -> None:
    x = make_noise(4, (1, 16, 16))
    assert np.array_equal(first_sample(save(tmp_path / "a.npz", x=stored(x)), holdout=0), x[0])


def test_what_is_not_square_is_cut_and_a_size_resizes(tmp_path: Path) -> None:
    x = make_noise(4, (20, 16, 3))
    path = save(tmp_path / "a.npz", x=x)
    assert np.array_equal(first_sample(path), x[_first_training_row(path), 2:18].transpose(2, 0, 1))
    assert first_sample(path, size=32).shape == (3, 32, 32)


def _first_training_row(path: Path) -> int:
    split = next(iter(npz_splits(path)))
    return int(split.select_samples(np.array([0])).read_sample(0).origin[2:-1])


@pytest.mark.parametrize(
    ("labels", "classes", "attributes", "first"),
    [
        (np.array(["b", "a", "b", "c"]), ("a", "b", "c"), (), 1),
        (np.array([0.0, 2.0, 1.0, 0.0]), ("0", "1", "2"), (), 0),
        (np.array([[0, 1], [1, 0], [1, 0], [0, 1]]), ("0", "1"), (), 1),
        (np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]), (), ("label0", "label1", "label2"), [0, 1, 1]),
        (None, (), (), None),
    ],
)
def test_labels_are_classes_or_attributes_by_what_they_are(
    tmp_path: Path, labels: Any, classes: tuple[str, ...], attributes: tuple[str, ...], first: Any
) -> None:
    path = save(tmp_path / "a.npz", x=make_noise(4, (8, 8)), **({} if labels is None else {"y": labels}))
    (split,) = npz_splits(path, holdout=0)
    assert (split.classes, split.attributes) == (classes, attributes)
    label = split.select_samples(np.array([0])).read_sample(0).label
    assert label is None if first is None else np.array_equal(np.asarray(label), first)


def test_python_objects_are_refused_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    message = refused(capsys, "npz", tmp_path / "out", "--from", path)
    assert "x of" in message
    assert "holds Python objects, which are not read" in message


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.zeros(3)}, "has no pictures: its arrays are z"),
        ({"x": np.zeros((4, 8))}, "has shape (4, 8), but pictures must be"),
        ({"x": np.zeros((4, 8, 8, 8), np.uint8)}, "has shape (4, 8, 8, 8)"),
        ({"x": np.zeros((4, 3, 8, 3), np.uint8)}, "has shape (4, 3, 8, 3)"),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, "x of {file} is empty (its shape is (0, 8, 8))"),
        ({"x": np.full((4, 8, 8), -0.5)}, "from -0.5 to -0.5, which could mean several things"),
        ({"x": np.full((4, 8, 8), 1.5)}, "from 1.5 to 1.5, which could mean several things"),
        ({"x": np.full((4, 8, 8), np.nan)}, "which could mean several things"),
        ({"x": np.ones((4, 8, 8), np.int32)}, "which could mean several things"),
        ({"x": np.zeros((4, 8, 8), "U2")}, "is of type <U2"),
        ({"x": make_noise(4, (8, 8)), "y": np.arange(3)}, "4 pictures in x and 3 labels in y"),
        ({"x": make_noise(4, (8, 8)), "y": np.array([0, 0.5, 1, 2])}, "labels must be whole numbers or words"),
        ({"x": make_noise(4, (8, 8)), "y": np.array([0, -1, 1, 2])}, "go from -1 to 2"),
        ({"x": make_noise(4, (8, 8)), "y": np.full((4, 2), 2)}, "only zeros and ones"),
        ({"x": make_noise(4, (8, 8)), "images": make_noise(4, (8, 8))}, "could both be the images of train"),
        (
            {"x_train": make_noise(4, (8, 8)), "x_test": make_noise(4, (8, 8)), "y_train": [0, 1, 0, 1],
             "y_test": np.array(list("abab"))},
            "of different kinds in different splits",
        ),
    ],
)  # fmt: skip
def test_what_could_mean_several_things_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any], words: str
) -> None:
    path = save(tmp_path / "a.npz", **arrays)
    assert words.replace("{file}", str(path)) in refused(capsys, "npz", tmp_path / "out", "--from", path)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.float32])
def test_zeros_and_ones_become_black_and_white(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: type[np.generic]
) -> None:
    masks = {part: make_noise(n, (16, 16), n) > 127 for part, n in (("train", 6), ("test", 3))}
    path = save(tmp_path / "a.npz", **{f"x_{part}": x.astype(dtype) for part, x in masks.items()})
    code, out, err = run(capsys, "npz", tmp_path / "out", "--from", path, "--jobs", 1)
    assert code == 0, err
    for part, x in masks.items():
        stored = read_prepared(tmp_path / "out" / part).x
        assert all(np.array_equal(stored[f"x_{part}[{n}]"][0], x[n] * np.uint8(255)) for n in range(len(x)))
    said = 0 if dtype is np.float32 else 1  # fractions from 0 to 1 can mean nothing else
    assert out.count("The pictures hold zeros and ones only, which became 0 and 255.") == said


def test_a_dark_split_beside_a_bright_one_is_no_mask(tmp_path: Path) -> None:
    """What numbers mean is decided over all splits, also those that are not written."""
    bright, dark = make_noise(4, (8, 8)), make_noise(4, (8, 8)) // 128
    path = save(tmp_path / "a.npz", x_train=bright, x_test=dark)
    assert np.array_equal(first_sample(path, splits=["test"])[0], dark[0])
    path = save(tmp_path / "b.npz", x_train=bright.astype(np.float32), x_test=dark.astype(np.float32))
    assert np.array_equal(first_sample(path, splits=["test"])[0], dark[0])


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ((16, 16), (16, 16, 3), "train have 1 channel of 16x16 pixels and those of test 3 channels of 16x16 pixels"),
        ((16, 16), (28, 28), "train have 1 channel of 16x16 pixels and those of test 1 channel of 32x32 pixels"),
    ],
)
def test_splits_of_different_shapes_are_refused_before_any_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: Any, test: Any, words: str
) -> None:
    path = save(tmp_path / "a.npz", x_train=make_noise(10, train), x_test=make_noise(4, test))
    assert words in refused(capsys, "npz", tmp_path / "out", "--from", path)
    assert not (tmp_path / "out" / "train").exists()
    assert [split.name for split in npz_splits(path, splits=["train"])] == ["train"]
    if train[2:] == test[2:]:
        assert {split.shape for split in npz_splits(path, size=32)} == {(1, 32, 32)}


def test_a_cut_and_a_guess_at_the_labels_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = make_noise(10, (16, 20)), np.eye(3, dtype=np.uint8)[np.arange(10) % 3]
    path = save(tmp_path / "a.npz", x_train=x, x_test=x, y_train=y, y_test=y)
    _, out, _ = run(capsys, "npz", tmp_path / "out", "--from", path, "--jobs", 1)
    assert out.count("Pictures of 16x20 are cut to the square in their middle, 16x16.") == 1
    assert out.count("Every row of the labels has a single one: they are taken as 3 classes, not as attributes.") == 1


def test_an_npy_is_named_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", make_noise(4, (8, 8)))
    message = refused(capsys, "npz", tmp_path / "out", "--from", tmp_path / "a.npy")
    assert "is a single array (.npy)" in message
    assert "numpy.savez_compressed('a.npz', images=array)" in message


def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no .npz file in" in refused(capsys, "npz", tmp_path / "out", "--from", tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert "cannot be read as an .npz file" in refused(capsys, "npz", tmp_path / "out", "--from", tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00garbage")
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    assert "x of" in refused(capsys, "npz", tmp_path / "out", "--from", tmp_path)
    (tmp_path / "b.npz").write_bytes(b"")
    assert "There are 2 .npz files" in refused(capsys, "npz", tmp_path / "out", "--from", tmp_path)
