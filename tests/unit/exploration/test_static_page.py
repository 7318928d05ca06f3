"""The page without a server: what it carries, what it may do, and which models it is refused for."""

from __future__ import annotations

import base64
import dataclasses
import getpass
import gzip
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ali_dist
from ali_dist.errors import InputError, TrainingError
from ali_dist.exploration import static_page
from ali_dist.exploration.explorer import Explorer
from ali_dist.exploration.static_page import build_static_page, check_model
from ali_dist.exploration.web_runtime import read_runtime
from tests.helpers.explorers import pool_of, write_runtime
from tests.helpers.processes import ROOT
from tests.helpers.trained import CLASSES

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is missing")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runtime(tmp_path_factory.mktemp("runtime") / "package")


@pytest.fixture(scope="module")
def page(explorer: Explorer, package: Path) -> str:
    return build_static_page(explorer, read_runtime(package)).decode()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that need no recording, which takes seconds and the extra onnx."""
    monkeypatch.setattr(static_page, "_record_networks", lambda run: {"encoder": b"E", "decoder": b"G"})


def packed(page: str) -> Mapping[str, bytes]:
    """What a page carries, by its names, as the browser unpacks it."""
    held = re.findall(r'<script id="packed-(\w+)" type="application/octet-stream">([^<]*)</script>', page)
    return {name: gzip.decompress(base64.b64decode(content)) for name, content in held}


def facts(page: str, name: str) -> Any:
    found = re.search(f'<script id="{name}" type="application/json">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


@needs_onnx
def test_it_carries_the_library_the_networks_and_the_images(page, package, explorer):
    carried = packed(page)
    assert carried.keys() == {"runtime", "loader", "wasm", "encoder", "decoder", "images", "features"}
    assert all(carried[name] == content for name, content in read_runtime(package).files.items())
    count = len(explorer.pool)
    assert len(carried["images"]) == count * 8 * 8
    assert (np.frombuffer(carried["images"], np.uint8) == explorer.pool.x.numpy().ravel()).all()
    features = np.frombuffer(carried["features"], np.float32).reshape(count, -1)
    assert (features == explorer.pool.features.numpy()).all()
    assert (features[:, : explorer.model.latent_size] == explorer.pool.mu.numpy()).all()
    about = facts(page, "model-facts")
    assert about["shape"] == [1, 8, 8]
    assert about["latentSize"] == explorer.model.latent_size
    assert len(about["pool"]["names"]) == count
    assert set(about["pool"]["names"]) == set(CLASSES)


@needs_onnx
def test_its_policy_allows_its_own_script_and_style_and_no_connection(page):
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    assert policy
    assert page.index(policy[0]) < page.index("<style>")  # what stands before it would not be bound by it
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    (script,), (style,) = (
        re.findall(r"<script>(.*?)</script>", page, re.DOTALL),
        re.findall(r"<style>(.*?)</style>", page, re.DOTALL),
    )
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'{hash_of(script)}' blob: 'wasm-unsafe-eval'",
        "style-src": f"'{hash_of(style)}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.search(r"\bon\w+=|style=|javascript:|https?://", re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", page))


@needs_onnx
def test_it_names_no_place_and_nobody_of_this_machine(page, folder, package):
    everything = page.encode() + b"".join(packed(page).values())
    places = {str(folder), str(package.parent), str(ROOT), str(Path.home()) + "/", "site-packages", "ali_dist/"}
    for place in (*places, *({getpass.getuser()} - {"root"})):
        assert place.encode() not in everything, place


@pytest.mark.usefixtures("_quick")
def test_the_same_model_makes_the_same_page(explorer, package):
    first, second = (build_static_page(explorer, read_runtime(package)) for _ in range(2))
    assert first == second


@pytest.mark.usefixtures("_quick")
def test_of_many_images_it_carries_some_evenly_spaced(explorer, package, monkeypatch):
    monkeypatch.setattr(static_page, "MOST_IMAGES", 7)
    page = build_static_page(explorer, read_runtime(package)).decode()
    images = np.frombuffer(packed(page)["images"], np.uint8).reshape(7, -1)
    everything = explorer.pool.x.numpy().reshape(len(explorer.pool), -1)
    assert (images[[0, -1]] == everything[[0, -1]]).all()
    assert "among 7 of the 96 images of &#x27;train&#x27;" in page
    monkeypatch.setattr(static_page, "_MOST_IMAGE_BYTES", 1)
    page = build_static_page(explorer, read_runtime(package)).decode()
    assert len(facts(page, "model-facts")["pool"]["names"]) == 1


@pytest.mark.usefixtures("_quick")
def test_without_data_it_says_so_and_carries_no_images(without_data, package):
    page = build_static_page(without_data, read_runtime(package)).decode()
    assert packed(page).keys() == {"runtime", "loader", "wasm", "encoder", "decoder"}
    assert facts(page, "model-facts")["pool"] is None
    assert "The data could not be read: they were not at hand where this page was made." in page


@pytest.mark.usefixtures("_quick")
def test_conditions_of_its_images_go_along(by_attributes, package):
    page = build_static_page(by_attributes, read_runtime(package)).decode()
    assert facts(page, "model-facts")["pool"]["conditions"] == by_attributes.pool.c.tolist()


@pytest.mark.usefixtures("_quick")
def test_names_are_text_and_never_html(run, package):
    model = ali_dist.load(run, device="cpu")
    pool = pool_of(model)
    evil = "</script><img src=x>"
    explorer = Explorer(model, dataclasses.replace(pool, origins=(evil,) * len(pool)))
    runtime = dataclasses.replace(read_runtime(package), version=evil, license_name=evil)
    page = build_static_page(explorer, runtime).decode()
    assert "<img src=x>" not in page
    assert evil in facts(page, "model-facts")["pool"]["names"][0]


@needs_onnx
def test_networks_that_differ_once_recorded_make_no_page(explorer, package, monkeypatch):
    monkeypatch.setattr("ali_dist.inference.graphs.MOST_DIFFERENCE", -1.0)
    with pytest.raises(TrainingError, match="so nothing was written: leave --static out, and the page is served"):
        build_static_page(explorer, read_runtime(package))


def test_a_model_that_is_too_large_is_refused(explorer, monkeypatch):
    check_model(explorer.model.run)
    monkeypatch.setattr(static_page, "MOST_MODEL_BYTES", 1_000)
    with pytest.raises(
        InputError, match=r"of run 'plain' have \d+ MB, but a page carries at most 0 MB: leave --static"
    ):
        check_model(explorer.model.run)


def test_images_that_are_no_squares_are_refused(explorer):
    run = explorer.model.run
    wide = dataclasses.replace(run, spec=dataclasses.replace(run.spec, shape=(1, 8, 6)))
    with pytest.raises(InputError, match="is for square images, but those of run 'plain' are 8x6: leave --static out"):
        check_model(wide)


def test_an_encoder_that_draws_numbers_of_its_own_is_refused(explorer):
    run = explorer.model.run
    config = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, encoder="implicit"))
    with pytest.raises(InputError, match="but model.encoder of run 'plain' is 'implicit': leave --static out"):
        check_model(dataclasses.replace(run, config=config))


def hash_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
