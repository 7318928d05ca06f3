"""Parquet files as Hugging Face publishes them: pictures, splits, classes and names are those of the files."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources import parquet
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, refused, run
from tests.helpers.parquet_files import write_parquet
from tests.helpers.prepared import read_prepared

NAMES = ("cat", "dog", "eel")


def encode(value: int, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
    """Encode an image of one color, which tells it from the others."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 255 - value, 7)).save(buffer, kind)
    return buffer.getvalue()


def read_samples(folder: Path) -> dict[int, tuple[str, object]]:
    """The origin and label of each sample, by the red of its first pixel."""
    prepared = read_prepared(folder)
    return {int(image[0, 0, 0]): (origin, prepared.y[origin]) for origin, image in prepared.x.items()}


def prepare(capsys: pytest.CaptureFixture[str], out: Path, source: Path, *options: object) -> str:
    arguments = ("--from", source, "--size", 16, "--jobs", 1, *options)
    code, _, err = run(capsys, "parquet", out, *arguments)
    assert code == 0, err
    return err


def test_splits_classes_and_names_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two training files of several row groups, whose rows are numbered through; classes are named by the metadata."""
    data = tmp_path / "set" / "data"
    for part, start in enumerate((0, 10)):
        write_parquet(
            data / f"train-0000{part}-of-00002-0123456789abcdef.parquet",
            [encode(value) for value in range(start, start + 10)],
            paths=[f"{value}.png" for value in range(start, start + 10)],
            columns={"label": [value % 3 for value in range(start, start + 10)]},
            classes={"label": NAMES},
        )
    write_parquet(
        data / "validation-00000-of-00001.parquet", [encode(200)], columns={"label": [2]}, classes={"label": NAMES}
    )
    (data / ".cache").mkdir()
    (data / ".cache" / "train-00000-of-00001.parquet").write_bytes(b"nothing")
    out = tmp_path / "out"
    arguments = ("parquet", out, "--from", tmp_path / "set", "--size", 16, "--jobs", 1, "--shard-mb", 0.01, "--verify")
    assert run(capsys, *arguments)[0] == 0
    index = load_index(LocalStore(out / "train"))
    assert (index.shape, index.classes, len(index.shards) > 2) == ((3, 16, 16), NAMES, True)
    assert read_samples(out / "train") == {value: (f"{value}.png", value % 3) for value in range(20)}
    assert read_samples(out / "valid") == {200: ("data/validation-00000-of-00001.parquet:0", 2)}


def test_several_processes_write_the_same_and_leave_no_temporary_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    write_parquet(tmp_path / "train.parquet", [encode(value) for value in range(30)])
    prepare(capsys, tmp_path / "one", tmp_path / "train.parquet", "--shard-mb", 0.02)
    prepare(capsys, tmp_path / "two", tmp_path / "train.parquet", "--shard-mb", 0.02, "--jobs", 2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert list(temporary.iterdir()) == []


def test_a_data_set_without_splits_holds_out_a_share_of_every_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sorted by class, as many are published: both splits have all classes, and a shard does not have one only."""
    values = list(range(40))
    path = write_parquet(
        tmp_path / "0000.parquet",
        [encode(value) for value in values],
        columns={"species": ["a" if value < 20 else "b" for value in values]},
    )
    prepare(capsys, tmp_path / "out", path, "--labels", "species", "--holdout", 0.2)
    train, test = read_samples(tmp_path / "out" / "train"), read_samples(tmp_path / "out" / "test")
    assert sorted([*train, *test]) == values
    assert [label for _, label in test.values()].count(0) == [label for _, label in test.values()].count(1) == 4
    first = list(train.values())[:16]
    assert {label for _, label in first} == {0, 1}
    assert load_index(LocalStore(tmp_path / "out" / "train")).classes == ("a", "b")
    prepare(capsys, tmp_path / "all", path, "--labels", "species", "--holdout", 0)
    assert len(read_samples(tmp_path / "all" / "train")) == 40


