"""Tars, sidecars and indexes that are damaged or made up: one sentence each, and no memory or time without bounds."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.shards.index import Index, load_index, load_sidecar
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.tar import scan_tar
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import make_labelled_arrays, write_arrays
from tests.helpers.commands import refused, run
from tests.helpers.tars import encode_image, make_members, write_foreign_tar

# ---- Tars ----------------------------------------------------------------------------------------------------------


def make_tar(*headers: bytes) -> bytes:
    return b"".join(headers) + bytes(10_240)


def make_header(name: str = "a.png", *, kind: bytes = b"0", size: bytes = b"00000000000\0") -> bytes:
    """A header block with any size field, and a checksum that is right."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xf0\x00"  # base 256: -4096
HUGE = b"\x80" + b"\x7f" + bytes(10)  # base 256: about 10^26
BILLION = b"%011o\0" % 10**9


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [NEGATIVE, HUGE, BILLION, b"\xff" * 12, b"not a numbe\0"])
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"S", b"7"])  # of folders and links, sizes mean nothing
@pytest.mark.parametrize("is_first", [True, False])
def test_a_tar_with_an_impossible_size_is_refused(size: bytes, kind: bytes, is_first: bool) -> None:
    """tarfile before Python 3.11.14 goes back and round for ever on a negative size."""
    if kind == b"S" and size == b"\xff" * 12:
        return  # -1 byte of a sparse file is in 0 blocks, and the file is left out
    good = () if is_first else (make_header(),)
    with pytest.raises(InputError, match="shard 0 is (not a whole|cut short)"):
        scan_tar(make_tar(*good, make_header(kind=kind, size=size)), "shard 0")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_tar_of_thousands_of_nested_headers_is_refused(kind: bytes) -> None:
    with pytest.raises(InputError, match="shard 0 is (not a whole|cut short)"):
        scan_tar(make_tar(*[make_header(kind=kind)] * 3000), "shard 0")


@pytest.mark.timeout(60)
def test_a_tar_with_any_byte_of_its_headers_changed_is_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "n" * 200 + ".png", "b.cls"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    data = buffer.getvalue()
    for _ in range(1500):
        changed = bytearray(data)
        start = int(rng.integers(0, 9)) * 512
        changed[start + 124 : start + 136] = rng.integers(0, 256, 12, dtype=np.uint8).tobytes()
        changed[start + 156] = int(rng.choice(list(b"0157gxLKS")))
        changed[start + 148 : start + 156] = b" " * 8
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
        try:
            scan_tar(bytes(changed), "shard 0")
        except InputError as error:
            assert str(error).startswith("shard 0 ")  # noqa: PT017


def test_a_compressed_tar_is_refused_with_the_command_that_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "0.tar", make_members(["1"]), "w:gz")
    assert "is compressed" in (message := refused(capsys, "webdataset", tmp_path))
    assert "webdataset-import" in message


