"""The commands against a real S3 server: preparing, training, resuming, and what they say when they are refused."""

import json

import pytest

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