def test_splits_can_be_folders_and_the_picture_a_plain_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, value in (("train", 10), ("test", 20)):
        (tmp_path / "default" / split).mkdir(parents=True)
        table = pa.table({"jpg": pa.array([encode(value, kind="PNG")], pa.binary()), "n": ["x"]})
        pq.write_table(table, tmp_path / "default" / split / "0000.parquet")
    err = prepare(capsys, tmp_path / "out", tmp_path, "--grey")
    assert "No column is taken as label; --labels can name others: n." in err
    assert load_index(LocalStore(tmp_path / "out" / "train")).shape == (1, 16, 16)
    assert (
        load_arrays(LocalStore(tmp_path / "out" / "test"), load_index(LocalStore(tmp_path / "out" / "test")))[1] is None
    )


def test_several_columns_are_attributes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"Smiling": [True, False], "Male": [0, 1], "age": [0, 2]}
    path = write_parquet(tmp_path / "train-00000-of-00001.parquet", [encode(1), encode(2)], columns=columns)
    prepare(capsys, tmp_path / "out", path, "--labels", "Smiling,Male", "--holdout", 0)
    assert load_index(LocalStore(tmp_path / "out" / "train")).attributes == ("Smiling", "Male")
    assert {value: label for value, (_, label) in read_samples(tmp_path / "out" / "train").items()} == {
        1: [1.0, 0.0],
        2: [0.0, 1.0],
    }
    message = refused(capsys, "parquet", tmp_path / "x", "--from", path, "--labels", "Male,age")
    assert "'age' has the value 2, but several --labels are attributes, each 0 or 1" in message


