"""Folders of images and ImageNet: the middle square, classes by folder, splits given or drawn, nothing passed over."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.preparation.summary import NETWORK_SIDES
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.image_files import name_some
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.architectures.residual import SIDES
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, refused, run
from tests.helpers.originals import encode_jpeg, make_photo, write_files, write_imagenet


def encoded(x: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, kind, **options)
    return buffer.getvalue()


def middle(path: Path, size: int) -> bytes:
    """The center square of an image file, reduced, as the bytes of uint8 [3, size, size]."""
    with Image.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1).tobytes()


def samples(folder: Path) -> dict[bytes, int | None]:
    """Label of each image of a split, by its bytes."""
    store = LocalStore(folder)
    x, y = load_arrays(store, load_index(store))
    labels = [None] * len(x) if y is None else y.tolist()
    return {image.numpy().tobytes(): label for image, label in zip(x, labels, strict=True)}


# ---- ImageNet ------------------------------------------------------------------------------------------------------


def test_imagenet_is_the_middle_square_with_classes_by_sorted_wnid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, answers = tmp_path / "ilsvrc", ["n10", "n01", "n02", "n02", "n10", "n01"]
    write_imagenet(root)
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(answers) + "\n")
    assert run(capsys, "imagenet64", tmp_path / "out", "--from", root, "--verify", "--jobs", 1)[0] == 0
    wnids = ["n01", "n02", "n10"]
    assert load_index(LocalStore(tmp_path / "out" / "train")).classes == tuple(wnids)
    files = sorted((root / "train").rglob("*.JPEG"))
    assert samples(tmp_path / "out" / "train") == {middle(p, 64): wnids.index(p.parent.name) for p in files}
    val = sorted((root / "val").iterdir())
    expected = {middle(p, 64): wnids.index(wnid) for p, wnid in zip(val, answers, strict=True)}
    assert samples(tmp_path / "out" / "valid") == expected
    rows = "".join(f"{p.stem},{wnid} 1 2 3 4 \n" for p, wnid in zip(val, answers, strict=True))
    (root / "imagenet_2012_validation_synset_labels.txt").unlink()
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    assert run(capsys, "imagenet64", tmp_path / "csv", "--from", root, "--jobs", 1)[0] == 0
    assert content(tmp_path / "csv") == content(tmp_path / "out")
    for path, wnid in zip(val, answers, strict=True):
        (root / "val" / wnid).mkdir(exist_ok=True)
        shutil.move(path, root / "val" / wnid)
    assert run(capsys, "imagenet64", tmp_path / "sorted", "--from", root, "--jobs", 1)[0] == 0
    assert samples(tmp_path / "sorted" / "valid") == expected


def test_imagenet_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "ilsvrc"
    write_imagenet(root)

    def refusal() -> str:
        return refused(capsys, "imagenet64", tmp_path / "out", "--from", root)

    assert "neither LOC_val_solution.csv nor imagenet_2012" in refusal()
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("n01\nn02\n")
    assert "has 2 lines, but val has 6 images" in refusal()
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("n01\n" * 5 + "n99\n")
    assert "'n99' in valid, but train has no such class" in refusal()
    shutil.rmtree(root / "val")
    assert "no folder val" in refusal()
    done = run(capsys, "imagenet64", tmp_path / "out", "--from", root, "--splits", "train", "--size", 16, "--jobs", 1)
    assert done[0] == 0
    assert load_index(LocalStore(tmp_path / "out" / "train")).shape == (3, 16, 16)
    assert "no folder train" in refused(capsys, "imagenet64", tmp_path / "x", "--from", tmp_path / "out" / "train")


# ---- one's own folder ----------------------------------------------------------------------------------------------


def test_class_folders_become_classes_with_a_fixed_stratified_share_for_testing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    files = {
        f"{c}/{n}.jpg": encode_jpeg(make_photo(40, 30, seed=100 * k + n)) for k, c in enumerate("ab") for n in range(20)
    }
    files["b/deep/er/x.PNG"] = encoded(make_photo(20, 60, seed=999), "PNG")
    write_files(own, {**files, "a/.hidden.jpg": b"no image", "a/notes.txt": b"words"})
    arguments = ("folder", tmp_path / "out", "--from", own, "--size", 16, "--jobs", 1)
    assert run(capsys, *arguments, "--holdout", 0.2)[0] == 0
    train, test = samples(tmp_path / "out" / "train"), samples(tmp_path / "out" / "test")
    assert {**train, **test} == {middle(own / name, 16): "ab".index(name[0]) for name in files}
    assert list(test.values()).count(0) == list(test.values()).count(1) == 4
    shutil.copytree(own, tmp_path / "moved")
    arguments = ("folder", tmp_path / "again", "--from", tmp_path / "moved", "--size", 16, "--jobs", 1)
    assert run(capsys, *arguments, "--holdout", 0.2)[0] == 0
    assert content(tmp_path / "again") == content(tmp_path / "out")


def test_a_flat_folder_has_no_labels_and_grey_has_one_channel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = make_photo(24, 24)
    palette, buffer = Image.fromarray(x).quantize(16), io.BytesIO()
    palette.save(buffer, "PNG")
    files = {"a.png": buffer.getvalue(), "b.bmp": encoded(x, "BMP"), "c.webp": encoded(x, "WEBP", lossless=True)}
    write_files(tmp_path / "own", files)
    arguments = ("folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 24, "--grey", "--holdout", 0)
    assert run(capsys, *arguments, "--jobs", 1)[0] == 0
    store = LocalStore(tmp_path / "out" / "train")
    index = load_index(store)
    loaded, y = load_arrays(store, index)
    assert (index.shape, index.classes, y) == ((1, 24, 24), (), None)
    grey = [np.asarray(image.convert("L")) for image in (palette, Image.fromarray(x))]
    assert {image.numpy().tobytes() for image in loaded} == {image.tobytes() for image in grey}
    assert len(loaded) == 3


def test_photographs_are_turned_as_their_camera_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, exif = make_photo(30, 30), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    write_files(tmp_path / "own", {"a.png": encoded(x, "PNG", exif=exif)})
    arguments = ("folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 30, "--holdout", 0, "--jobs", 1)
    assert run(capsys, *arguments)[0] == 0
    assert set(samples(tmp_path / "out" / "train")) == {np.rot90(x, -1).transpose(2, 0, 1).tobytes()}


def test_folders_that_are_divided_into_splits_keep_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"Train": 6, "Validation": 2, "testing": 3, "extra": 1}
    for seed, (split, n) in enumerate(sizes.items()):
        write_files(
            tmp_path / "own" / split,
            {f"{k % 2}/{k}.jpg": encode_jpeg(make_photo(9, 9, 50 * seed + k)) for k in range(n)},
        )
    write_files(tmp_path / "own", {"testing/0/notes.txt": b"", "Train/2/9.jpg": encode_jpeg(make_photo(9, 9))})
    code, out, _ = run(capsys, "folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 8, "--jobs", 1)
    assert code == 0
    assert "train: 1 file was left out: 1 outside of the splits (extra/0/0.jpg)\n" in out
    assert "test: 1 file was left out: 1 .txt (testing/0/notes.txt)\n" in out
    for split, n in (("train", 7), ("valid", 2), ("test", 3)):
        index = load_index(LocalStore(tmp_path / "out" / split))
        assert (index.num_samples, index.classes) == (n, ("0", "1", "2"))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"

    def refusal(*options: object) -> str:
        return refused(capsys, "folder", tmp_path / "out", "--from", own, "--jobs", 1, *options)

    assert f"no folder {own}" in refusal()
    write_files(own, {"readme.txt": b""})
    assert "There are no images in" in refusal()
    write_files(own, {"a/x.jpg": encode_jpeg(make_photo(9, 9)), "y.jpg": encode_jpeg(make_photo(9, 9))})
    assert "beside them (such as y.jpg)" in refusal()
    (own / "y.jpg").unlink()
    assert "--holdout is 1" in refusal("--holdout", 1)
    assert "--size is 0" in refusal("--size", 0)
    assert "--size is 100000, but must be from 1 to 1024" in refusal("--size", 100_000)
    write_files(own, {"a/deep.tif": encoded(np.zeros((9, 9), np.float32), "TIFF")})
    message = refusal()
    assert f"a/deep.tif in {own} cannot be used" in message
    assert "floating-point numbers" in message


def test_large_images_are_stored_compressed_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(
        tmp_path / "own", {"a.jpg": encode_jpeg(make_photo(90, 90)), "b.jpg": encode_jpeg(make_photo(90, 90, 1))}
    )
    for size, given, encoding in ((64, (), "raw"), (65, (), "png"), (65, ("--encoding", "jpg"), "jpg")):
        out = tmp_path / f"{size}{encoding}"
        arguments = ("folder", out, "--from", tmp_path / "own", "--size", size, "--verify", "--jobs", 1, *given)
        assert run(capsys, *arguments)[0] == 0
        assert load_index(LocalStore(out / "train")).encoding == encoding


# ---- what the user gave, and what it can be used for -----------------------------------------------------------------


@pytest.mark.parametrize(("count", "held_out"), [(5, 0), (6, 2), (14, 2), (15, 2), (30, 3)])
def test_two_images_or_none_are_held_out_of_a_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, held_out: int
) -> None:
    write_files(tmp_path / "own", {f"{n}.png": encoded(make_photo(4, 4, n), "PNG") for n in range(count)})
    arguments = ("folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 4, "--jobs", 1)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert (f"test: {held_out} samples" in out) == bool(held_out)
    assert ("No image is held out" in out) == (not held_out)
    assert load_index(LocalStore(tmp_path / "out" / "train")).num_samples == count - held_out


def test_a_test_folder_alone_is_nothing_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "own" / "test", {f"{n}.png": encoded(make_photo(4, 4, n), "PNG") for n in range(3)})
    code, out, _ = run(capsys, "folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 4, "--jobs", 1)
    assert code == 0
    assert "There is no train folder, only test: `train` finds nothing to train on, unless --data.split names" in out


def test_refusals_say_what_to_give_and_make_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    write_files(own, {f"{n}.png": encoded(make_photo(4, 4, n), "PNG") for n in range(3)})
    color = refused(capsys, "folder", out, "--from", own, "--background", "nocolor")
    assert "--background is 'nocolor', but must be a color, such as white or #ff8800" in color
    url = refused(capsys, "folder", out, "--from", "https://me:secret@host/b.zip")
    assert "--from is a url (https://...), but must be a path on this machine: download" in url
    assert "secret" not in url
    assert "--from is a url (s3://...)" in refused(capsys, "folder", out, "--from", "s3://bucket/b")
    flat = refused(capsys, "folder", out, "--from", own, "--only", "cat")
    assert "--only chooses classes, but the samples of train have no classes: leave it out." in flat
    assert not out.exists()


def test_a_class_name_with_a_line_break_or_an_escape_is_printed_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = encoded(make_photo(4, 4), "PNG")
    write_files(tmp_path / "own", {"a\nb/x.png": photo, "c\x1b[31m/x.png": photo})
    code, out, _ = run(capsys, "folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 4, "--jobs", 1)
    assert code == 0
    assert r"2 classes have one image only: a\nb, c\x1b[31m." in out
    arguments = ("folder", tmp_path / "x", "--from", tmp_path / "own", "--size", 4, "--only", "d")
    assert r"classes: a\nb, c\x1b[31m" in refused(capsys, *arguments)


def test_the_first_of_many_names_are_followed_by_how_many_there_are() -> None:
    assert name_some(list("abcde")) == "a, b, c and 2 more"
    assert name_some(list("abc")) == "a, b, c"


def test_the_sides_that_prepare_knows_are_those_of_the_networks() -> None:
    fixed = {table.image_size for table in ARCHITECTURES.values()} - {None}
    assert set(NETWORK_SIDES) == fixed | set(SIDES)
    assert tuple(sorted(NETWORK_SIDES)) == NETWORK_SIDES
