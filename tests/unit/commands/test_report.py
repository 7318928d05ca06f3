"""python -m ali_dist.report: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.compare import main
from tests.unit.report.test_comparison import write_run


def test_two_runs_give_one_page_whose_path_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / name, name, [1.0, 2.0], {})) for name in ("one", "two")]
    out = tmp_path / "new" / "page.html"
    assert main([*folders, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "<title>one and two" in out.read_text(encoding="utf-8")


def test_names_are_looked_for_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name, name, [1.0], {})
    monkeypatch.chdir(tmp_path)
    assert main(["one", "two"]) == 0
    assert (tmp_path / "comparison.html").is_file()


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (["one"], "but 1 is given: give others. The page of a single run is report.html in its folder"),
        (["one"] * 5, "but 5 are given"),
        (["one", "none"], "There is no run"),
        (["one", "new"], "has no records yet"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[str], sentence: str
) -> None:
    write_run(tmp_path / "one", "one", [1.0], {})
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    out = tmp_path / "page.html"
    assert main([*(str(tmp_path / name) for name in runs), "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_in_place_of_the_page_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / name, name, [1.0], {})) for name in ("one", "two")]
    assert main([*folders, "--out", str(tmp_path)]) == 2
    assert "which is a folder" in capsys.readouterr().err
