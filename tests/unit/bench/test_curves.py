"""The curves of runs for the docs: one line a run in each panel, whole XML, and clear words for a wrong folder."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import curves

LINE = "{http://www.w3.org/2000/svg}polyline"


def write_run(folder: Path, name: str) -> str:
    run = folder / name
    run.mkdir()
    records = [{"event": "start", "images": 0}]
    for images in (100, 200, 300):
        records.append({"event": "train", "images": images, "d_loss": 0.5, "g_loss": 1.0, "penalty": 0.1, "cycle": 2.0})
        records.append({"event": "watch", "images": images, "latent_kl": 0.2, "sigma": "NaN"})
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(run)


def test_every_run_has_a_line_in_each_panel_that_has_numbers(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name) for name in ("64 px", "128 <px>")]
    assert curves.main([*runs, "--out", str(tmp_path / "curves.svg")]) == 0
    picture = ElementTree.parse(tmp_path / "curves.svg").getroot()
    lines = [line.attrib["class"].split()[-1] for line in picture.iter(LINE)]
    assert lines == ["c0", "c1"] * (len(curves.PANELS) - 1), "no run has a finite σ"
    assert "128 <px>" in "".join(picture.itertext())


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curves.main([str(tmp_path / "other"), "--out", str(tmp_path / "curves.svg")]) == 2
    assert "RUN must be the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "curves.svg").exists()
