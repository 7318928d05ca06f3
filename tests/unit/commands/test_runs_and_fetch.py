"""`ali runs` lists and compares runs, and `ali fetch` brings the report of one here, wherever they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ali_dist import fetch, list_runs
from ali_dist.config.closest_preset import find_closest_preset
from ali_dist.config.loading import from_mapping, load_preset, preset_names
from ali_dist.storage import OPENERS, open_store
from tests.helpers import memory_store
from tests.unit.commands.conftest import refusal, succeed

METRICS = {"frechet": 12.34, "frechet_reference": 1.0, "reconstruction_mse": 0.0123, "label_kept": 0.5}


def write_run(place: str, name: str, *, preset: str = "digits", config: dict | None = None, **summary) -> None:
    """Put the files of a run of 64,000 images below a folder or url; without a summary, it has just begun."""
    store = open_store(place)
    settings = from_mapping(load_preset(preset), {"run.name": name, "run.images": 64_000}, config or {})
    store.put(f"{name}/config.json", json.dumps(settings.to_mapping()).encode())
    store.put(f"{name}/checkpoints/step-000000001/state.json", b"{}")
    store.put(f"{name}/checkpoints/step-000000001/model.safetensors", b"weights")
    store.put(f"{name}/tensorboard/events", b"events")
    store.put(f"{name}/lease.json", b"{}")
    if summary:
        store.put(f"{name}/summary.json", json.dumps({"run": name, **summary}).encode())
        store.put(f"{name}/metrics.jsonl", b'{"images": 1}\n')
        store.put(f"{name}/report.html", b"<html>")
        store.put(f"{name}/images/samples-000064.png", b"png")


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path, monkeypatch) -> str:
    """Two runs and a half, on a disk and in an object store."""
    monkeypatch.setitem(OPENERS, memory_store.SCHEME, memory_store.open_memory)
    url = str(tmp_path / "runs") if request.param == "folder" else f"memory://{tmp_path.name}/{request.node.name}"
    write_run(url, "old", status="finished", images=64_000, metrics=METRICS, updated="2026-11-26T10:00:00+00:00")
    settings = {"optim.lr_d": 5e-5, "model.latent_size": 99}
    metrics = {**METRICS, "frechet": 9.0}
    times: dict[str, Any] = {"updated": "2026-11-27T09:30:11+00:00", "seconds": 90.0}
    write_run(url, "new", config=settings, status="running", images=32_000, metrics=metrics, **times)
    write_run(url, "begun", preset="mixture")
    write_run(f"{url}/sweep-x/trials", "000")
    open_store(url).put("exported/config.json", b'{"model_type": "ali_dist"}')
    return url


def rows_of(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line[:1].strip()}


def test_runs_are_listed_with_what_they_are_judged_by_the_latest_first(place, capsys):
    succeed(list_runs, place)
    table, _, note = capsys.readouterr().out.partition("\n\n")
    rows = rows_of(table)
    assert list(rows) == ["Run", "new", "old", "begun"]
    for word in ("digits +2", "running", "32,000 of 64,000", "9", "0.0123", "50.0 %", "2026-11-27 09:30"):
        assert word in rows["new"]
    for word in ("digits ", "finished", " 64,000 ", "12.34", "2026-11-26 10:00"):
        assert word in rows["old"]
    assert rows["begun"].split() == ["begun", "mixture", "begun", "?", "of", "64,000", "-", "-", "-", "-"]
    assert "digits +" not in rows["old"]
    assert "sweep-x/trials" in note  # and it can be listed itself
    succeed(list_runs, f"{place}/sweep-x/trials")
    assert "000" in rows_of(capsys.readouterr().out)


def test_runs_side_by_side_show_metrics_and_the_settings_that_differ(place, capsys, tmp_path):
    succeed(list_runs, place, "--compare", "old,new", "--json", tmp_path / "sub" / "x.json")
    results, settings = (rows_of(part) for part in capsys.readouterr().out.split("\n\n"))
    assert settings["Setting"].split() == ["Setting", "old", "new"]
    assert settings["model.latent_size"].split() == ["model.latent_size", "20", "99"]
    assert "optim.lr_d" in settings
    assert len(settings) == 3
    assert results["Status"].split() == ["Status", "finished", "running"]
    assert any(line.split()[-2:] == ["12.34", "9"] for line in results.values())
    written = json.loads((tmp_path / "sub" / "x.json").read_text())
    assert [run["name"] for run in written["runs"]] == ["old", "new"]
    assert written["runs"][1]["metrics"]["frechet"] == 9.0


def test_wrong_places_and_names_are_refused(place, capsys, tmp_path):
    assert "did you mean new; the runs there are: begun, new, old" in refusal(
        capsys, list_runs, place, "--compare", "old,nex"
    )
    assert "There are no runs in" in refusal(capsys, list_runs, tmp_path / "nothing")


def test_a_damaged_summary_hides_neither_the_run_nor_itself(tmp_path, capsys):
    write_run(str(tmp_path), "sick", status="running", images=1)
    (tmp_path / "sick" / "summary.json").write_text('{"status": ')
    succeed(list_runs, tmp_path)
    out = capsys.readouterr().out
    assert rows_of(out)["sick"].split()[:3] == ["sick", "digits", "begun"]
    assert "summary.json of 'sick' cannot be read" in out


@pytest.mark.parametrize("name", preset_names())
def test_a_run_is_known_by_its_preset_wherever_its_data_lie(name):
    own = {"run.name": "x", "data.url": "s3://b/data", "data.source": None, "scale.workers": "2"}
    config = from_mapping(load_preset(name), own).to_mapping()
    assert find_closest_preset(config) == (name, 0)
    config["optim"]["lr_g"] *= 3
    assert find_closest_preset(config) == (name, 1)
    for section in ("model", "objective", "optim"):
        config[section] = dict.fromkeys(config[section], "changed")
    assert find_closest_preset(config) is None


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_report_is_brought_here_without_the_checkpoints(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed(fetch, f"{place}/new")
    brought = files_below(tmp_path / "fetched" / "new")
    assert brought == {"report.html", "summary.json", "config.json", "metrics.jsonl", "images/samples-000064.png"}
    out = capsys.readouterr().out
    assert "5 files" in out
    assert "fetched/new/report.html" in out
    succeed(fetch, f"{place}/new", "with model", "--all")
    assert brought | {
        "tensorboard/events",
        "checkpoints/step-000000001/state.json",
        "checkpoints/step-000000001/model.safetensors",
    } == files_below(tmp_path / "with model")


def test_a_second_fetch_brings_what_has_changed_and_no_picture_again(place, capsys, tmp_path):
    out = tmp_path / "out"
    succeed(fetch, f"{place}/new", out)
    picture = out / "images" / "samples-000064.png"
    before = picture.stat().st_mtime_ns
    store = open_store(place)
    store.put("new/summary.json", store.get("new/summary.json").replace(b"running", b"stopped"))
    store.put("new/images/samples-000128.png", b"another")
    capsys.readouterr()
    succeed(fetch, f"{place}/new", out)
    assert "5 files" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    assert (out / "images" / "samples-000128.png").read_bytes() == b"another"
    assert picture.stat().st_mtime_ns == before


def test_a_run_without_a_report_says_so(place, capsys, tmp_path):
    succeed(fetch, f"{place}/begun", tmp_path / "out")
    assert "no report.html yet" in capsys.readouterr().out


def test_a_fetch_overwrites_nothing_else(tmp_path, capsys):
    write_run(str(tmp_path), "mine", status="finished", images=1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    run = tmp_path / "mine"
    assert "something else than a report" in refusal(capsys, fetch, run, tmp_path / "thesis")
    assert "the run's own folder" in refusal(capsys, fetch, run, run)
    assert "folder on a disk" in refusal(capsys, fetch, run, "s3://bucket/x")
    assert "did you mean mine" in refusal(capsys, fetch, tmp_path / "mime")
    assert files_below(tmp_path / "thesis") == {"thesis.tex"}
