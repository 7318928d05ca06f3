"""The explorer as one file, opened without a server: what it shows is what the run's own networks give.

It needs Chromium; and most of it the extra onnx, and the npm package onnxruntime-web, unpacked in the folder that
ALI_ONNXRUNTIME_WEB names.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ali_dist
from ali_dist import explore
from ali_dist.exploration import static_page
from ali_dist.exploration.explorer import Explorer, Point
from tests.helpers.chromium import BROWSER, Tab, open_tab
from tests.helpers.explorers import drag_slider, pool_of, shown_after, source, write_runtime
from tests.helpers.trained import CLASSES, COUNTS, labelled_images, run_folder, trained

RUNTIME = os.environ.get("ALI_ONNXRUNTIME_WEB", "")
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

_LEVEL = 1  # of 255: two libraries round the same sum to one side and the other
_STRIP = "[...document.querySelectorAll('#strip img')].map((image) => image.src)"


@pytest.fixture(scope="module")
def runtime() -> str:
    """The folder of the library that computes in the browser."""
    if not HAS_ONNX:
        pytest.skip("the extra onnx is missing")
    if not RUNTIME:
        pytest.skip("ALI_ONNXRUNTIME_WEB names no folder with onnxruntime-web")
    return RUNTIME


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium")) as opened:
        opened.send("Network.enable")
        opened.send(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        yield opened


def write_page(folder: Path, runtime: str, **changes: Any) -> tuple[Path, Explorer]:
    """A page of all the images that a run holds out, and the explorer that it must agree with."""
    run = run_folder(trained(folder, labelled_images(folder / "images", "classes"), "paged", **changes))
    out = folder / "page.html"
    assert explore.main([str(run), "--static", str(out), "--runtime", runtime]) == 0
    model = ali_dist.load(run, device="cpu")
    return out, Explorer(model, pool_of(model, "test", COUNTS["test"]))


def open_page(tab: Tab, page: Path) -> None:
    tab.complaints.clear()
    tab.send("Page.navigate", url=page.as_uri())
    tab.wait_for("document.querySelector('.status')?.textContent == 'explorer'")
    tab.wait_for("document.getElementById('picture').naturalWidth")


def click(tab: Tab, selector: str) -> None:
    tab.run(f"document.querySelector({selector!r}).click()")


def pixels(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def is_near(shown: str, expected: str) -> bool:
    """Whether two `data:` urls are the same picture, but for rounding."""
    a, b = pixels(shown), pixels(expected)
    return a.shape == b.shape and int(np.abs(a - b).max()) <= _LEVEL


def ask(tab: Tab, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's networks answer to what page.js may ask."""
    return tab.run(f"askExplorer({path!r}, {json.dumps(content)})")


def picture_file(folder: Path, name: str, size: tuple[int, int], **changes: Any) -> Path:
    """A photograph's likeness: smooth, in color, and not square."""
    height, width = size
    y, x = np.mgrid[:height, :width] / 20
    colors = np.stack([np.sin(x + y), np.cos(x), np.sin(y * x / 3)], axis=2)
    Image.fromarray(((colors + 1) * 127.5).astype(np.uint8)).save(folder / name, **changes)
    return folder / name


