"""docs/notebook.ipynb: every cell is executed, in order, on a small run; Jupyter is not needed for that.

Run: `make test ARGS=tests/docs/test_notebook.py`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from tests.docs.pages import ROOT
from tests.helpers.trained import labelled_images, trained

PATH = ROOT / "docs" / "notebook.ipynb"
METHODS = ("sample", "reconstruct", "interpolate", "encode", "score")


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))


def code_of(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    """The name and the content of every cell of code."""
    return [(cell["id"], "".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs_and_draws(
    notebook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, labelled_images(tmp_path / "data" / "digits", "classes"), "demo")
    monkeypatch.chdir(tmp_path)
    figures: list[int] = []
    with mpl.rc_context():
        mpl.use("Agg")
        plt.close("all")
        names: dict[str, Any] = {}
        for name, content in code_of(notebook):
            exec(compile(content, f"{PATH.name}, {name}", "exec"), names)
            figures.append(len(plt.get_fignums()))
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")
    assert "'demo': images 8x8" in capsys.readouterr().out
    assert figures[-1] == 6
    assert names["paths"].shape == (4, 9, 8, 8)
    assert names["z"].shape == (40, 4)
    assert set(names["logits"]) == {"held-out images", "samples", "noise"}


def test_it_shows_what_a_model_can_do_and_holds_no_output(notebook: dict[str, Any]) -> None:
    """Outputs would be of somebody's machine, and outdated by the next change."""
    code = "\n".join(content for _, content in code_of(notebook))
    assert all(f"model.{method}(" in code for method in METHODS)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
