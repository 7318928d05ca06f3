"""What is read of onnxruntime-web, and how what is no such package is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ali_dist.errors import InputError
from ali_dist.exploration.web_runtime import FILES, USUAL_FOLDER, read_runtime
from tests.helpers.explorers import write_runtime


def test_what_a_page_carries_is_read_with_its_version_and_license(tmp_path):
    runtime = read_runtime(write_runtime(tmp_path / "package"))
    assert (runtime.version, runtime.license_name) == ("1.2.3", "MIT")
    assert runtime.files.keys() == FILES.keys()
    assert all(FILES[name].encode() in content for name, content in runtime.files.items())


def test_without_a_name_it_is_where_npm_puts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no node_modules/onnxruntime-web .*`npm install onnxruntime-web`"):
        read_runtime()
    write_runtime(tmp_path / USUAL_FOLDER)
    assert read_runtime().version == "1.2.3"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "it has no package.json that can be read"),
        ("[" * 100_000, "it has no package.json that can be read"),
        ("[]", "its package.json is of '[]'"),
        (json.dumps({"name": "onnxruntime-node"}), "its package.json is of 'onnxruntime-node'"),
    ],
)
def test_another_package_is_refused(tmp_path, content, reason):
    folder = write_runtime(tmp_path / "package")
    (folder / "package.json").write_text(content)
    assert reason in sentence_about(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "it has no package.json that can be read" in sentence_about(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "it has no package.json that can be read" in sentence_about(tmp_path / "file")


def test_files_that_are_missing_are_named(tmp_path):
    folder = write_runtime(tmp_path / "package")
    for name in ("wasm", "loader"):
        (folder / FILES[name]).unlink()
    assert f"version 1.2.3 of it has no {FILES['loader']} and no {FILES['wasm']}" in sentence_about(folder)


def sentence_about(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_runtime(folder)
    sentence = str(caught.value)
    assert sentence.startswith(f"--runtime is {str(folder)!r}, ")
    assert sentence.endswith("run `npm install onnxruntime-web`.")
    assert "\n" not in sentence
    return sentence
