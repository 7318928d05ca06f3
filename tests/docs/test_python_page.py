"""Every block of docs/python.md is executed, in order, on small runs of the names that the page uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist import export
from tests.docs.pages import ROOT, fenced_blocks
from tests.helpers.arrays import write_arrays
from tests.helpers.trained import labelled_images, trained

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/demo and runs/digits-conditional."""
    folder = tmp_path_factory.mktemp("page")
    trained(folder, labelled_images(folder / "images", "classes"), "demo")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    write_arrays(folder / "digits" / "train", x, np.arange(60) % 10, classes=DIGITS)
    trained(folder, folder / "digits", "digits-conditional", model__condition="classes")
    return folder


def test_every_block_runs(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project)
    names: dict[str, Any] = {}
    blocks = fenced_blocks(PAGE)
    assert {language for language, _ in blocks} == {"python", "sh"}
    for language, content in blocks:
        if language == "sh":
            words = shlex.split(content)
            assert words[:3] == ["python", "-m", "ali_dist.export"]
            assert export.main(words[3:]) == 0
        else:
            exec(compile(content, "docs/python.md", "exec"), names)
    shown = capsys.readouterr().out
    assert re.search(r"'demo': images 8x8", shown)
    assert "sample 5, has the value" in shown
    assert (project / "reconstruction.png").is_file()


def test_the_page_speaks_of_every_method() -> None:
    """What a model can do is not left out of its page."""
    from ali_dist.inference.trained_model import TrainedModel

    for name in vars(TrainedModel):
        if callable(getattr(TrainedModel, name)) and not name.startswith("_"):
            assert f"{name}(" in PAGE or f"`{name}" in PAGE, name
