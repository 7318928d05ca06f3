"""CIFAR-10 in either published form: the same shards, the paper's splits, and nothing run out of a pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.cifar10 import CLASSES, cifar10_splits
from ali_dist.data.sources.safe_pickle import read_pickled
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, refused, run
from tests.helpers.originals import BATCHES, pack_archive, pickle_as_python2, write_cifar_binary, write_cifar_python


def sorted_pairs(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))


def test_splits_are_the_files_with_the_last_tenth_of_training_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """45,000 / 5,000 / 10,000 of the real files; pixels and labels exactly those of the records."""
    batches = write_cifar_binary(tmp_path / "cifar-10-batches-bin", per_batch=20)
    code, out, _ = run(capsys, "cifar10", tmp_path / "out", "--from", tmp_path, "--verify", "--jobs", 1)
    assert code == 0
    assert "valid: 10 samples in 1 shard checked, 0 problems" in out
    x = np.concatenate([batches[name][0] for name in BATCHES[:5]])
    y = np.concatenate([batches[name][1] for name in BATCHES[:5]])
    expected = {"train": (x[:90], y[:90]), "valid": (x[90:], y[90:]), "test": batches["test_batch"]}
    for split, (images, labels) in expected.items():
        store = LocalStore(tmp_path / "out" / split)
        index = load_index(store)
        assert (index.shape, index.classes) == ((3, 32, 32), CLASSES)
        loaded_x, loaded_y = load_arrays(store, index)
        assert loaded_y is not None
        assert sorted_pairs(loaded_x.numpy(), loaded_y.numpy()) == sorted_pairs(images, labels)


def test_classes_are_mixed_even_where_the_files_are_sorted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Streaming shuffles within a window only, so a shard of one class would be a batch of one class."""
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar_binary(folder, per_batch=40)
    for n in range(1, 6):
        data = np.frombuffer((folder / f"data_batch_{n}.bin").read_bytes(), np.uint8).reshape(40, -1).copy()
        data[:, 0] = n
        (folder / f"data_batch_{n}.bin").write_bytes(data.tobytes())
    run(capsys, "cifar10", tmp_path / "out", "--from", folder, "--splits", "train", "--jobs", 1)
    store = LocalStore(tmp_path / "out" / "train")
    _, y = load_arrays(store, load_index(store))
    assert y is not None
    for start in range(0, 180, 45):
        assert len(set(y[start : start + 45].tolist())) == 5


def test_every_published_form_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary, python = tmp_path / "a" / "cifar-10-batches-bin", tmp_path / "b" / "cifar-10-batches-py"
    write_cifar_binary(binary)
    write_cifar_python(python)
    all_published = [binary, binary.parent, python, python.parent]
    all_published += [
        pack_archive(tmp_path / "cifar-10-binary.tar.gz", binary),
        pack_archive(tmp_path / "any.tar.gz", python),
        tmp_path,
    ]
    for n, published in enumerate(all_published):
        assert run(capsys, "cifar10", tmp_path / str(n), "--from", published, "--jobs", 1)[0] == 0
    first = content(tmp_path / "0")
    assert all(content(tmp_path / str(n)) == first for n in range(1, len(all_published)))


def test_the_share_held_out_can_be_chosen_and_be_nothing(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path / "x", per_batch=20)
    assert {split.name: split.num_samples for split in cifar10_splits(tmp_path / "x", holdout=0.25)} == {
        "train": 75,
        "valid": 25,
        "test": 20,
    }
    assert {split.name: split.num_samples for split in cifar10_splits(tmp_path / "x", holdout=0)} == {
        "train": 100,
        "test": 20,
    }


def test_a_missing_cut_or_wrong_file_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    write_cifar_binary(folder)
    whole = (folder / "data_batch_3.bin").read_bytes()
    for data, words in [
        (whole[:-1], "not whole records of 3073"),
        (b"", "has 0 bytes"),
        (b"\x0b" + whole[1:], "class numbers are not from 0 to 9"),
    ]:
        (folder / "data_batch_3.bin").write_bytes(data)
        message = refused(capsys, "cifar10", tmp_path / "out", "--from", folder)
        assert "data_batch_3.bin" in message
        assert words in message
    (folder / "data_batch_3.bin").unlink()
    assert "no data_batch_3.bin" in refused(capsys, "cifar10", tmp_path / "out", "--from", folder)
    assert run(capsys, "cifar10", tmp_path / "out", "--from", folder, "--splits", "test", "--jobs", 1)[0] == 0
    assert "There is no" in refused(capsys, "cifar10", tmp_path / "out", "--from", tmp_path / "nothing")
    assert "needs --from PATH" in refused(capsys, "cifar10", tmp_path / "out")
    torn = pack_archive(tmp_path / "torn.tar.gz", folder)
    torn.write_bytes(torn.read_bytes()[:-2000])
    assert "cannot be read as an archive" in refused(capsys, "cifar10", tmp_path / "out", "--from", torn)
    assert not (tmp_path / "out" / "train").exists()


class _Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = tmp_path / "cifar-10-batches-py", tmp_path / "run"
    write_cifar_python(folder)
    for protocol in (0, 2, 4):
        data = pickle.dumps({"data": _Evil(str(marker)), "labels": []}, protocol=protocol)
        (folder / "data_batch_1").write_bytes(data)
        message = refused(capsys, "cifar10", tmp_path / "out", "--from", folder)
        assert "data_batch_1" in message
        assert "mkdir" in message
    pickle.loads(data)
    assert marker.exists(), "the pickle does what it is meant to where it is trusted"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}",
        b"garbage",
        b"\x80\x02cbuiltins\neval\nU\x031+1\x85R.",
        b"\x80\x02cnumpy\nndarray\n}U\x05valueK\x01sb.",  # sets an attribute of what stands for the class
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
        pickle_as_python2([1, 2]),
        pickle_as_python2({b"data": np.zeros((2, 3), dtype="<i4")}),
    ],
)
def test_other_and_damaged_pickles_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="it"):
        read_pickled(data)


def test_pickled_arrays_lists_and_text_come_back_as_they_were() -> None:
    x = np.arange(300, dtype=np.uint8).reshape(3, 100)
    content_read = read_pickled(pickle_as_python2({b"data": x, b"labels": [3, -1], b"name": b"n" * 300}))
    assert np.array_equal(content_read["data"], x)
    assert (content_read["labels"], content_read["name"]) == ([3, -1], b"n" * 300)
