"""The page without a server in a real browser, opened as a file: it shows what the networks give in Python.

It needs onnxruntime-web in the folder that ALI_ONNXRUNTIME_WEB names, or in node_modules of the checkout; nothing is
downloaded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ali_dist
from ali_dist import explore
from ali_dist.exploration.explorer import Explorer, Point
from tests.helpers.chromium import BROWSER, Tab, open_tab
from tests.helpers.explorers import pool_of
from tests.helpers.trained import labelled_images, run_folder, trained
from tests.helpers.web_runtime import FOLDER, HAS_ONNX, NO_FOLDER

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(FOLDER is None, reason=NO_FOLDER),
    pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is missing"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def open_static(tab: Tab, folder: Path, labels: str, **changes: Any) -> Explorer:
    """Train a run, write its page and open it; gives the explorer of the same images."""
    data = labelled_images(folder / "images", labels)
    run = run_folder(trained(folder, data, "explored", **changes))
    page = folder / "page.html"
    assert explore.main([str(run), "--static", str(page), "--runtime", str(FOLDER)]) == 0
    tab.complaints.clear()
    tab.send("Page.navigate", url=page.as_uri())
    tab.wait_for("document.getElementById('picture')?.complete && document.getElementById('picture').naturalWidth")
    model = ali_dist.load(run, device="cpu")
    return Explorer(model, pool_of(model, "test", 40))


def source(name: str) -> str:
    return f"document.getElementById('{name}').src"


def pixels(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def difference(one: str, other: str) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def point_of_center(explorer: Explorer, component: int, distance: float) -> Point:
    found = explorer.components
    return Point(found.center + distance * found.std[component] * found.vectors[component], explorer.usual_condition)


def test_a_slider_moves_the_picture_to_what_python_decodes(tab: Tab, tmp_path: Path) -> None:
    explorer = open_static(tab, tmp_path, "classes")
    first = tab.run(source("picture"))
    assert difference(first, explorer.decode(point_of_center(explorer, 0, 0))["image"]) <= 1
    tab.run(
        "(() => { const slider = document.querySelector('[data-component=\"1\"]'); slider.value = 2.5;"
        " slider.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    moved = tab.wait_for(f"{source('picture')} != {first!r} && {source('picture')}")
    assert difference(moved, explorer.decode(point_of_center(explorer, 1, 2.5))["image"]) <= 1
    assert difference(moved, first) > 1
    assert tab.run("document.getElementById('trouble').textContent") == ""
    assert tab.complaints == []


def test_pictures_are_reconstructed_and_compared_as_in_python(tab: Tab, tmp_path: Path) -> None:
    explorer = open_static(tab, tmp_path, "classes")
    file = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 20, 3), dtype=np.uint8)).save(file)
    tab.choose_file("#file", file)
    tab.wait_for("!document.getElementById('pair').hidden")
    expected = explorer.encode_picture(file.read_bytes(), None)
    assert difference(tab.run(source("original")), expected["image"]) <= 2
    assert difference(tab.run(source("reconstruction")), expected["reconstruction"]) <= 2

    z = explorer.pool.mu[3] if explorer.pool else torch.zeros(4)
    found = explorer.neighbors(Point(z, None))["neighbors"]
    asked = f"askExplorer('/neighbors', {{z: {z.tolist()}, c: null}}).then((answer) => answer.neighbors)"
    given = tab.run(asked)
    assert [one["place"] for one in given] == [one["place"] for one in found]
    assert [one["distance"] for one in given] == pytest.approx([one["distance"] for one in found], abs=1e-4)

    ends = {"first": Point(z, None), "last": Point(-z + 0.5, None)}
    words = ", ".join(f"{name}: {{z: {end.z.tolist()}, c: null}}" for name, end in ends.items())
    for spherical in (False, True):
        walked = tab.run(
            f"askExplorer('/walk', {{{words}, steps: 5, spherical: {str(spherical).lower()}}})"
            ".then((answer) => answer.images)"
        )
        expected = explorer.walk(ends["first"], ends["last"], 5, spherical=spherical)["images"]
        assert max(map(difference, walked, expected)) <= 1
    assert tab.complaints == []


def test_a_conditional_model_takes_its_condition_and_bad_files_are_said(tab: Tab, tmp_path: Path) -> None:
    explorer = open_static(tab, tmp_path, "attributes", model__condition="attributes")
    before = tab.run(source("picture"))
    tab.run("document.querySelector('[data-attribute=\"1\"]').click()")
    after = tab.wait_for(f"{source('picture')} != {before!r} && {source('picture')}")
    point = point_of_center(explorer, 0, 0)
    assert point.c is not None
    c = point.c.clone()
    c[1] = 1 - c[1]
    assert difference(after, explorer.decode(Point(point.z, c))["image"]) <= 1
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    tab.choose_file("#file", bad)
    tab.wait_for("document.getElementById('trouble').textContent.startsWith('The picture cannot be used (')")
