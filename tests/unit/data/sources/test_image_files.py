"""Which files are images, what is made of them, and that all others are counted and named."""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.shards.index import Index, load_index
from ali_dist.data.sources.image_files import (
    ESCAPING,
    HIDDEN,
    REPEATED,
    SYSTEM,
    ImageListing,
    list_images,
    readable_formats,
)
from ali_dist.data.sources.images import CenterCrop, samples_from_images
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, refused, run
from tests.helpers.originals import encode_jpeg, make_photo, write_files

PHOTO = make_photo(8, 8)


def encoded(x: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, kind, **options)
    return buffer.getvalue()


def read(folder: Path, name: str, size: int = 8) -> tuple[np.ndarray, frozenset[str]]:
    """The sample that is made of one file, and what was done to it."""
    samples = samples_from_images(folder, [name], [None], CenterCrop(size))(np.array([0]))
    prepared = samples.read_sample(0)
    return prepared.x, prepared.treatments


def train_index(out: Path) -> Index:
    return load_index(LocalStore(out / "train"))


@pytest.mark.parametrize(
    "name", ["a.png", "a.jfif.png", "a.jpg", "a.tif", "a.TIFF", "a.gif", "a.webp", "a.ppm", "a.bmp", "a.avif"]
)
def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    kinds = {"gif": "GIF", "webp": "WEBP", "ppm": "PPM", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF"}
    kind = kinds.get(name.lower().rpartition(".")[2], "PNG")
    gray = np.repeat(PHOTO[..., :1], 3, axis=2)  # which 256 colors can show
    write_files(tmp_path, {name: encoded(gray, kind, **({"lossless": True} if kind == "WEBP" else {}))})
    assert name in list_images(tmp_path).images or "AVIF" not in readable_formats()
    x, treatments = read(tmp_path, name)
    assert np.array_equal(x, gray.transpose(2, 0, 1))
    assert treatments == frozenset()


def test_what_is_no_image_is_counted_by_its_kind(tmp_path: Path) -> None:
    names = {
        ".svg": ["icon.svg"],
        ".heic": ["IMG_1.HEIC"],
        "without extension": ["README"],
        HIDDEN: [".hidden.png", ".git/x.png"],
        SYSTEM: ["._a.jpg", "@eaDir/a.jpg/SYNO.jpg", "Thumbs.db", "__MACOSX/a.png", ".thumbnails/b.png", ".DS_Store"],
    }
    write_files(tmp_path, {name: b"" for group in names.values() for name in group} | {"b/a.jpg": b"", "c.JPE": b""})
    listing = list_images(tmp_path)
    assert list(listing.images) == ["b/a.jpg", "c.JPE"]
    found: dict[str, list[str]] = {}
    for file in listing.left_out:
        found.setdefault(file.reason, []).append(file.path)
    assert {reason: sorted(paths) for reason, paths in found.items()} == {
        reason: sorted(paths) for reason, paths in names.items()
    }


def test_what_is_left_out_and_what_was_done_is_said_and_in_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = np.dstack([make_photo(8, 8, 1), np.zeros((8, 8, 1), np.uint8)])
    files = {
        "a.png": encoded(clear, "PNG"),
        "b.png": encoded(PHOTO, "PNG"),
        "c.png": encoded(make_photo(4, 6, 2), "PNG"),
        "d.svg": b"",
        "e.txt": b"",
    }
    write_files(tmp_path / "own", files)
    arguments = ("folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 8, "--jobs", 1)
    for outcome in ("written", "already there"):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert out.splitlines() == [
            f"train: 3 samples in 1 shard, {outcome} in {tmp_path / 'out' / 'train'}",
            "train: 1 image had transparent pixels and was put on white (a.png)",
            "train: 1 image was smaller than 8 pixels and was enlarged, which adds no detail (c.png)",
            "train: 2 files were left out: 1 .svg (d.svg), 1 .txt (e.txt)",
            "train: pictures in .svg cannot be read: convert them to .png or .jpg.",
            "No image is held out, because 3 images are too few for --holdout 0.1: nothing can be measured on images "
            "that were not seen.",
            "No network takes images of 8 pixels a side, but there are some for 16, 32, 64, 128 and 256: `train` "
            "resizes them with --data.image_size 16.",
        ]
    extra = train_index(tmp_path / "out").extra
    assert extra["left_out"] == {".svg": {"count": 1, "first": ["d.svg"]}, ".txt": {"count": 1, "first": ["e.txt"]}}
    assert {word: entry["count"] for word, entry in extra["treatments"].items()} == {
        "background": 1,
        "cropped": 1,
        "enlarged": 1,
        "resized": 1,
    }


def test_a_zip_with_a_folder_that_holds_all_gives_the_bytes_of_that_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{c}/{n}.jpg": encode_jpeg(make_photo(9, 9, 9 * n + ord(c))) for c in "ab" for n in range(6)}
    write_files(tmp_path / "own", files)
    write_files(tmp_path / "wrapped", {f"photos/{name}": data for name, data in files.items()})
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"photos/{name}", data)
    for name in ("own", "wrapped", "own.zip"):
        arguments = ("folder", tmp_path / f"out-{name}", "--from", tmp_path / name, "--size", 8, "--jobs", 1)
        assert run(capsys, *arguments)[0] == 0
        assert content(tmp_path / f"out-{name}") == content(tmp_path / "out-own")
    assert train_index(tmp_path / "out-own").classes == ("a", "b")
    archive_name = tmp_path / "own.tar.gz"
    archive_name.write_bytes(b"")
    assert "neither a folder nor a .zip" in refused(capsys, "folder", tmp_path / "x", "--from", archive_name)


def test_names_that_are_not_utf_8_reach_the_index_and_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    odd = os.fsdecode(b"stra\xdfe")
    try:
        (own / odd).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    clear = np.dstack([PHOTO, np.zeros((8, 8, 1), np.uint8)])
    write_files(own, {f"{odd}/{odd}{n}.png": encoded(clear, "PNG") for n in range(3)} | {f"{odd}/{odd}.txt": b""})
    write_files(own, {f"z/{n}.png": encoded(make_photo(8, 8, n), "PNG") for n in range(3)} | {f"z/{odd}.png": b"bad"})
    arguments = ("folder", tmp_path / "out", "--from", own, "--size", 8, "--jobs", 2, "--holdout", 0, "--skip-bad")
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert r"3 images had transparent pixels and were put on white (stra\xdfe/stra\xdfe" in out
    assert r"1 .txt (stra\xdfe/stra\xdfe.txt)" in out
    assert r"z/stra\xdfe.png in" in err
    index = train_index(tmp_path / "out")
    assert index.classes == (r"stra\xdfe", "z")
    index.to_json().encode("ascii")
    assert "z/stra" in refused(capsys, *arguments[:1], tmp_path / "b", *arguments[2:-1])


@pytest.mark.parametrize(
    ("kind", "frames"), [("GIF", True), ("TIFF", True), ("PNG", True), ("WEBP", True), ("MPO", False)]
)
def test_of_several_frames_the_first_is_taken(tmp_path: Path, kind: str, frames: bool) -> None:
    """The second picture of a camera's MPO is a preview, and no frame."""
    first, second = Image.new("RGB", (8, 8), (0, 0, 255)), Image.new("RGB", (8, 8), (255, 0, 0))
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=[second])
    write_files(tmp_path, {"a.jpg": buffer.getvalue()})
    x, treatments = read(tmp_path, "a.jpg")
    assert np.abs(x[:, 4, 4].astype(int) - (0, 0, 255)).max() <= 3
    assert ("first-frame" in treatments) == frames


