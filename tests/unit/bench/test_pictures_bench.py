"""Real pictures for the benches: composed on white, in class folders; from tiny packages, without a network."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ali_dist import prepare
from tests.bench import pictures
from tests.bench.pictures import compose_on_white, name_class, read_categories

LISTING = [
    {"image": "1f600.png", "category": "Smileys & Emotion"},
    {
        "image": "1f44b.png",
        "category": "People & Body",
        "skin_variations": {"1F3FB": {"image": "1f44b-1f3fb.png"}, "1F3FC": {"image": "1f44b-1f3fc.png"}},
    },
    {"image": "1f3fb.png", "category": "Component"},
]


def png(color: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    """A disc of one colour on nothing."""
    rows, columns = np.indices((size[1], size[0]))
    inside = (rows - size[1] / 2) ** 2 + (columns - size[0] / 2) ** 2 < (min(size) / 3) ** 2
    stream = io.BytesIO()
    Image.fromarray((inside[..., None] * np.array(color)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_package(folder: Path, vendor: str, images: dict[str, bytes], listing: Any = LISTING) -> None:
    """An archive as `npm pack` leaves it."""
    folder.mkdir(exist_ok=True)
    files = {f"package/img/{vendor}/64/{name}": data for name, data in images.items()}
    files |= {"package/emoji.json": json.dumps(listing).encode(), f"package/img/{vendor}/sheets/64.png": b"no picture"}
    with tarfile.open(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_transparent_pixels_become_white_and_others_are_blended() -> None:
    half_red = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    half_red.putpixel((0, 0), (0, 255, 0, 0))
    composed = compose_on_white(half_red, 8)
    assert (composed.mode, composed.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert composed.getpixel((4, 4)) == (255, 127, 127)


def test_a_wide_picture_keeps_its_form_in_the_middle_of_a_white_square() -> None:
    composed = np.asarray(compose_on_white(Image.new("RGBA", (40, 20), (0, 0, 255, 255)), 20)).astype(int)
    assert composed.shape == (20, 20, 3)
    assert (abs(composed[7:13] - [0, 0, 255]) <= 20).all()
    assert (composed[[0, 2, 17, 19]] >= 235).all()


def test_skin_tones_are_of_the_category_of_their_picture_and_folders_have_plain_names() -> None:
    categories = read_categories(json.dumps(LISTING).encode())
    assert categories["1f44b-1f3fc"] == "People & Body"
    assert name_class("People & Body") == "people-body"


def test_pictures_go_into_class_folders_without_equal_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red, green, blue = (png(color) for color in ((255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)))
    packages = tmp_path / "packages"
    write_package(packages, "apple", {"1f600.png": red, "1f44b.png": green, "1f3fb.png": blue, "feed.png": blue})
    write_package(packages, "google", {"1f600.png": blue, "1f44b-1f3fb.png": green})
    out = tmp_path / "out"
    words = [str(out), "--size", "32", "--packages", str(packages), "--vendors", "apple,google"]
    assert pictures.main(words) == 0
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert files == [
        "people-body/apple-1f44b.png",
        "smileys-emotion/apple-1f600.png",
        "smileys-emotion/google-1f600.png",
    ]
    said = capsys.readouterr().out
    assert said.splitlines()[-3].split() == ["all", "2", "1", "3"]
    assert "1 equal to another one, 1 without a class" in said
    assert "Apple, all rights reserved" in said
    with Image.open(out / "smileys-emotion/apple-1f600.png") as picture:
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (32, 32), (255, 255, 255))
    assert prepare.main(["folder", str(tmp_path / "data"), "--from", str(out), "--size", "32", "--jobs", "1"]) == 0
    assert pictures.main(words) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (None, 2, ["no command npm", "Node.js", "--packages"]),
        ("echo 'npm error: no network' >&2; exit 1", 1, ["exit code 1", "npm error: no network", "again"]),
        ("exit 0", 1, ["left no file emoji-datasource-apple"]),
    ],
)
def test_a_failed_download_is_said_in_a_sentence_and_leaves_nothing(
    command: str | None,
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if command is not None:
        (programs / "npm").write_text(f"#!/bin/sh\n{command}\n")
        (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert pictures.main([str(tmp_path / "out"), "--packages", str(tmp_path / "packages")]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words)
    assert not (tmp_path / "out").exists()
    assert not any((tmp_path / "packages").iterdir())


def test_a_damaged_package_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_package(tmp_path, "apple", {"1f600.png": png((255, 0, 0, 255))})
    archive = tmp_path / "emoji-datasource-apple-16.0.0.tgz"
    archive.write_bytes(archive.read_bytes()[:200])
    words = [str(tmp_path / "out"), "--packages", str(tmp_path), "--vendors", "apple"]
    assert pictures.main(words) == 2
    assert str(archive) in capsys.readouterr().err
    write_package(tmp_path, "apple", {})
    assert pictures.main(words) == 2
    assert "has no pictures" in capsys.readouterr().err


def test_an_unknown_vendor_is_refused_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures.main([str(tmp_path / "out"), "--vendors", "appel"]) == 2
    assert "did you mean apple." in capsys.readouterr().err
