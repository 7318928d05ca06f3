"""Shards, their index and sidecars are readable by webdataset, reproducible, and never silently wrong."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.shards.codec import read_image
from ali_dist.data.shards.index import Index, check_listing, find_split, load_index, load_sidecar
from ali_dist.data.shards.labels import encode_label
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.sidecar import Sidecar
from ali_dist.data.shards.tar import scan_tar
from ali_dist.data.shards.verify import verify_split
from ali_dist.data.shards.writer import SampleFormat
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import SHAPE, damage_sample, make_labelled_arrays, write_arrays, write_shards

FORMAT = SampleFormat(encoding="raw", shape=SHAPE, dtype="uint8")


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_stock_webdataset_reads_back_every_sample_and_label(tmp_path: Path, encoding: Any) -> None:
    import webdataset

    x, y = make_labelled_arrays(70)
    store, index = write_arrays(tmp_path, x, y, encoding=encoding)
    assert len(index.shards) > 1
    paths = [str(tmp_path / shard.key) for shard in index.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [int(sample["cls"]) for sample in samples] == y.tolist()
    assert len({sample["__key__"] for sample in samples}) == 70
    for sample, image in zip(samples, x, strict=True):
        payload = sample[encoding]
        decoded = np.frombuffer(payload, np.uint8).reshape(SHAPE) if encoding == "raw" else read_image(payload)[0]
        assert np.array_equal(decoded, image)


def test_tars_are_those_that_webdatasets_own_writer_writes(tmp_path: Path) -> None:
    import webdataset

    x, y = make_labelled_arrays(20)
    cases: list[tuple[Any, dict[str, Any]]] = [(y, {}), (np.eye(2, dtype=np.float32)[y % 2], {"attributes": "ab"})]
    for labels, options in cases:
        store, _ = write_arrays(tmp_path / str(len(options)), x, labels, per_shard=20, **options)
        buffer = io.BytesIO()
        writer = webdataset.TarWriter(buffer, user="", group="", mtime=0, encoder=False)
        for n, (image, label) in enumerate(zip(x, labels, strict=True)):
            fields = encode_label(label if options else int(label), options.get("attributes", ""))
            writer.write({"__key__": f"00000-{n:07d}", "raw": image.tobytes(), **fields})
        writer.close()
        assert store.get("00000.tar") == buffer.getvalue()


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_split_read_whole_equals_what_was_written(tmp_path: Path, encoding: Any) -> None:
    x, y = make_labelled_arrays(100)
    store, index = write_arrays(tmp_path, x, y, encoding=encoding)
    loaded_x, loaded_y = load_arrays(store, load_index(store))
    assert loaded_y is not None
    assert np.array_equal(loaded_x.numpy(), x)
    assert loaded_y.tolist() == y.tolist()


def test_float_vectors_and_attributes_survive_and_no_labels_stay_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 2)).astype(np.float32), rng.standard_normal((40, 3)).astype(np.float32)
    store, index = write_arrays(tmp_path / "a", x, y, attributes=("Smiling", "Male", "Young"))
    loaded_x, loaded_y = load_arrays(store, load_index(store))
    assert loaded_y is not None
    assert np.array_equal(loaded_x.numpy(), x)
    assert np.array_equal(loaded_y.numpy(), y)
    assert load_arrays(*write_arrays(tmp_path / "b", x, None))[1] is None


def test_statistics_are_those_of_the_pixels_in_unit_range(tmp_path: Path) -> None:
    x, y = make_labelled_arrays(300)
    index = write_arrays(tmp_path, x, y)[1]
    unit = x / 255
    assert np.allclose(index.mean, unit.mean(axis=(0, 2, 3)), atol=1e-6)
    assert np.allclose(index.std, unit.std(axis=(0, 2, 3)), atol=1e-6)
    assert np.allclose(index.pixel_mean, unit.mean(axis=0).ravel(), atol=1e-6)


def test_the_same_samples_give_the_same_bytes_and_any_other_a_new_fingerprint(tmp_path: Path) -> None:
    x, y = make_labelled_arrays(60)
    first, again = write_arrays(tmp_path / "a", x, y)[1], write_arrays(tmp_path / "b", x, y)[1]
    assert first == again
    assert first.fingerprint == again.fingerprint
    other_x, other_y = x.copy(), y.copy()
    other_x[30, 0, 0, 0] ^= 1
    other_y[30] = (other_y[30] + 1) % 10
    prints = {
        write_arrays(tmp_path / str(n), *pair)[1].fingerprint for n, pair in enumerate([(other_x, y), (x, other_y)])
    }
    assert len(prints | {first.fingerprint}) == 3


def test_writing_again_leaves_equal_shards_untouched(tmp_path: Path) -> None:
    """Otherwise a reader that has them open would see them change."""
    x, y = make_labelled_arrays(60)
    store, index = write_arrays(tmp_path, x, y)
    before = check_listing(store, index)
    write_arrays(tmp_path, x, y)
    assert check_listing(store, index) == before


def test_an_interrupted_write_leaves_no_index(tmp_path: Path) -> None:
    x, y = make_labelled_arrays(100)

    def interrupted_samples() -> Any:
        yield from map(PreparedSample, x[:80], y[:80].tolist())
        raise KeyboardInterrupt

    store = LocalStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_shards(store, interrupted_samples(), FORMAT)
    assert store.stat("00000.tar") is not None
    with pytest.raises(InputError, match="There is no index.json"):
        load_index(store)


def test_an_index_without_shards_is_refused() -> None:
    index = Index(
        encoding="raw",
        dtype="uint8",
        shape=(1, 1, 2),
        shards=(),
        mean=(0.5,),
        std=(0.1,),
        pixel_mean=(0.25, 0.75),
        attributes=("a",),
        extra={"k": [1]},
    )
    with pytest.raises(InputError, match="its shards does not fit"):
        Index.from_json(index.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("shards"), "no 'shards'"),
        (lambda index: index.update(format_version=99), "format version 99"),
        (lambda index: index.update(shape=[3, 4]), "its shape"),
        (lambda index: index.update(encoding="webp"), "its encoding"),
        (lambda index: index.update(mean=[0.1]), "its mean"),
        (lambda index: index["shards"][0].update(samples="many"), "not a complete index"),
        (lambda index: index["shards"].append(index["shards"][0]), "its shards"),
        (lambda index: index["shards"][0].update(etag="x"), "etag"),
    ],
)
def test_an_index_that_is_not_one_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(40))
    assert load_index(store) == index
    content = json.loads(index.to_json())
    change(content)
    store.put("index.json", json.dumps(content).encode())
    with pytest.raises(InputError, match=message) as caught:
        load_index(store)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"null"])
def test_an_index_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    LocalStore(tmp_path).put("index.json", text)
    with pytest.raises(InputError, match="is not an index"):
        load_index(LocalStore(tmp_path))


def test_a_missing_a_cut_and_an_exchanged_file_do_not_match_the_index(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(100))
    tar, sidecar = store.get("00001.tar"), store.get("00001.npz")
    cases: list[tuple[str, bytes | None, str]] = [
        ("00001.tar", None, "00001.tar is missing"),
        ("00001.tar", tar[:-512], "00001.tar has"),
        ("00001.npz", None, "00001.npz is missing"),
    ]
    for key, data, message in cases:
        store.delete([key]) if data is None else store.put(key, data)
        with pytest.raises(InputError, match=f"The index does not match its shards in {tmp_path}: {message}"):
            check_listing(store, index)
        store.put("00001.tar", tar)
        store.put("00001.npz", sidecar)
    check_listing(store, index)


def test_a_sidecar_of_another_shard_or_with_other_labels_or_torn_is_refused(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(100))
    own = load_sidecar(store, index, 0)
    assert own.labels is not None
    relabelled = dataclasses.replace(own, labels=own.labels[::-1].copy())
    last = f"{len(index.shards) - 1:05d}.npz"
    for data, message in [
        (store.get(last), "lists"),
        (relabelled.to_bytes(), "is not the one"),
        (own.to_bytes()[:-100], "cannot be read"),
        (b"", "cannot be read"),
    ]:
        store.put("00000.npz", data)
        with pytest.raises(InputError, match=f"does not match its shards .* 00000.npz {message}"):
            load_sidecar(store, index, 0)


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_number_without_a_name_is_refused_where_it_is_read(tmp_path: Path, wrong: int) -> None:
    """A conditional model would use it as an index out of range, in the middle of a run and perhaps on the GPU."""
    x, _ = make_labelled_arrays(6)
    store, index = write_arrays(tmp_path, x, [0, 1, 2, 0, wrong, 1], classes=("a", "b", "c"))
    with pytest.raises(InputError, match=f"Sample 4 of 00000.tar .* has class {wrong}, but the index names 3 classes"):
        load_sidecar(store, index, 0)
    store, index = write_arrays(tmp_path / "nameless", x, [0, 1, 2, 0, wrong, 1])
    load_sidecar(store, index, 0)


def test_a_pickled_sidecar_is_not_unpickled() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, offsets=np.array([object()]), sizes=np.zeros(1), crc32=np.zeros(1))
    with pytest.raises(ValueError, match="no known form"):
        Sidecar.from_bytes(buffer.getvalue())


def test_sidecars_are_plain_npz_and_read_without_ast_which_threads_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.11 (gh-106905): ast.parse in several threads raises SystemError now and then; numpy.load uses it."""
    store, index = write_arrays(tmp_path, *make_labelled_arrays(40))
    data = store.get(index.shards[0].sidecar_key)
    with np.load(io.BytesIO(data), allow_pickle=False) as plain:
        expected = {name: plain[name] for name in plain.files}
    monkeypatch.setattr("ast.parse", None)
    sidecar = Sidecar.from_bytes(data)
    assert set(expected) == {"offsets", "sizes", "crc32", "labels"}
    for name, array in expected.items():
        assert np.array_equal(getattr(sidecar, name), array)
        assert getattr(sidecar, name).dtype == array.dtype