@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_a_large_photograph_that_is_decoded_small_differs_by_little(tmp_path: Path, orientation: int) -> None:
    """Of 613x450 pixels, 1/4 are decoded: 153.25x112.5, which is no whole number of pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = make_photo(450, 613)
    write_files(tmp_path, {"a.jpg": encoded(photo, "JPEG", quality=95, exif=exif)})
    x, treatments = read(tmp_path, "a.jpg", 50)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = image.convert("RGB").crop((81, 0, 531, 450)).resize((50, 50), Image.Resampling.LANCZOS)
    expected = np.rot90(np.asarray(whole), {1: 0, 6: -1, 3: 2}[orientation]).transpose(2, 0, 1)
    difference = np.abs(x.astype(int) - expected)
    assert difference.mean() < 1
    assert difference.max() <= 6
    assert treatments == {"cropped", "resized", *(["orientation"] if orientation > 1 else [])}


def test_a_photograph_of_200_megapixels_is_decoded_small(tmp_path: Path) -> None:
    """More than Pillow opens by default, and a gigabyte if it were decoded whole."""
    Image.new("L", (16_320, 12_240), 90).save(tmp_path / "a.jpg", "JPEG")
    x, _ = read(tmp_path, "a.jpg")
    assert (x == 90).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"<html>", "it cannot be decoded as PNG, JPEG, "),
        (encode_jpeg(make_photo(80, 80))[:700], "cut short"),
        (encoded(make_photo(80, 80), "PNG")[:900], "cut short"),
        (encoded(make_photo(80, 80), "TIFF")[:900], "."),
    ],
)
def test_files_that_hold_no_whole_image_say_why(tmp_path: Path, data: bytes, reason: str) -> None:
    write_files(tmp_path, {"a.png": data})
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, "a.png")


def test_a_folder_without_images_says_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "own", {"a.heic": b"", "b.heic": b"", "c.txt": b""})
    message = refused(capsys, "folder", tmp_path / "out", "--from", tmp_path / "own")
    assert "There are no images in" in message
    assert "(only 2 .heic, 1 .txt)" in message


def test_class_folders_that_may_surprise_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    images = {f"{c}/{n}.png": encoded(make_photo(8, 8, n), "PNG") for c in ("Cat", "cat", "owl") for n in range(8)}
    write_files(own, {**images, "one/x.png": images["owl/1.png"], "owl/barn/y.png": images["owl/2.png"]})
    (own / "empty").mkdir()
    arguments = ("folder", tmp_path / "out", "--from", own, "--size", 8, "--jobs", 1)
    out = run(capsys, *arguments)[1]
    assert "the images of deeper folders (such as owl/barn/y.png) belong to the class that they lie in" in out
    assert "1 folder has no images: empty." in out
    assert "Cat and cat are 2 classes, though only the case of their names differs." in out
    assert "1 class has one image only: one." in out
    assert train_index(tmp_path / "out").classes == ("Cat", "cat", "one", "owl")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", encoded(PHOTO, "PNG"))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[6] |= 1  # the flag in the file's own header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    (tmp_path / "a.zip").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="cannot be read .*encrypted"):
        read(tmp_path / "a.zip", "a.png")
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        assert isinstance(list_images(tmp_path / "b.zip"), ImageListing)


def make_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, encoded(make_photo(8, 8, number), "PNG"))
    return path


def test_a_zip_of_older_windows_tools_has_the_classes_of_its_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{kind}\\{n}.png" for kind in ("cat", "owl") for n in range(3)]
    make_zip(tmp_path / "own.zip", names)
    arguments = ("folder", tmp_path / "out", "--from", tmp_path / "own.zip", "--size", 8, "--jobs", 1)
    assert run(capsys, *arguments)[0] == 0
    index = load_index(LocalStore(tmp_path / "out" / "train"))
    assert index.classes == ("cat", "owl")


def test_names_of_a_zip_that_lead_out_of_it_are_left_out_and_roots_are_dropped(tmp_path: Path) -> None:
    root = make_zip(tmp_path / "a.zip", ["../../x.png", "/cat/a.png", "C:\\cat\\b.png", "./cat/c.png"])
    listing = list_images(root)
    assert list(listing.images) == ["cat/a.png", "cat/b.png", "cat/c.png"]
    assert [(file.path, file.reason) for file in listing.left_out] == [("../../x.png", ESCAPING)]
    assert np.array_equal(read(root, "cat/b.png")[0], make_photo(8, 8, 2).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_a_zip_with_one_name_the_later_is_read(tmp_path: Path) -> None:
    root = make_zip(tmp_path / "a.zip", ["a.png", "a.png"])
    assert [(file.path, file.reason) for file in list_images(root).left_out] == [("a.png", REPEATED)]
    assert np.array_equal(read(root, "a.png")[0], make_photo(8, 8, 1).transpose(2, 0, 1))


def test_broken_links_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("a.png", "b.png"):
        (own / name).symlink_to(tmp_path / "gone" / name)
    arguments = ("folder", tmp_path / "out", "--from", own, "--size", 8, "--jobs", 1)
    assert f"There are only broken links in {own} (2, such as a.png): fetch" in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()
    write_files(own, {"c.png": encoded(PHOTO, "PNG")})
    out = run(capsys, *arguments)[1]
    assert "train: 2 files were left out: 2 broken links (a.png, b.png)\n" in out


def test_what_cannot_be_read_is_named_or_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    write_files(own, {name: encoded(PHOTO, "PNG") for name in ("cat/a.png", "owl/b.png")})
    (own / "cat" / "x").symlink_to(own / "cat" / "y")
    (own / "cat" / "y").symlink_to(own / "cat" / "x")
    (own / "loop").symlink_to(own)
    arguments = ("folder", tmp_path / "out", "--from", own, "--size", 8, "--jobs", 1)
    message = refused(capsys, *arguments)
    assert re.search(r"cat/[xy] in \S+ cannot be read \(too many levels of symbolic links\)", message)
    assert "--skip-bad" in message
    code, out, _ = run(capsys, *arguments, "--skip-bad")
    assert code == 0
    assert "2 unreadable (cat/x, cat/y), 1 link to a folder around it (loop)" in out
    assert "has no images" not in out
    assert train_index(tmp_path / "out").num_samples == 2
    scan = os.scandir

    def refuse_owl(path: str) -> Any:
        if str(path).endswith("owl"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    (own / "cat" / "x").unlink()
    (own / "cat" / "y").unlink()
    monkeypatch.setattr(os, "scandir", refuse_owl)
    assert f"owl in {own} cannot be read (permission denied): repair it" in refused(capsys, *arguments)
    assert "1 unreadable (owl)" in run(capsys, *arguments[:1], tmp_path / "cats", *arguments[2:], "--skip-bad")[1]
