"""CelebA's files: the paper's crop to the pixel, attributes 0 or 1, its authors' splits, folder or zip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.images import FaceCrop
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, refused, run
from tests.helpers.originals import FACE_ATTRIBUTES, FACES, write_celeba


def test_faces_are_the_rows_7_to_70_of_the_image_at_64_by_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = write_celeba(tmp_path / "celeba")
    assert run(capsys, "celeba", tmp_path / "out", "--from", tmp_path / "celeba", "--verify", "--jobs", 1)[0] == 0
    for split, rows in (("train", range(8)), ("valid", range(8, 10)), ("test", range(10, 12))):
        store = LocalStore(tmp_path / "out" / split)
        index = load_index(store)
        assert (index.shape, index.attributes) == ((3, 64, 64), tuple(FACE_ATTRIBUTES))
        x, y = load_arrays(store, index)
        assert y is not None
        expected = {}
        for row in rows:
            with Image.open(tmp_path / "celeba" / "img_align_celeba" / FACES[row]) as image:
                whole = np.asarray(image.resize((64, 78), Image.Resampling.LANCZOS))
            expected[whole[7:71].transpose(2, 0, 1).tobytes()] = values[row].tolist()
        assert {image.tobytes(): label for image, label in zip(x.numpy(), y.tolist(), strict=True)} == expected


def test_the_crop_keeps_exactly_rows_7_to_70() -> None:
    """On an image whose rows tell their number: resized 218 to 78, the first row kept is the 8th, the last the 71st."""
    ramp = np.repeat(np.linspace(0, 255, 218).round().astype(np.uint8)[:, None], 178, axis=1)
    image = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2))
    x, _ = FaceCrop()(image)
    assert x.shape == (3, 64, 64)
    centers = (np.arange(7, 71) + 0.5) * 218 / 78 - 0.5  # of the kept rows, in rows of the original
    assert np.abs(x[0, :, 30] - centers * 255 / 217).max() < 1


def test_the_zip_and_the_authors_own_folders_give_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_celeba(tmp_path / "a")
    write_celeba(tmp_path / "flat", zipped=True)
    for name, files in {
        "Img": ["img_align_celeba.zip"],
        "Anno": ["list_attr_celeba.txt"],
        "Eval": ["list_eval_partition.txt"],
    }.items():
        (tmp_path / "b" / name).mkdir(parents=True)
        for file in files:
            shutil.move(tmp_path / "flat" / file, tmp_path / "b" / name)
    for name in ("a", "b"):
        assert run(capsys, "celeba", tmp_path / f"out-{name}", "--from", tmp_path / name, "--jobs", 1)[0] == 0
    assert content(tmp_path / "out-a") == content(tmp_path / "out-b")


def test_missing_files_faces_and_lines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "celeba", tmp_path / "out"
    write_celeba(folder)

    def refusal() -> str:
        return refused(capsys, "celeba", out, "--from", folder)

    attributes, partition = folder / "list_attr_celeba.txt", folder / "list_eval_partition.txt"
    lines, rows = attributes.read_text(), partition.read_text()
    attributes.write_text(lines.replace("000003.jpg  ", "000003.jpg  1 "))
    assert "000003.jpg" in refusal()
    attributes.write_text(lines.replace("12\n", "13\n", 1))
    assert "says that it has 13 images, but has 12" in refusal()
    attributes.write_text(lines)
    partition.write_text(rows.replace("000004.jpg 0", "000004.jpg 7"))
    assert "'000004.jpg 7'" in refusal()
    partition.write_text(rows + "000099.jpg 0\n000098.jpg 0\n")
    assert "lacks 000099.jpg and 1 more" in refusal()
    partition.unlink()
    assert "no list_eval_partition.txt" in refusal()
    partition.write_text(rows)
    shutil.rmtree(folder / "img_align_celeba")
    assert "no img_align_celeba or img_align_celeba.zip" in refusal()
    assert not out.exists() or content(out) == {}


def test_a_damaged_and_an_unaligned_face_are_refused_or_left_out_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "celeba" / "img_align_celeba"
    write_celeba(tmp_path / "celeba")
    torn = (folder / FACES[2]).read_bytes()
    (folder / FACES[2]).write_bytes(torn[: len(torn) // 2])
    Image.new("RGB", (409, 687)).save(folder / FACES[5], "JPEG")
    arguments = ("celeba", tmp_path / "out", "--from", tmp_path / "celeba", "--splits", "train", "--jobs", 1)
    message = refused(capsys, *arguments)
    assert FACES[2] in message or FACES[5] in message
    assert "--skip-bad" in message
    code, out, err = run(capsys, *arguments, "--skip-bad", "--verify")
    assert code == 0
    assert "train: 6 samples" in out
    assert "2 bad samples were left out" in out
    assert f"{FACES[2]} in {folder}: it cannot be decoded" in err
    assert "409x687 pixels, but aligned" in err
    extra = json.loads((tmp_path / "out" / "train" / "index.json").read_text())["extra"]
    assert extra["skipped"] == len(extra["skipped_samples"]) == 2