def test_one_flipped_byte_is_found_with_its_shard_and_sample(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(100))
    key, number = damage_sample(store, index, 57)
    with pytest.raises(InputError, match=f"sample {number} of {key} .*crc32"):
        load_arrays(store, index)
    report = verify_split(store, index)
    assert (report.num_shards, report.num_samples) == (len(index.shards), 100)
    assert len(report.problems) == 1
    assert f"sample {number} of {key}" in report.problems[0]


def test_verify_calls_a_damaged_sample_by_its_name(tmp_path: Path) -> None:
    x = np.zeros((4, 1, 4, 4), np.uint8)
    store, index = write_arrays(tmp_path, x, None, origins=["a.png", "b.png", "c/d.png", "e.png"])
    damage_sample(store, index, 2)
    (problem,) = verify_split(store, index).problems
    assert "sample 2 of 00000.tar, c/d.png (its crc32" in problem


def test_damage_between_samples_is_found_by_verify(tmp_path: Path) -> None:
    store, index = write_arrays(tmp_path, *make_labelled_arrays(40))
    assert verify_split(store, index).problems == ()
    data = bytearray(store.get("00000.tar"))
    data[3] ^= 0xFF  # in the first header's name: no payload is touched
    store.put("00000.tar", bytes(data))
    assert "00000.tar" in verify_split(store, index).problems[0]


