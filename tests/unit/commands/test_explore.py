"""python -m ali_dist.explore: what it serves, what it refuses, and how it ends."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from ali_dist import explore, export
from ali_dist.exploration import server as server_module
from ali_dist.exploration import static_page
from tests.helpers.arrays import write_arrays
from tests.helpers.commands import refused
from tests.helpers.explorers import write_runtime
from tests.helpers.processes import ROOT, kill_tree, wait_for_condition
from tests.helpers.trained import labelled_images, run_folder, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explore")


@pytest.fixture(scope="module")
def run(folder):
    return run_folder(trained(folder, labelled_images(folder / "images", "classes"), "plain"))


@pytest.fixture
def pages(monkeypatch) -> list[str]:
    """The pages that are served; each is ended as soon as it is there."""
    served: list[str] = []

    def look_and_end(server: server_module.ExplorerServer, poll_interval: float) -> None:
        served.append(server.page.content.decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module.ExplorerServer, "serve_forever", look_and_end)
    return served


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_address_and_ends_within_a_second(run, tmp_path, number):
    log = tmp_path / "log"
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = ended.ru_utime + ended.ru_stime
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ali_dist.explore", str(run), "--images", "20"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    try:
        wait_for_condition(process, lambda: "\n" in log.read_text(), log)
        found = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/\?token=\S+) in a browser.*ends it\.\n", log.read_text())
        assert found, log.read_text()
        with urllib.request.urlopen(found[1], timeout=30) as answer:
            assert b"<title>plain" in answer.read()
        # Of processor time, because this machine may be busy with other things.
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        before = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        process.send_signal(number)
        assert process.wait(30) == 0
        of_all = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert of_all.ru_utime + of_all.ru_stime - others - before < 0.8
        assert log.read_text().splitlines()[1:] == ["Ended."]
    finally:
        kill_tree(process)


def test_images_come_from_the_holdout_split(run, pages, capsys):
    assert explore.main([str(run)]) == 0
    assert "over all 40 images of &#x27;test&#x27;" in pages[0]
    assert explore.main([str(run), "--split", "train", "--images", "50"]) == 0
    assert "over 50 of the 96 images of &#x27;train&#x27;" in pages[1]
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("Open http://127.0.0.1:") == 2


def test_without_its_data_a_run_is_explored_all_the_same(folder, run, pages, capsys):
    hidden = folder / "hidden"
    (folder / "images").rename(hidden)
    try:
        assert explore.main([str(run)]) == 0
        assert "The data could not be read: There are no prepared shards in " in pages[0]
        err = capsys.readouterr().err
        assert err.startswith("Going on without the data: There are no prepared shards in ")
        assert err.count("\n") == 1
    finally:
        hidden.rename(folder / "images")


def test_data_that_were_asked_for_must_be_there(run, tmp_path, pages, monkeypatch, capsys):
    monkeypatch.setattr("tests.helpers.commands.main", explore.main)
    assert "There are no prepared shards" in refused(capsys, run, "--data", tmp_path / "none")
    assert "valid" in refused(capsys, run, "--split", "valid")
    assert pages == []


def test_an_exported_model_is_explored_on_data_that_are_named(folder, run, tmp_path, pages, capsys):
    assert export.main([str(run), str(tmp_path / "exported")]) == 0
    assert explore.main([str(tmp_path / "exported")]) == 0
    assert explore.main([str(tmp_path / "exported"), "--data", str(folder / "images")]) == 0
    assert ["could not be read:" in page for page in pages] == [True, False]


def test_points_are_refused(tmp_path, monkeypatch, capsys):
    write_arrays(tmp_path / "dots" / "train", np.random.default_rng(0).normal(size=(48, 2)).astype(np.float32), None)
    config = trained(tmp_path, tmp_path / "dots", "points", preset="mixture")
    capsys.readouterr()
    monkeypatch.setattr("tests.helpers.commands.main", explore.main)
    sentence = refused(capsys, run_folder(config))
    assert "Run 'points' is of points of 2 coordinates, and only images of 1 or 3 channels can be explored" in sentence


def test_a_port_that_is_taken_is_named(run, monkeypatch, capsys):
    monkeypatch.setattr("tests.helpers.commands.main", explore.main)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port is {port}, which is taken (" in refused(capsys, run, "--images", 20, "--port", port)
    assert "--port is '80', but must be a whole number from 1024 to 65535" in refused(capsys, run, "--port", 80)


def test_a_run_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.helpers.commands.main", explore.main)
    assert "There is no run" in refused(capsys, tmp_path / "none")


def test_nothing_is_written(run, pages, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert explore.main([str(copy)]) == 0
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> Path:
    """A package as --runtime takes it; the networks are not recorded, so that no test here needs the extra onnx."""
    monkeypatch.setattr("ali_dist.inference.graphs._ONNX_PACKAGES", ())
    monkeypatch.setattr(static_page, "_record_networks", lambda run: {"encoder": b"E", "decoder": b"G"})
    monkeypatch.setattr("tests.helpers.commands.main", explore.main)
    return write_runtime(tmp_path / "package")


def test_a_page_is_written_in_place_of_being_served(run, pages, runtime, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "page.html"
    out.write_text("an older page")
    assert explore.main([str(run), "--images", "20", "--static", str(out), "--runtime", str(runtime)]) == 0
    said, noted = capsys.readouterr()
    assert said == f"{out}\n"
    assert re.fullmatch(r"The page has 0\.\d MB: open it in a browser, here or elsewhere\.\n", noted)
    assert "over 20 of the 40 images of &#x27;test&#x27;" in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert pages == []


def test_a_page_of_a_run_without_its_data_names_no_place(folder, run, runtime, tmp_path, capsys):
    hidden = folder / "hidden"
    (folder / "images").rename(hidden)
    try:
        assert explore.main([str(run), "--static", str(tmp_path / "p.html"), "--runtime", str(runtime)]) == 0
    finally:
        hidden.rename(folder / "images")
    assert str(folder) in capsys.readouterr().err
    assert str(folder) not in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--static", "{here}"], "which is a folder: name a file in it"),
        (["--static", "{here}/none/page.html"], "but there is no folder "),
        (["--static", "s3://bucket/page.html"], "but a page is written to a disk: give a file there"),
        (["--static", "page.txt"], "but must end in .html"),
        (["--static", "page.html", "--port", "8123"], "--port is for a page that is served"),
        (
            ["--static", "page.html", "--device", "cuda"],
            "--device is cuda, but --static records the networks on the CPU",
        ),
        (["--static", "page.html", "--runtime", "{here}"], "which is no onnxruntime-web that can be used ("),
        (["--static", "page.html"], "there is no node_modules/onnxruntime-web in this folder: run `npm install"),
        (["--runtime", "{here}"], "give --static OUT.html, too"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_run_is_read(
    words, sentence, pages, runtime, tmp_path, monkeypatch, capsys
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = [word.format(here=tmp_path / "here") for word in words]
    assert sentence in refused(capsys, tmp_path / "no-run", *given)
    assert list((tmp_path / "here").iterdir()) == []
    assert pages == []


def test_without_the_extra_onnx_it_is_said_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.helpers.commands.main", explore.main)
    monkeypatch.setattr("ali_dist.inference.graphs._ONNX_PACKAGES", ("onnx_that_is_nowhere",))
    sentence = refused(capsys, tmp_path / "no-run", "--static", tmp_path / "page.html")
    assert "--static needs onnx_that_is_nowhere, which is not installed: run `pip install 'ali-dist[onnx]'`" in sentence
    assert "or leave it out, and the page is served." in sentence


def test_a_model_that_is_too_large_for_a_page_is_refused(run, runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(static_page, "MOST_MODEL_BYTES", 1_000)
    sentence = refused(capsys, run, "--static", tmp_path / "page.html", "--runtime", runtime)
    assert "a page carries at most 0 MB: leave --static out, and the page is served." in sentence
    assert not (tmp_path / "page.html").exists()