def test_whole_floats_are_class_numbers_and_fractions_are_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs store class numbers as 3.0 where one is missing; a score is no class, whatever it is called."""
    whole = write_parquet(tmp_path / "whole.parquet", [encode(1), encode(2)], columns={"label": [4.0, 2.0]})
    prepare(capsys, tmp_path / "out", whole, "--holdout", 0)
    assert load_index(LocalStore(tmp_path / "out" / "train")).classes == ("2", "4")
    assert {value: label for value, (_, label) in read_samples(tmp_path / "out" / "train").items()} == {1: 1, 2: 0}
    scores = write_parquet(tmp_path / "scores.parquet", [encode(1), encode(2)], columns={"label": [0.5, 2.0]})
    err = prepare(capsys, tmp_path / "scored", scores, "--holdout", 0)
    assert "Column 'label' holds fractions, which are no class. No column is taken as label; there is no other" in err
    assert load_index(LocalStore(tmp_path / "scored" / "train")).classes == ()
    message = refused(capsys, "parquet", tmp_path / "x", "--from", scores, "--labels", "label")
    assert "Column 'label' has the number 0.5, which is no class" in message


def test_fine_labels_are_taken_of_two_and_the_other_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_parquet(
        tmp_path / "train.parquet",
        [encode(1), encode(2)],
        columns={"coarse_label": [0, 0], "fine_label": [1, 0]},
        classes={"coarse_label": ("pet",), "fine_label": ("cat", "dog")},
    )
    err = prepare(capsys, tmp_path / "out", path, "--holdout", 0)
    assert "column 'fine_label'; --labels can name others: coarse_label." in err
    assert load_index(LocalStore(tmp_path / "out" / "train")).classes == ("cat", "dog")


def test_a_test_split_without_labels_is_written_without_and_a_single_missing_one_is_a_bad_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [encode(1), encode(2), None, b"no picture"]
    label = {"label": [0, -1, 1, 1]}
    write_parquet(tmp_path / "train-00000-of-00001.parquet", pictures, columns=label, classes={"label": ("a", "b")})
    write_parquet(
        tmp_path / "test-00000-of-00001.parquet", [encode(3)], columns={"label": [-1]}, classes={"label": ("a", "b")}
    )
    message = refused(capsys, "parquet", tmp_path / "out", "--from", tmp_path, "--jobs", 1)
    assert "train-00000-of-00001.parquet:" in message
    assert "--skip-bad" in message
    prepare(capsys, tmp_path / "out2", tmp_path, "--skip-bad")
    assert read_samples(tmp_path / "out2" / "train") == {1: ("train-00000-of-00001.parquet:0", 0)}
    assert read_samples(tmp_path / "out2" / "test") == {3: ("test-00000-of-00001.parquet:0", None)}
    index = load_index(LocalStore(tmp_path / "out2" / "train"))
    assert sorted(index.extra["skipped_samples"]) == [
        "train-00000-of-00001.parquet:1: it has no label",
        "train-00000-of-00001.parquet:2: its bytes are not in the file, only a path at most",
        "train-00000-of-00001.parquet:3: it cannot be decoded as PNG, JPEG, BMP, WEBP, GIF, TIFF, PPM or AVIF, or is "
        "cut short",
    ]


def test_only_some_classes_are_written_where_it_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_parquet(
        tmp_path / "train.parquet",
        [encode(value) for value in range(6)],
        columns={"label": [0, 1, 2] * 2},
        classes={"label": NAMES},
    )
    prepare(capsys, tmp_path / "out", path, "--only", "dog", "--holdout", 0)
    assert sorted(read_samples(tmp_path / "out" / "train")) == [1, 4]


def test_what_cannot_be_meant_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"

    def refusal(*options: object) -> str:
        return refused(capsys, "parquet", tmp_path / "out", "--from", data, "--jobs", 1, *options)

    assert "no .parquet files" in refusal()
    path = write_parquet(data / "train.parquet", [encode(1)] * 4)
    assert "'imgae', which does not exist; did you mean image" in refusal("--image", "imgae")
    assert "'label', which does not exist" in refusal("--labels", "label")
    assert "--labels names the column 'image', which can be no label" in refusal("--labels", "image")
    assert "--holdout is 1" in refusal("--holdout", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert "train.parquet cannot be read as Parquet" in refusal()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal()
    path.write_bytes(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    assert "set TMPDIR" in refusal()
    monkeypatch.undo()
    write_parquet(data / "test-00000-of-00001.parquet", [encode(1)])
    assert "--holdout is for data without splits" in refusal("--holdout", 0.2)
    write_parquet(data / "other.parquet", [encode(1)])
    assert "other.parquet does not say of which split it is" in refusal()
    (data / "other.parquet").unlink()
    write_parquet(data / "test-00000-of-00001.parquet", [encode(1)], image="picture")
    assert "test-00000-of-00001.parquet has no column 'image'" in refusal()
    (data / "small").mkdir()
    write_parquet(data / "small" / "train.parquet", [encode(1)])
    assert "several folders (., small)" in refusal()
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), data / "two.parquet")
    pq.write_table(pa.table({"a": [1]}), data / "none.parquet")
    message = refused(capsys, "parquet", tmp_path / "out", "--from", data / "two.parquet")
    assert "Several columns hold pictures (a, b): choose one with --image" in message
    assert "No column holds encoded pictures" in refused(
        capsys, "parquet", tmp_path / "out", "--from", data / "none.parquet"
    )


def test_a_row_group_is_copied_in_batches_and_each_picture_once(tmp_path: Path) -> None:
    """However many shards there are, the pictures of a file are read in one pass."""
    path = write_parquet(tmp_path / "train.parquet", [encode(value) for value in range(50)], row_group_size=50)
    (split,) = parquet.parquet_splits(path, size=8, holdout=0)
    first, second = split.select_samples(np.array([40, 3])), split.select_samples(np.array([7]))
    assert [first.read_sample(n).x[0, 0, 0] for n in range(2)] == [40, 3]
    path.unlink()
    assert second.read_sample(0).x[0, 0, 0] == 7
