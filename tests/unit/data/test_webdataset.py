"""Tars of other programs are indexed in place, or refused with the name of the tar and the sample."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ali_dist.data.shards.codec import encode_sample, read_npy
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import make_labelled_arrays
from tests.helpers.commands import content, refused, run


def encode_png(x: np.ndarray) -> bytes:
    return encode_sample(x, "png")


def write_foreign_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Write a tar as any tool might: in GNU format, with folders, times and owners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "somebody"
            tar.addfile(info, io.BytesIO(data))


def test_tars_written_by_webdataset_are_indexed_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import webdataset

    x, y = make_labelled_arrays(50)
    for split, rows in (("train", range(40)), ("test", range(40, 50))):
        (tmp_path / split).mkdir()
        with webdataset.ShardWriter(str(tmp_path / split / "part-%03d.tar"), maxcount=15, verbose=0) as writer:
            for n in rows:
                writer.write(
                    {"__key__": f"pic{n:03d}", "png": encode_png(x[n]), "cls": str(y[n]).encode(), "txt": b"words"}
                )
    tars = {name: data for name, data in content(tmp_path).items() if name.endswith(".tar")}
    code, out, _ = run(capsys, "webdataset", tmp_path, "--verify")
    assert code == 0
    assert "train: 40 samples in 3 shards, written" in out
    assert {name: data for name, data in content(tmp_path).items() if name.endswith(".tar")} == tars
    store = LocalStore(tmp_path / "train")
    loaded_x, loaded_y = load_arrays(store, load_index(store))
    assert loaded_y is not None
    assert np.array_equal(loaded_x.numpy(), x[:40])
    assert loaded_y.tolist() == y[:40].tolist()
    assert "already there" in run(capsys, "webdataset", tmp_path)[1]
    os.remove(tmp_path / "train" / "part-001.tar")
    assert "25 samples in 2 shards, written" in run(capsys, "webdataset", tmp_path / "train")[1]


def test_attributes_grey_images_and_long_names_are_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, _ = make_labelled_arrays(3)
    gray = np.repeat(x[2, :1], 3, axis=0)
    long = "images/" + "n" * 150
    write_foreign_tar(
        tmp_path / "faces.tar",
        [
            (f"{long}.PNG", encode_png(x[0])),
            (f"{long}.json", json.dumps({"Smiling": True, "file": "a.png", "Male": -1}).encode()),
            ("images/b.json", b'{"Male": 0.5, "Smiling": false, "extra": 1}'),
            ("images/b.png", encode_png(x[1])),
            ("images/c.png", encode_png(gray[:1])),
            ("images/c.json", b'{"Smiling": 1, "Male": 1}'),
            ("README", b"not a sample"),
        ],
    )
    assert run(capsys, "webdataset", tmp_path, "--verify")[0] == 0
    store = LocalStore(tmp_path)
    index = load_index(store)
    assert index.attributes == ("Smiling", "Male")
    loaded_x, loaded_y = load_arrays(store, index)
    assert loaded_y is not None
    assert np.array_equal(loaded_x.numpy(), np.stack([x[0], x[1], gray]))
    assert loaded_y.tolist() == [[1.0, -1.0], [0.0, 0.5], [1.0, 1.0]]


def encode_npy(x: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, x, version=version)
    return buffer.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_are_images_however_their_axes_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: tuple[int, int]
) -> None:
    x, _ = make_labelled_arrays(4, shape=(3, 7, 9))
    gray, last = x[3, 0], np.ascontiguousarray(x[1].transpose(1, 2, 0))
    members: list[tuple[str, bytes]] = []
    for number, array in enumerate([x[0], last, gray, gray[None], gray[..., None]]):
        members += [(f"{number}.npy", encode_npy(array, version)), (f"{number}.cls", b"1")]
    write_foreign_tar(tmp_path / "0.tar", members)
    assert run(capsys, "webdataset", tmp_path, "--verify")[0] == 0
    store = LocalStore(tmp_path)
    index = load_index(store)
    assert (index.encoding, index.shape) == ("npy", (3, 7, 9))
    loaded, _ = load_arrays(store, index)
    assert np.array_equal(loaded.numpy(), np.stack([x[0], x[1], *[np.repeat(gray[None], 3, axis=0)] * 3]))


def test_an_array_beside_an_image_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, _ = make_labelled_arrays(1)
    write_foreign_tar(
        tmp_path / "0.tar", [("a.npy", encode_npy(np.zeros(512, dtype=np.float32))), ("a.png", encode_png(x[0]))]
    )
    assert run(capsys, "webdataset", tmp_path)[0] == 0
    assert load_index(LocalStore(tmp_path)).encoding == "png"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode_npy(np.zeros((4, 5), dtype=np.float32)), "not an .npy file with uint8"),
        (encode_npy(np.asfortranarray(np.zeros((4, 5), dtype=np.uint8))), "in C order"),
        (encode_npy(np.zeros((3, 5, 3), dtype=np.uint8)), r"its shape is \(3, 5, 3\)"),
        (encode_npy(np.zeros((4, 5, 4), dtype=np.uint8)), r"its shape is \(4, 5, 4\)"),
        (encode_npy(np.zeros((2, 3, 4, 5), dtype=np.uint8)), "its shape is"),
        (encode_npy(np.zeros((4, 5), dtype=np.uint8))[:-1], "holds 19 bytes"),
        (b"", "not an .npy file"),
    ],
)
def test_arrays_that_are_no_images_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_npy(data)


def test_a_pickled_array_is_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    write_foreign_tar(tmp_path / "0.tar", [("a.npy", buffer.getvalue())])
    assert "'a' of 0.tar" in refused(capsys, "webdataset", tmp_path)


def test_tars_that_cannot_be_used_are_refused_with_tar_and_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, _ = make_labelled_arrays(2)
    good = [("a.png", encode_png(x[0])), ("a.cls", b"1")]
    other_size = encode_png(make_labelled_arrays(1, shape=(3, 6, 6))[0][0])
    whole = encode_png(x[1])
    cases: dict[str, tuple[list[tuple[str, bytes]], str]] = {
        "size": ([("b.png", other_size), ("b.cls", b"1")], r"'b' of 0.tar .* shape is \(3, 6, 6\)"),
        "torn": ([("b.png", whole[: len(whole) // 2]), ("b.cls", b"1")], "'b' of 0.tar .* cut short"),
        "kind": ([("b.jpg", encode_png(x[1])), ("b.cls", b"1")], "'b' of 0.tar .* it is jpg"),
        "none": ([("b.cls", b"1")], "'b' of 0.tar .* 0 images"),
        "label": ([("b.png", encode_png(x[1])), ("b.cls", b"cat")], "'b' of 0.tar .* cls is 'cat'"),
        "some": ([("b.png", encode_png(x[1]))], "0.tar .* different kinds of label"),
        "twice": ([("b.png", encode_png(x[1])), ("b.png", encode_png(x[1]))], "0.tar .* b.png twice"),
    }
    for name, (members, words) in cases.items():
        write_foreign_tar(tmp_path / name / "0.tar", good + members)
        assert re.search(words, refused(capsys, "webdataset", tmp_path / name)), name
        assert not (tmp_path / name / "index.json").exists()
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "0.tar").write_bytes(b"PK\x03\x04" * 300)
    assert "not a whole, uncompressed tar" in refused(capsys, "webdataset", tmp_path / "zip")
