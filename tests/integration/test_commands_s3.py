"""The commands against a real S3 server: preparing, training, resuming, and what they say when they are refused."""

import json

import pytest

from ali_dist.compare import main as compare
from ali_dist.exploration import server as explorer_server
from ali_dist.explore import main as explore
from ali_dist.fetch import main as fetch
from ali_dist.list_runs import main as list_runs
from ali_dist.prepare import main as prepare
from ali_dist.storage import open_store
from ali_dist.train import main as train
from tests.helpers.runs import command_line_for, tiny_config

pytestmark = pytest.mark.s3


@pytest.fixture
def bucket(swift_env, monkeypatch) -> str:
    for key, value in swift_env.env.items():
        monkeypatch.setenv(key, value)
    return f"s3://{swift_env.make_bucket()}"


def refused_sentence(capsys, words: list[str]) -> str:
    """The one sentence with which a command that cannot be done ends."""
    capsys.readouterr()
    assert train(words) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ali_dist.train:")]
    return sentence


def test_a_run_lives_in_s3_from_data_to_report(tmp_path, bucket):
    assert prepare(["digits", f"{bucket}/digits"]) == 0
    locations = {"data__url": f"{bucket}/digits", "run__dir": f"{bucket}/runs"}
    assert train(command_line_for(tiny_config(tmp_path, **locations))) == 0
    assert train(command_line_for(tiny_config(tmp_path, run__images=240, **locations))) == 0  # resumes
    run = open_store(f"{bucket}/runs/tiny")
    summary = json.loads(run.get("summary.json"))
    assert (summary["images"], summary["restarts"]) == (240, 1)
    records = [json.loads(line) for line in run.get("metrics.jsonl").splitlines()]
    assert [r["images"] for r in records if r["event"] == "train"] == [48, 96, 144, 192, 240]
    keys = {info.key.split("/")[0] for info in run.list()}
    assert {"config.json", "images", "tensorboard", "checkpoints", "report.html"} <= keys
    assert list(tmp_path.iterdir()) == []
    page = tmp_path / "page.html"
    assert compare([f"{bucket}/runs/tiny", f"{bucket}/runs/tiny", "--out", str(page)]) == 0
    html = page.read_text()
    assert html.count(f"{bucket}/runs/tiny</span> after 240 images") == 2 * 5  # of each kind of picture
    assert "<polyline" in html


def test_runs_in_s3_are_listed_and_their_report_is_brought_here(tmp_path, bucket, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare(["digits", f"{bucket}/digits"]) == 0
    places = {"data__url": f"{bucket}/digits", "run__dir": f"{bucket}/runs"}
    assert train(command_line_for(tiny_config(tmp_path, **places))) == 0
    capsys.readouterr()
    assert list_runs([f"{bucket}/runs"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("tiny")
    assert "finished" in row
    assert fetch([f"{bucket}/runs/tiny"]) == 0
    brought = tmp_path / "fetched" / "tiny"
    assert {path.name for path in brought.iterdir()} == {
        *("report.html", "summary.json", "config.json", "metrics.jsonl", "images")
    }
    assert (brought / "report.html").read_bytes() == open_store(f"{bucket}/runs/tiny").get("report.html")


def test_a_run_in_s3_is_explored_on_its_data_there(tmp_path, bucket, capsys, monkeypatch):
    pages = []

    def look_and_end(server, poll_interval):
        pages.append(server.page.content.decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(explorer_server.ExplorerServer, "serve_forever", look_and_end)
    assert prepare(["digits", f"{bucket}/digits"]) == 0
    config = tiny_config(tmp_path, data__url=f"{bucket}/digits", run__dir=f"{bucket}/runs")
    assert train(command_line_for(config)) == 0
    assert explore([f"{bucket}/runs/tiny", "--images", "40"]) == 0
    assert "over 40 of the 360 images of &#x27;test&#x27;" in pages[0]


def test_a_missing_bucket_is_named(tmp_path, bucket, capsys):
    sentence = refused_sentence(
        capsys, command_line_for(tiny_config(tmp_path, data__url="s3://no-such-bucket/digits", data__source=None))
    )
    assert "no-such-bucket" in sentence


def test_wrong_credentials_are_said_without_showing_them(tmp_path, bucket, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    sentence = refused_sentence(
        capsys, command_line_for(tiny_config(tmp_path, data__url=f"{bucket}/digits", data__source=None))
    )
    assert "AWS_SECRET_ACCESS_KEY" in sentence
    assert "not-the-secret" not in sentence


def test_missing_shards_are_named(tmp_path, bucket, capsys):
    assert prepare(["digits", f"{bucket}/digits"]) == 0
    open_store(f"{bucket}/digits/train").delete(["00000.tar"])
    assert "00000.tar" in refused_sentence(
        capsys, command_line_for(tiny_config(tmp_path, data__url=f"{bucket}/digits"))
    )


def test_an_empty_place_names_the_command_that_fills_it(tmp_path, bucket, capsys):
    assert "ali_dist.prepare" in refused_sentence(
        capsys, command_line_for(tiny_config(tmp_path, data__url=f"{bucket}/nothing"))
    )