@pytest.mark.parametrize("cut", [100, 512 * 40, 512 * 44])
def test_a_tar_cut_anywhere_is_refused_not_read_half(tmp_path: Path, cut: int) -> None:
    store, _ = write_arrays(tmp_path, *make_labelled_arrays(40))
    data = store.get("00000.tar")
    with pytest.raises(InputError, match=r"shard 0 is .*(whole|cut short)"):
        scan_tar(data[:cut], "shard 0")


def test_a_damaged_header_inside_a_tar_is_refused_not_taken_for_its_end(tmp_path: Path) -> None:
    store, _ = write_arrays(tmp_path, *make_labelled_arrays(40))
    data = bytearray(store.get("00000.tar"))
    data[512 * 40 : 512 * 41] = b"\xff" * 512
    with pytest.raises(InputError, match="damaged after byte"):
        scan_tar(bytes(data), "shard 0")


def test_samples_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    x, _ = make_labelled_arrays(2)
    store = LocalStore(tmp_path)

    def attempt(pairs: list[Any], **options: Any) -> None:
        write_shards(store, [PreparedSample(*pair) for pair in pairs], dataclasses.replace(FORMAT, **options))

    with pytest.raises(InputError, match=r"Sample 1 of shard 0 is uint8 \(4, 5\)"):
        attempt([(x[0], 1), (x[1, 0], 1)])
    with pytest.raises(InputError, match=r"Sample 0 of shard 0 is float32"):
        attempt([(x[0].astype(np.float32), 1)])
    with pytest.raises(InputError, match="different kinds of label"):
        attempt([(x[0], 1), (x[1], None)])
    with pytest.raises(InputError, match="2 attributes"):
        attempt([(x[0], [1.0])], attributes=("a", "b"))
    with pytest.raises(InputError, match="use encoding raw"):
        attempt([(x[0], 1)], encoding="png", dtype="float32")
    with pytest.raises(InputError, match="no samples"):
        attempt([])
    assert store.list() == []


def test_splits_are_found_and_a_missing_one_is_answered_with_those_there(tmp_path: Path) -> None:
    x, y = make_labelled_arrays(20)
    write_arrays(tmp_path / "train", x, y)
    write_arrays(tmp_path / "test", x, y)
    root = LocalStore(tmp_path)
    assert find_split(root, "test").url == str(tmp_path / "test")
    assert find_split(root.child("test"), "test").url == str(tmp_path / "test")
    with pytest.raises(InputError, match="no split 'valid' in .*; its splits are: test, train"):
        find_split(root, "valid")
    with pytest.raises(InputError, match=r"no prepared shards .*ali_dist.prepare"):
        find_split(root.child("nothing"), "train")
