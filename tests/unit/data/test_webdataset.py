"""Tars of other programs are indexed in place, or refused with the name of the tar and the sample."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.shards.codec import encode_sample, read_npy
from ali_dist.data.shards.index import load_index, load_sidecar
from ali_dist.data.shards.reader import load_arrays
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import make_labelled_arrays
from tests.helpers.commands import content, refused, run
from tests.helpers.tars import encode_image, make_members, values_of, write_foreign_tar


def encode_png(x: np.ndarray) -> bytes:
    return encode_sample(x, "png")


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
            (f"{long}.json", json.dumps({"Smiling": True, "file": "a.png", "Male": 0}).encode()),
            ("images/b.json", b'{"Male": 1.0, "Smiling": false, "extra": 1}'),
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
    assert loaded_y.tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


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
        "size": ([("b.png", other_size), ("b.cls", b"1")], r"'b' of 0.tar .* has 6x6 pixels, but must have 5x4"),
        "torn": ([("b.png", whole[: len(whole) // 2]), ("b.cls", b"1")], "'b' of 0.tar .* cut short"),
        "kind": ([("b.npy", encode_npy(x[1])), ("b.cls", b"1")], "'b' of 0.tar .* image is npy, but others are images"),
        "none": ([("b.cls", b"1")], r"'b' of 0.tar .* it has no image \(fields: cls\)"),
        "several": ([("b.png", whole), ("b.jpg", whole), ("b.cls", b"1")], "several images .* --image png"),
        "label": ([("b.png", whole), ("b.cls", b"cat")], "'b' of 0.tar .* class 'cat', but other classes are numbers"),
        "negative": ([("b.png", whole), ("b.cls", b"-1")], "'b' of 0.tar .* is -1, but classes are numbered from 0"),
        "some": ([("b.png", whole)], r"'b' of 0.tar .* no label \(cls\), which others have"),
        "twice": ([("b.png", whole), ("b.png", whole)], "0.tar .* 'b.png' twice"),
    }
    for name, (members, words) in cases.items():
        write_foreign_tar(tmp_path / name / "0.tar", good + members)
        assert re.search(words, refused(capsys, "webdataset", tmp_path / name)), name
        assert not (tmp_path / name / "index.json").exists()
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "0.tar").write_bytes(b"PK\x03\x04" * 300)
    assert "not a whole, uncompressed tar" in refused(capsys, "webdataset", tmp_path / "zip")


# ---- Images --------------------------------------------------------------------------------------------------------


def test_images_of_several_formats_are_told_apart_by_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
    names = ["png", "jpeg", "webp", "bmp", "gif", "tif", "ppm"]
    members = [
        (f"{n}.{name}", encode_image(10 * n, kind)) for n, (kind, name) in enumerate(zip(kinds, names, strict=True))
    ]
    write_foreign_tar(tmp_path / "0.tar", [*members, ("gray.png", encode_image(200, mode="L"))])
    assert run(capsys, "webdataset", tmp_path, "--verify")[0] == 0
    store = LocalStore(tmp_path)
    index = load_index(store)
    assert (index.encoding, index.shape) == ("image", (3, 4, 5))
    x, _ = load_arrays(store, index)
    assert np.abs(np.subtract(values_of(x), [0, 10, 20, 30, 40, 50, 60, 200])).max() <= 2


def test_the_image_is_the_field_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        *[("a.seg.png", encode_image(1)), ("a.png", encode_image(2)), ("a.jpg", encode_image(3, "JPEG"))],
        *[("b.png", encode_image(4)), ("b.seg.png", encode_image(5)), ("c.png", encode_image(6))],
    ]
    write_foreign_tar(tmp_path / "0.tar", members)
    assert "several images (png, jpg): say which is meant, as in --image png" in refused(capsys, "webdataset", tmp_path)
    for choice, values in [("png", [2, 4, 6]), ("seg.png,png", [1, 5, 6]), ("jpg,.PNG", [3, 4, 6])]:
        assert run(capsys, "webdataset", tmp_path, "--image", choice)[0] == 0
        assert (
            np.abs(
                np.subtract(values_of(load_arrays(LocalStore(tmp_path), load_index(LocalStore(tmp_path)))[0]), values)
            ).max()
            <= 1
        )
    assert "none of the fields seg.png" in refused(capsys, "webdataset", tmp_path, "--image", "seg.png")
    assert "--image is 'a,,b'" in refused(capsys, "webdataset", tmp_path, "--image", "a,,b")


def test_transparent_and_turned_images_of_tars_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = encode_image(0, mode="RGBA")  # black, and wholly transparent
    turned = Image.new("RGB", (4, 5), (70, 70, 70))
    exif = turned.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    write_foreign_tar(tmp_path / "0.tar", [("a.png", encode_image(9)), ("b.png", clear), ("c.png", buffer.getvalue())])
    code, out, _ = run(capsys, "webdataset", tmp_path, "--background", "#102030", "--verify")
    assert code == 0
    assert "put on #102030 (b)" in out
    assert "was turned as the camera noted (c)" in out
    index = load_index(LocalStore(tmp_path))
    assert index.shape == (3, 4, 5)
    assert index.extra["treatments"]["background"] == {"count": 1, "first": ["b"]}
    x, _ = load_arrays(LocalStore(tmp_path), index)
    assert x[:, :, 0, 0].tolist() == [[9, 9, 9], [0x10, 0x20, 0x30], [70, 70, 70]]
    white = run(capsys, "webdataset", tmp_path)[1]
    assert "put on white" in white
    assert load_index(LocalStore(tmp_path)).fingerprint != index.fingerprint


def test_samples_are_known_by_their_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_tar(tmp_path / "0.tar", [("x/b.png", encode_image(1)), ("x/a.png", encode_image(2))])
    assert run(capsys, "webdataset", tmp_path)[0] == 0
    assert load_sidecar(LocalStore(tmp_path), load_index(LocalStore(tmp_path)), 0).origins == ("x/b", "x/a")


# ---- What is left out ----------------------------------------------------------------------------------------------


def test_bad_samples_are_left_out_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        *[("large.png", encode_image(1, size=(6, 6))), ("large.cls", b"1")],  # the first one need not be like most
        *make_members(["1", "0"]),
        *[("torn.png", encode_image(1)[:40]), ("torn.cls", b"1")],
        ("alone.cls", b"1"),
        ("bare.png", encode_image(3)),
        *[("odd.png", encode_image(3)), ("odd.cls", b"-3")],
        *[("z.png", encode_image(7)), ("z.cls", b"1")],
        *[
            ("README", b"read"),
            ("README.md", b"read"),
            ("notes.txt", b"x"),
            ("._0.png", b"x"),
            ("__MACOSX/0.png", b"x"),
        ],
    ]
    write_foreign_tar(tmp_path / "0.tar", members)
    assert "--skip-bad" in refused(capsys, "webdataset", tmp_path)
    code, out, err = run(capsys, "webdataset", tmp_path, "--skip-bad", "--verify")
    assert (code, err) == (0, "")
    store = LocalStore(tmp_path)
    index = load_index(store)
    assert index.extra["left_out"] == {
        "another size": {"count": 1, "first": ["large"]},
        "no image": {"count": 1, "first": ["alone"]},
        "no label": {"count": 1, "first": ["bare"]},
        "no part of a sample": {
            "count": 5,
            "first": ["README", "._0.png", "__MACOSX/0.png", "README.md", "notes.txt"],
        },
        "unreadable image": {"count": 1, "first": ["torn"]},
        "unusable label": {"count": 1, "first": ["odd"]},
    }
    assert "1 another size (large)" in out
    x, y = load_arrays(store, index)
    assert y is not None
    assert (values_of(x), y.tolist()) == ([0, 1, 7], [1, 0, 1])


def test_stray_members_are_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_tar(tmp_path / "0.tar", [("README.md", b"x"), *make_members(["0", "1"]), ("meta.yaml", b"x")])
    assert "2 no part of a sample (README.md, meta.yaml)" in run(capsys, "webdataset", tmp_path)[1]
    assert load_index(LocalStore(tmp_path)).num_samples == 2


def test_a_tar_without_good_samples_counts_for_nothing_with_skip_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "0.tar", [("a.png", b"no image"), ("a.cls", b"0")])
    write_foreign_tar(tmp_path / "1.tar", make_members(["0", "1"]))
    write_foreign_tar(tmp_path / "2.tar", [("README", b"x")])
    assert "'a' of 0.tar" in refused(capsys, "webdataset", tmp_path)
    assert run(capsys, "webdataset", tmp_path, "--skip-bad", "--verify")[0] == 0
    index = load_index(LocalStore(tmp_path))
    assert [shard.samples for shard in index.shards] == [0, 2, 0]
    _, y = load_arrays(LocalStore(tmp_path), index)
    assert y is not None
    assert y.tolist() == [0, 1]
    os.remove(tmp_path / "1.tar")
    assert "2.tar in" in refused(capsys, "webdataset", tmp_path, "--skip-bad")


# ---- Names and order of members ------------------------------------------------------------------------------------


def test_members_of_a_sample_need_not_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = make_members(["3", "1", "2"])
    write_foreign_tar(tmp_path / "0.tar", sorted(members, key=lambda member: member[0][-3:], reverse=True))
    code, out, _ = run(capsys, "webdataset", tmp_path, "--verify")
    assert code == 0
    assert "The members of 3 samples (such as '0') do not stand side by side in their tar" in out
    x, y = load_arrays(LocalStore(tmp_path), load_index(LocalStore(tmp_path)))
    assert y is not None
    assert (values_of(x), y.tolist()) == ([0, 1, 2], [3, 1, 2])


def test_a_dot_and_slash_before_a_name_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [(f"{'./' * (n % 3)}{name}", data) for n, (name, data) in enumerate(make_members(["3", "1", "2"]))]
    for command in (("webdataset", tmp_path), ("webdataset-import", tmp_path / "0.tar", tmp_path / "out")):
        write_foreign_tar(tmp_path / "0.tar", members)
        assert run(capsys, *command)[0] == 0
        store = LocalStore(Path(command[-1]))
        x, y = load_arrays(store, load_index(store))
        assert y is not None
        assert (values_of(x), y.tolist()) == ([0, 1, 2], [3, 1, 2])
        assert load_sidecar(store, load_index(store), 0).origins == ("0", "1", "2")


def test_a_key_that_comes_again_is_another_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_tar(tmp_path / "0.tar", [*make_members(["3", "1"]), *make_members(["2"])])
    assert run(capsys, "webdataset", tmp_path)[0] == 0
    x, y = load_arrays(LocalStore(tmp_path), load_index(LocalStore(tmp_path)))
    assert y is not None
    assert (values_of(x), y.tolist()) == ([0, 1, 0], [3, 1, 2])


def test_names_with_dots_are_explained_and_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        ("0 Track 2.0.jpg", encode_image(5, "JPEG")),
        ("0 Track 2.0.cls", b"1"),
        ("b.jpg", encode_image(6, "JPEG")),
    ]
    for name, tar in [("all", members[:2]), ("some", [("b.cls", b"0"), *members[::-1]])]:
        write_foreign_tar(tmp_path / name / "0.tar", tar)
        message = refused(capsys, "webdataset", tmp_path / name)
        assert "Sample '0 Track 2' of 0.tar" in message
        assert "all that follows the first dot of a name is the field, here '0.jpg'" in message
        assert "--dotted-names" in message
        assert run(capsys, "webdataset", tmp_path / name, "--dotted-names")[0] == 0
        store = LocalStore(tmp_path / name)
        assert "0 Track 2.0" in (load_sidecar(store, load_index(store), 0).origins or ())


def test_names_that_are_not_utf_8_or_not_printable_are_kept_and_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"caf\xe9\n".decode("utf-8", "surrogateescape")
    members = [
        (f"{name}.png", encode_image(1)),
        (f"{name}.json", b'{"\\ud800": 0.5, "b": 1}'),
        (f"{name}x.json", b"{}"),
    ]
    write_foreign_tar(tmp_path / "0.tar", members)
    assert "Sample 'caf\\udce9\\nx' of 0.tar" in refused(capsys, "webdataset", tmp_path)
    code, out, _ = run(capsys, "webdataset", tmp_path, "--skip-bad", "--verify")
    assert code == 0
    assert "json has '\\ud800', b" in out
    assert "1 no image (caf" in out
    store = LocalStore(tmp_path)
    assert load_sidecar(store, load_index(store), 0).origins == (name,)
