"""Small trained runs, plain, without data, and conditional, opened as an explorer opens them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import ali_dist
from ali_dist.exploration.explorer import Explorer
from tests.helpers.explorers import Client, pool_of, serving
from tests.helpers.trained import labelled_images, run_folder, trained


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explored")


@pytest.fixture(scope="session")
def run(folder: Path) -> Path:
    """The folder of a run on labelled images of one channel."""
    return run_folder(trained(folder, labelled_images(folder / "images", "classes"), "plain"))


@pytest.fixture(scope="session")
def explorer(run: Path) -> Explorer:
    model = ali_dist.load(run, device="cpu")
    return Explorer(model, pool_of(model))


@pytest.fixture(scope="session")
def without_data(run: Path) -> Explorer:
    return Explorer(ali_dist.load(run, device="cpu"), None)


@pytest.fixture(scope="session")
def by_attributes(folder: Path) -> Explorer:
    data = labelled_images(folder / "attributes", "attributes")
    config = trained(folder, data, "by-attributes", model__condition="attributes")
    model = ali_dist.load(run_folder(config), device="cpu")
    return Explorer(model, pool_of(model))


@pytest.fixture(scope="session")
def client(explorer: Explorer) -> Iterator[Client]:
    with serving(explorer) as asking:
        yield asking


@pytest.fixture
def is_valid_png() -> Callable[[str], tuple[int, int]]:
    """A function that decodes a `data:` url of a PNG, and gives its size."""

    def size_of(url: str) -> tuple[int, int]:
        kind, _, content = url.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            image.load()
            return image.size

    return size_of