def test_without_a_server_it_shows_what_the_run_gives(tab: Tab, runtime: str, tmp_path: Path) -> None:
    page, explorer = write_page(tmp_path, runtime)
    open_page(tab, page)
    center = [round(value, 7) for value in explorer.components.center.tolist()]
    first = tab.run(source("picture"))
    assert is_near(first, explorer.decode(Point(torch.tensor(center), None))["image"])

    # A slider moves z along its component.
    drag_slider(tab, '[data-component="0"]', 2)
    moved = shown_after(tab, "picture", first)
    z = torch.tensor(center) + 2 * explorer.components.std[0] * explorer.components.vectors[0]
    assert is_near(moved, explorer.decode(Point(z, None))["image"])
    assert not is_near(moved, first)

    # A picture of one's own is seen as prepare would see it, and encoded.
    file = picture_file(tmp_path, "mine.png", (37, 61))
    expected = explorer.encode_picture(file.read_bytes(), None)
    tab.choose_file("#file", file)
    tab.wait_for("!document.getElementById('pair').hidden")
    assert is_near(tab.run(source("original")), expected["image"])
    assert is_near(tab.run(source("reconstruction")), expected["reconstruction"])
    said = tab.run("document.getElementById('pair-text').textContent")
    assert float(said.split("mean squared error ")[1].split(",")[0]) == pytest.approx(expected["error"], abs=2e-3)

    # The walk goes from one end to the other.
    ends = [explorer.show_image(place) for place in (3, 11)]
    for spherical in (False, True):
        request = {"first": {"z": ends[0]["z"]}, "last": {"z": ends[1]["z"]}, "steps": 5, "spherical": spherical}
        points = [Point(torch.tensor(end["z"]), None) for end in ends]
        wanted = explorer.walk(points[0], points[1], 5, spherical=spherical)["images"]
        walked = ask(tab, "/walk", request)["images"]
        assert all(is_near(one, other) for one, other in zip(walked, wanted, strict=True))
    assert len(tab.wait_for(f"{_STRIP}.length == 11 && {_STRIP}")) == 11

    # What is nearest, in the same order, by the same distances, under the same names.
    tab.wait_for("document.querySelectorAll('#neighbors img').length")
    nearest = explorer.neighbors(Point(torch.tensor(ends[0]["z"]), None))["neighbors"]
    found = ask(tab, "/neighbors", {"z": ends[0]["z"]})["neighbors"]
    assert [one["place"] for one in found] == [one["place"] for one in nearest]
    assert [one["name"] for one in found] == [one["name"] for one in nearest]
    assert [one["distance"] for one in found] == pytest.approx([one["distance"] for one in nearest], abs=1e-4)
    assert all(is_near(one["image"], other["image"]) for one, other in zip(found, nearest, strict=True))
    click(tab, "#neighbors button")
    tab.wait_for("document.getElementById('source').textContent.startsWith('z = µ(x) of an image of the data')")

    before = tab.run(source("picture"))
    click(tab, "#random")
    shown_after(tab, "picture", before)
    assert tab.run("document.getElementById('source').textContent") == "z from the prior"
    draws = tab.run("Promise.all(Array.from({length: 500}, () => askExplorer('/draw')))")
    drawn = np.array([draw["z"] for draw in draws])
    assert abs(drawn.mean()) < 0.1  # of 2,000 numbers or more from N(0, 1): over four standard errors
    assert drawn.std() == pytest.approx(1, abs=0.08)

    assert tab.run("document.getElementById('trouble').textContent") == ""
    assert tab.complaints == []


def test_a_conditional_page_takes_conditions_and_refuses_what_is_no_picture(
    tab: Tab, runtime: str, tmp_path: Path
) -> None:
    page, explorer = write_page(tmp_path, runtime, model__condition="classes")
    open_page(tab, page)
    before = tab.run(source("picture"))
    tab.run(
        "(() => { const choice = document.getElementById('class'); choice.value = 2;"
        " choice.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    chosen = shown_after(tab, "picture", before)
    center = torch.tensor([round(value, 7) for value in explorer.components.center.tolist()])
    c = torch.eye(len(CLASSES))[2]
    assert is_near(chosen, explorer.decode(Point(center, c))["image"])

    file = picture_file(tmp_path, "turned.jpg", (24, 16), quality=95, exif=_turned())
    expected = explorer.encode_picture(file.read_bytes(), c)
    tab.choose_file("#file", file)
    tab.wait_for("!document.getElementById('pair').hidden")
    shown, wanted = pixels(tab.run(source("original"))), pixels(expected["image"])
    assert np.abs(shown - wanted).mean() < 2  # two decoders of JPEG differ by more than rounding

    answer = ask(tab, "/image", {"place": 5})
    assert answer["c"] == explorer.show_image(5)["c"]
    assert is_near(answer["reconstruction"], explorer.show_image(5)["reconstruction"])

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    tab.choose_file("#file", bad)
    tab.wait_for("document.getElementById('trouble').textContent.startsWith('The picture cannot be used (')")
    assert tab.complaints == []


def test_a_page_without_data_works_all_the_same(tab: Tab, runtime: str, tmp_path: Path) -> None:
    run = run_folder(trained(tmp_path, labelled_images(tmp_path / "images", "classes"), "alone"))
    (tmp_path / "images").rename(tmp_path / "hidden")
    page = tmp_path / "page.html"
    assert explore.main([str(run), "--static", str(page), "--runtime", runtime]) == 0
    open_page(tab, page)
    tab.wait_for(f"{_STRIP}.length == 11")
    assert tab.complaints == []


def test_networks_that_do_not_start_are_said_in_a_sentence(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ali_dist.inference.graphs._ONNX_PACKAGES", ())
    monkeypatch.setattr(static_page, "_record_networks", lambda run: {"encoder": b"E", "decoder": b"G"})
    page, _ = write_page(tmp_path, str(write_runtime(tmp_path / "package")))
    tab.send("Page.navigate", url=page.as_uri())
    tab.wait_for("document.querySelector('.status')?.textContent == 'not running'")
    said = tab.wait_for("document.getElementById('trouble').textContent")
    assert said.startswith("The networks do not run in this browser (")
    assert said.endswith("): take a newer one.")
    assert said.count("The networks") == 1


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    return exif
