"""The explorer's page in a real browser: what a user does with it, and what then is to be seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ali_dist
from ali_dist.exploration.explorer import Explorer, Point
from tests.helpers.chromium import BROWSER, Tab, open_tab
from tests.helpers.explorers import Client, drag_slider, pool_of, serving, shown_after, source
from tests.helpers.trained import labelled_images, run_folder, trained

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

_IMAGES = "[...document.querySelectorAll('#strip img')].map((image) => image.src)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def explorer_of(folder: Path, labels: str, **changes: Any) -> Explorer:
    data = labelled_images(folder / "images", labels)
    model = ali_dist.load(run_folder(trained(folder, data, "explored", **changes)), device="cpu")
    return Explorer(model, pool_of(model, count=60))


def picture_file(folder: Path, name: str, seed: int) -> Path:
    path = folder / name
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def open_page(tab: Tab, client: Client) -> None:
    tab.complaints.clear()
    tab.send("Page.navigate", url=client.server.url)
    tab.wait_for("document.getElementById('picture')?.complete && document.getElementById('picture').naturalWidth")


def test_what_a_user_does_is_answered(tab: Tab, tmp_path: Path) -> None:
    explorer = explorer_of(tmp_path, "classes")
    chosen, dropped = (picture_file(tmp_path, f"{name}.png", seed) for seed, name in enumerate(("chosen", "dropped")))
    with serving(explorer) as client:
        open_page(tab, client)
        first = tab.run(source("picture"))
        assert first == explorer.decode(_center(explorer))["image"]

        # A slider is really pulled, by the mouse.
        tab.run("document.querySelector('[data-component=\"0\"]').scrollIntoView({block: 'center'})")
        box = tab.run(
            "(({x, y, width, height}) => [x + width / 2, y + height / 2, width])"
            "(document.querySelector('[data-component=\"0\"]').getBoundingClientRect())"
        )
        for kind, x in (("mousePressed", box[0]), ("mouseMoved", box[0] + box[2] / 4), ("mouseReleased", box[0] + 9)):
            tab.send("Input.dispatchMouseEvent", type=kind, x=x, y=box[1], button="left", buttons=1, clickCount=1)
        moved = shown_after(tab, "picture", first)
        value = tab.run("document.querySelector('[data-component=\"0\"]').valueAsNumber")
        assert value > 0

        # A class's slider moves the others with it, and back again.
        drag_slider(tab, '[data-label="2"]', 1.5)
        with_class = shown_after(tab, "picture", moved)
        drag_slider(tab, '[data-label="2"]', 0)
        shown_after(tab, "picture", with_class)
        assert tab.run("document.querySelector('[data-component=\"0\"]').valueAsNumber") == pytest.approx(value)
        tab.run("document.getElementById('reset').click()")
        tab.wait_for(f"{source('picture')} == {first!r}")

        tab.choose_file("#file", chosen)
        tab.wait_for("!document.getElementById('pair').hidden")
        expected = explorer.encode_picture(chosen.read_bytes(), None)
        assert tab.run(source("reconstruction")) == expected["reconstruction"]
        assert tab.run("document.getElementById('pair-text').textContent").startswith(
            f"chosen.png: mean squared error {expected['error']:.4f}"
        )
        tab.wait_for(f"{source('picture')} == {expected['reconstruction']!r}")
        tab.drop_file("#now", dropped)
        expected = explorer.encode_picture(dropped.read_bytes(), None)
        tab.wait_for(f"{source('picture')} == {expected['reconstruction']!r}")

        tab.run("document.getElementById('first-current').click()")
        tab.choose_file("#last-file", chosen)
        ends = [expected["reconstruction"], explorer.encode_picture(chosen.read_bytes(), None)["image"]]
        tab.wait_for(f"{source('first-picture')} == {ends[0]!r} && {source('last-picture')} == {ends[1]!r}")
        strip = tab.wait_for(f"{_IMAGES}.length == 11 && {_IMAGES}")
        drag_slider(tab, "#steps", 5)
        tab.wait_for(f"{_IMAGES}.length == 5")
        assert len(set(strip)) == 11

        neighbors = explorer.neighbors(_point(explorer, expected["z"]))["neighbors"]
        nearest = neighbors[0]["image"]
        tab.wait_for(f"document.querySelector('#neighbors img')?.src == {nearest!r}")
        tab.run("document.querySelector('#neighbors button').click()")
        tab.wait_for("document.getElementById('source').textContent.startsWith('z = µ(x) of an image of the data')")
        tab.run("document.getElementById('random').click()")
        tab.wait_for("document.getElementById('source').textContent.startsWith('z from the prior, seed ')")
        for value in (1, 2):  # a seed no longer gives what is shown, which is said once
            drag_slider(tab, '[data-component="0"]', value)
        assert tab.run("document.getElementById('source').textContent.split(', then moved').length") == 2
        time.sleep(0.5)  # what is asked for after a pause
        assert tab.run("document.getElementById('trouble').textContent") == ""
        assert tab.complaints == []


def test_a_picture_that_cannot_be_used_is_said_and_the_page_goes_on(tab: Tab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    explorer = explorer_of(tmp_path, "attributes", model__condition="attributes")
    with serving(explorer) as client:
        open_page(tab, client)
        tab.choose_file("#file", bad)
        tab.wait_for("document.getElementById('trouble').textContent.startsWith('The picture cannot be used (')")
        assert tab.run("document.getElementById('pair').hidden")
        before = tab.run(source("picture"))
        tab.run("document.querySelector('[data-attribute=\"1\"]').click()")
        shown_after(tab, "picture", before)
        tab.choose_file("#file", picture_file(tmp_path, "good.png", 3))
        tab.wait_for("!document.getElementById('pair').hidden")
        text = tab.run("document.getElementById('pair-text').textContent")
        assert text.startswith("good.png under the condition that was chosen: mean squared error ")
        assert tab.run("document.getElementById('trouble').textContent") == ""
    drag_slider(tab, '[data-component="0"]', 2)
    tab.wait_for("document.getElementById('trouble').textContent.startsWith('The explorer does not answer')")


def _point(explorer: Explorer, z: list[float]) -> Point:
    return Point(torch.tensor(z), explorer.usual_condition)


def _center(explorer: Explorer) -> Point:
    return _point(explorer, [round(value, 7) for value in explorer.components.center.tolist()])