def test_an_image_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = make_members([None, None])
    write_foreign_tar(tmp_path / "0.tar", [*members, ("large.png", encode_image(0, size=(7000, 7000)))])
    tracemalloc.start()
    message = refused(capsys, "webdataset", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "'large' of 0.tar" in message
    assert "it has 7000x7000 pixels, but must have 5x4" in message
    assert peak < 20_000_000


# ---- Sidecars ------------------------------------------------------------------------------------------------------


def prepared(folder: Path) -> tuple[LocalStore, Index, dict[str, np.ndarray]]:
    store, index = write_arrays(folder, *make_labelled_arrays(6))
    with np.load(io.BytesIO(store.get("00000.npz"))) as file:
        return store, index, {name: file[name] for name in file.files}


def put_arrays(store: LocalStore, index: Index, arrays: dict[str, Any]) -> Index:
    """Store a sidecar of these arrays, and return an index that says so."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    store.put("00000.npz", buffer.getvalue())
    parsed: Any = {name: np.asarray(array) for name, array in arrays.items()}
    sidecar = Sidecar(**parsed)
    shard = dataclasses.replace(index.shards[0], sidecar_sha256=sidecar.content_sha256())
    return dataclasses.replace(index, shards=(shard,))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets", lambda a: -a),
        ("offsets", lambda a: a[::-1].copy()),
        ("offsets", lambda a: a.astype(np.float64)),
        ("offsets", lambda a: np.full(6, np.nan)),
        ("offsets", lambda a: a.astype(np.int32)),
        ("offsets", lambda a: np.int64(5)),
        ("offsets", lambda a: a[:3]),
        ("offsets", lambda a: a[:, None]),
        ("offsets", lambda a: a + 10**9),
        ("offsets", lambda a: np.full(6, 2**63 - 1)),
        ("sizes", lambda a: -a),
        ("sizes", lambda a: a[:5]),
        ("sizes", lambda a: a + 10**9),
        ("sizes", lambda a: np.full(6, 2**63 - 1)),
        ("crc32", lambda a: a.astype(np.int32)),
        ("crc32", lambda a: a[:5]),
        ("labels", lambda a: a.astype(np.float32)),
        ("labels", lambda a: np.full((6, 2), np.nan, dtype=np.float32)),
        ("labels", lambda a: np.ones((6, 2), dtype=np.float32)),
        ("labels", lambda a: a[:5]),
        ("labels", lambda a: np.int64(1)),
    ],
)
def test_a_sidecar_whose_numbers_make_no_sense_is_refused(tmp_path: Path, name: str, change: Any) -> None:
    store, index, arrays = prepared(tmp_path)
    index = put_arrays(store, index, {**arrays, name: change(arrays[name])})
    with pytest.raises(InputError, match=r"The index does not match its shards .*00000.npz"):
        load_sidecar(store, index, 0)


def test_attributes_that_are_not_finite_are_refused_where_they_are_read(tmp_path: Path) -> None:
    x, _ = make_labelled_arrays(3)
    store, index = write_arrays(tmp_path, x, [[1.0], [float("nan")], [0.0]], attributes=("a",))
    with pytest.raises(InputError, match="the labels of its sample 1 are not finite"):
        load_sidecar(store, index, 0)


def test_a_sidecar_that_unpacks_to_more_than_its_samples_need_is_refused(tmp_path: Path) -> None:
    store, index, arrays = prepared(tmp_path)
    buffer = io.BytesIO()
    large: Any = {**arrays, "labels": np.zeros(3_000_000, dtype=np.int64)}
    np.savez_compressed(buffer, **large)
    assert len(buffer.getvalue()) < 100_000
    store.put("00000.npz", buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(InputError, match=r"'labels.npy' in it unpacks to 24000128 bytes, but at most \d+ are due"):
        load_sidecar(store, index, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("field", ["encrypted", "unknown method", "lying size"])
def test_a_zip_that_cannot_be_unpacked_is_no_sidecar(tmp_path: Path, field: str) -> None:
    store, index, _ = prepared(tmp_path)
    data = bytearray(store.get("00000.npz"))
    for signature, flags, method, size in ((b"PK\x03\x04", 6, 8, 22), (b"PK\x01\x02", 8, 10, 24)):
        start = data.index(signature)
        if field == "encrypted":
            data[start + flags] |= 1
        elif field == "unknown method":
            struct.pack_into("<H", data, start + method, 77)
        else:
            struct.pack_into("<I", data, start + size, 5)
    store.put("00000.npz", bytes(data))
    with pytest.raises(InputError, match=r"00000.npz cannot be read \("):
        load_sidecar(store, index, 0)


def test_origins_that_do_not_fit_are_refused() -> None:
    whole = Sidecar(np.array([512]), np.array([3]), np.zeros(1, dtype=np.uint32), None, ("näme",))
    assert Sidecar.from_bytes(whole.to_bytes()).origins == ("näme",)
    for ends in ([4], [-1], [6], [3, 5], []):
        buffer = io.BytesIO()
        with np.load(io.BytesIO(whole.to_bytes())) as file:
            arrays = {name: file[name] for name in file.files}
        np.savez(buffer, **{**arrays, "origin_ends": np.array(ends, dtype=np.int64)})
        with pytest.raises(ValueError, match="its origins do not fit"):
            Sidecar.from_bytes(buffer.getvalue())


def test_any_byte_of_a_sidecar_may_be_damaged(tmp_path: Path) -> None:
    store, index, _ = prepared(tmp_path)
    data = store.get("00000.npz")
    for position in range(0, len(data), 5):
        changed = bytearray(data)
        changed[position] ^= 0x55
        store.put("00000.npz", bytes(changed))
        try:
            load_sidecar(store, index, 0)  # some bytes of a zip mean nothing
        except InputError as error:
            assert "00000.npz" in str(error)  # noqa: PT017


def test_a_zip_with_anything_else_in_it_is_no_sidecar() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "no array")
    with pytest.raises(ValueError, match="no known form|not a sidecar"):
        Sidecar.from_bytes(buffer.getvalue())


# ---- Indexes -------------------------------------------------------------------------------------------------------


def many_samples(content: dict[str, Any]) -> None:
    content["shards"][0]["samples"] = 10**15


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.update(shape=[]), "its shape"),
        (lambda index: index.update(shape=[True, 8, 8]), "its shape"),
        (lambda index: index.update(shape=[10**30, 8, 8]), "its shape"),
        (lambda index: index.update(shape=[3.0, 4, 5]), "its shape"),
        (lambda index: index.update(shape="abc"), "its shape"),
        (lambda index: index.update(shape=[60], encoding="png"), "its shape"),
        (lambda index: index.update(shape=None), "not a complete index"),
        (lambda index: index.update(encoding=["raw"]), "its encoding"),
        (lambda index: index.update(classes=[1, 2]), "its classes"),
        (lambda index: index.update(classes=3), "not a complete index"),
        (lambda index: index.update(mean=[float("nan")] * 3), "its mean"),
        (lambda index: index.update(std=["1"] * 3), "its std"),
        (lambda index: index.update(pixel_mean=[0.5]), "its pixel_mean"),
        (lambda index: index.update(extra=[]), "its extra"),
        (lambda index: index.update(extra={"source": "digits"}), "its extra"),
        (lambda index: index.update(extra={"tars": 5}), "its extra"),
        (lambda index: index.update(extra={"background": None}), "its extra"),
        (lambda index: index.update(extra={"mixture": "grid"}), "its extra"),
        (many_samples, "its shards"),
        (lambda index: index["shards"][0].update(samples=True), "not a complete index"),
        (lambda index: index["shards"][0].update(samples=1.5), "not a complete index"),
        (lambda index: index["shards"][0].update(samples=-1), "its shards"),
        (lambda index: index["shards"][0].update(bytes=2**70, samples=2**60), "its shards"),
        (lambda index: index["shards"][0].update(key=5), "its shards"),
        (lambda index: index["shards"][0].update(sha256="x"), "its shards"),
        (lambda index: index.update(shards={"a": 1}), "not a complete index"),
    ],
)
def test_an_index_that_is_consistent_but_senseless_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(6))
    content = json.loads(index.to_json())
    change(content)
    store.put("index.json", json.dumps(content).encode())
    with pytest.raises(InputError, match=words):
        load_index(store)


@pytest.mark.parametrize("data", [b"[" * 50_000, b'{"a":' * 50_000, b"9" * 10_000, b"\x00\xd8"])
def test_json_that_cannot_be_parsed_is_no_index(tmp_path: Path, data: bytes) -> None:
    LocalStore(tmp_path).put("index.json", data)
    with pytest.raises(InputError, match="is not an index"):
        load_index(LocalStore(tmp_path))


def test_an_index_of_a_tar_with_more_samples_than_it_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "0.tar", make_members(["0", "1"]))
    assert run(capsys, "webdataset", tmp_path)[0] == 0
    store = LocalStore(tmp_path)
    index = load_index(store)
    lying = dataclasses.replace(index, shards=(dataclasses.replace(index.shards[0], samples=3),))
    with pytest.raises(InputError, match="lists 2 samples, the index 3"):
        load_arrays(store, lying)
