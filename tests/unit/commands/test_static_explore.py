"""explore --static: what the page that it writes carries, and what it refuses. The networks need no ONNX here."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import pytest

from ali_dist import explore
from ali_dist.exploration import static_page
from tests.helpers.trained import CLASSES
from tests.helpers.web_runtime import write_stand_in
from tests.unit.commands.conftest import refusal, succeed


@pytest.fixture(autouse=True)
def _no_onnx_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ali_dist.inference.graphs._ONNX_PACKAGES", ())
    monkeypatch.setattr(static_page, "_record_networks", lambda run: {"encoder": b"E" * 9, "decoder": b"D" * 9})


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return write_stand_in(tmp_path / "package")


def carried(page: str) -> dict[str, bytes]:
    """What a page carries, unpacked."""
    found = re.findall(r'<script id="packed-(\w+)" type="application/octet-stream">([^<]*)</script>', page)
    return {name: gzip.decompress(base64.b64decode(content)) for name, content in found}


def test_the_page_carries_what_it_needs_and_names_no_place(plain, folder, runtime, tmp_path, capsys):
    succeed(explore, plain, "--static", tmp_path / "page.html", "--runtime", runtime)
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    parts = carried(page)
    assert [*parts] == ["runtime", "loader", "wasm", "encoder", "decoder", "images", "features"]
    assert (parts["wasm"], parts["encoder"]) == (b"this is the wasm", b"E" * 9)
    assert len(parts["images"]) == 40 * 8 * 8
    assert "1.2.3&lt;/summary&gt; (MIT license)" in page
    assert all(f'"{name}"' in page for name in CLASSES)
    assert not re.findall(r"https?://", page)
    for place in (folder, tmp_path):
        assert str(place) not in page
    assert {path.name for path in tmp_path.iterdir()} == {"package", "page.html"}, "nothing is left behind"


def test_the_page_may_run_its_own_script_and_load_nothing(plain, runtime, tmp_path):
    succeed(explore, plain, "--static", tmp_path / "page.html", "--runtime", runtime)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert found
    assert page.index(found[0]) < page.index("<style>")
    policy = dict(part.split(" ", 1) for part in found[1].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert re.fullmatch(r"'sha256-\S+=' blob: 'wasm-unsafe-eval'", policy["script-src"])
    assert "connect-src" not in policy


def test_without_its_data_the_page_carries_no_images_and_no_reason(plain, runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "_read_images", lambda *_: (None, f"There is nothing in {tmp_path}."))
    succeed(explore, plain, "--static", tmp_path / "page.html", "--runtime", runtime)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [*carried(page)] == ["runtime", "loader", "wasm", "encoder", "decoder"]
    assert str(tmp_path) not in page


def test_an_older_page_is_replaced_in_one_step(plain, runtime, tmp_path):
    (tmp_path / "page.html").write_text("old")
    succeed(explore, plain, "--static", tmp_path / "page.html", "--runtime", runtime)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_places_that_cannot_be_written_are_refused(plain, runtime, tmp_path, capsys):
    def refuse(out: object) -> str:
        return refusal(capsys, explore, plain, "--static", out, "--runtime", runtime)

    assert "which is a folder: name a file in it" in refuse(tmp_path)
    assert "there is no folder" in refuse(tmp_path / "none" / "page.html")
    assert "must end in .html" in refuse(tmp_path / "page.txt")
    assert "written to a disk" in refuse("s3://bucket/page.html")


def test_a_runtime_that_is_missing_or_something_else_is_refused(plain, runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "page.html"
    assert "run `npm install onnxruntime-web`" in refusal(capsys, explore, plain, "--static", out)
    assert "no package.json" in refusal(capsys, explore, plain, "--static", out, "--runtime", tmp_path)
    (runtime / "dist/ort.wasm.min.mjs").unlink()
    sentence = refusal(capsys, explore, plain, "--static", out, "--runtime", runtime)
    assert "has no dist/ort.wasm.min.mjs" in sentence
    (runtime / "package.json").write_text('{"name": "other"}')
    assert "is of 'other'" in refusal(capsys, explore, plain, "--static", out, "--runtime", runtime)
    assert not out.exists()


def test_options_that_do_not_go_together_are_refused(plain, runtime, tmp_path, capsys):
    page = ("--static", tmp_path / "page.html", "--runtime", runtime)
    assert "give --static" in refusal(capsys, explore, plain, "--runtime", runtime)
    assert "--port is for" in refusal(capsys, explore, plain, *page, "--port", 8123)
    assert "--device is cuda" in refusal(capsys, explore, plain, *page, "--device", "cuda")


def test_models_that_a_page_cannot_carry_are_refused(plain, runtime, tmp_path, monkeypatch, capsys):
    page = ("--static", tmp_path / "page.html", "--runtime", runtime)
    monkeypatch.setattr(static_page, "MOST_MODEL_BYTES", 1000)
    assert "MB, but a page carries at most 0 MB: leave --static out" in refusal(capsys, explore, plain, *page)
    monkeypatch.setattr("ali_dist.inference.graphs._ONNX_PACKAGES", ("no_such_package",))
    assert "no_such_package" in refusal(capsys, explore, plain, *page)
    assert not (tmp_path / "page.html").exists()
