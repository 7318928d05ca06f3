"""A run in S3 whose server refuses a part of it, for a while or for good: what is trained is never lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load

from ali_dist.config import Config
from ali_dist.errors import OutageError, Stopped
from ali_dist.runs import background_saver, lease, run_writer
from ali_dist.storage import open_store
from ali_dist.training.loop import fit
from ali_dist.training.state import TrainState
from tests.helpers.arrays import write_arrays
from tests.helpers.fault_server import ENV, FaultServer, refuse_nothing
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, load_weights, tiny_config

RUN = "bucket/runs/tiny"


@pytest.fixture(scope="module")
def running_server() -> Iterator[FaultServer]:
    with FaultServer() as started:
        yield started


@pytest.fixture
def server(running_server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FaultServer:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(background_saver, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(run_writer, "_LAST_PAUSES", (0.05,))
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.1)  # an outage may leave the lease of the run unreleased
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running_server.serve_objects({"bucket": b""})
    return running_server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    x = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    write_arrays(folder / "train", x, np.arange(120) % 4, classes=("a", "b", "c", "d"))
    return folder


@pytest.fixture
def make_config(server: FaultServer, data: Path, tmp_path: Path) -> Callable[..., Config]:
    """Make the config of a run of 8 updates, in S3, that saves after the 2nd, the 4th, the 6th and the 8th."""

    def make(**changes: Any) -> Config:
        usual = {
            "run__dir": "s3://bucket/runs",
            "data__url": str(data),
            "data__source": "none",
            "report__checkpoint_every": 48,
            "storage__endpoint_url": server.endpoint_url,
            "storage__attempts": 1,
            "storage__outage_minutes": 1.0,
        }
        return tiny_config(tmp_path, **{**usual, **changes})

    return make


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny_config(tmp_path_factory.mktemp("unbroken"), data__url=str(data), data__source="none")
    fit(config, StoppingContext())
    return config


def read_weights(server: FaultServer, step: int = 8) -> dict[str, Any]:
    return load(server.objects[f"{RUN}/checkpoints/step-{step:09d}/model.safetensors"])


def steps_saved(server: FaultServer) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(match[1]) for match in re.finditer(r"step-(\d+)/manifest\.json", " ".join(server.objects)))


def steps_begun(server: FaultServer) -> set[int]:
    return {int(match[1]) for match in re.finditer(r"step-(\d+)/", " ".join(server.objects))}


def events_of(server: FaultServer) -> list[str]:
    return [json.loads(line)["event"] for line in server.objects[f"{RUN}/metrics.jsonl"].splitlines()]


def begin_outage(server: FaultServer, *, saved: int, method: str = "") -> None:
    """Refuse all requests, or those of a method, once a checkpoint is there."""
    wait_until(lambda: saved in steps_saved(server))
    server.refuses = lambda m, name: m.startswith(method)


def end_outage(server: FaultServer) -> None:
    server.refuses = refuse_nothing


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def after_update(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], object]) -> None:
    """Do something once, when so many updates have been computed."""
    original = TrainState.update
    count = [0]

    def update(state: TrainState, *words: Any) -> Any:
        result = original(state, *words)
        count[0] += 1
        if count[0] == step:
            do()
        return result

    monkeypatch.setattr(TrainState, "update", update)


def kept_folders(text: str) -> list[Path]:
    return [Path(path) for path in dict.fromkeys(re.findall(r"(\S*ali-dist-unsaved-[^\s:,)]+)", text))]


def test_metrics_and_report_that_can_never_be_uploaded_end_no_run_and_stay_on_the_machine(
    make_config: Callable[..., Config],
    server: FaultServer,
    unbroken: Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = {f"{RUN}/metrics.jsonl", f"{RUN}/report.html"}
    server.refuses = lambda method, name: method == "PUT" and name in refused
    summary = fit(make_config(), StoppingContext())
    said = capsys.readouterr().err
    assert summary is not None
    assert summary["status"] == "finished"
    assert_bitwise_equal(load_weights(unbroken), read_weights(server))
    assert json.loads(server.objects[f"{RUN}/summary.json"])["status"] == "finished"
    (failure,) = summary["failures"]
    assert failure["what"] == "upload"
    assert said.count("metrics.jsonl could not be uploaded to s3://bucket/runs/tiny") == 1
    assert "metrics.jsonl and 1 more files could not be uploaded: copy what is in" in said
    (kept,) = kept_folders(said)
    assert sorted(path.name for path in kept.iterdir()) == ["metrics.jsonl", "report.html"]
    assert [path.name for path in kept.parent.glob("ali-dist-*")] == [kept.name], "the others have been removed"


def test_an_upload_that_failed_goes_with_the_next_one(
    make_config: Callable[..., Config],
    server: FaultServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals: list[str] = []

    def refuse(method: str, name: str) -> bool:
        is_refused = method == "PUT" and name == f"{RUN}/metrics.jsonl" and len(refusals) < 2
        if is_refused:
            refusals.append(name)
        return is_refused

    server.refuses = refuse
    summary = fit(make_config(), StoppingContext())
    said = capsys.readouterr().err
    assert len(refusals) == 2
    assert summary is not None
    assert events_of(server).count("train") == 4
    assert events_of(server).count("failure") == len(summary["failures"])
    assert "What could not be uploaded is in s3://bucket/runs/tiny now." in said
    assert kept_folders(said) == []


def test_a_run_goes_on_through_an_outage_and_saves_when_it_is_over(
    make_config: Callable[..., Config],
    server: FaultServer,
    unbroken: Config,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing at all is answered from the 3rd to the 7th update, in which two checkpoints are due."""
    after_update(monkeypatch, 3, lambda: begin_outage(server, saved=2))
    after_update(monkeypatch, 7, lambda: end_outage(server))
    summary = fit(make_config(), StoppingContext())
    said = capsys.readouterr().err
    assert summary is not None
    assert summary["status"] == "finished"
    assert_bitwise_equal(load_weights(unbroken), read_weights(server))
    assert steps_saved(server)[-1] == 8
    assert steps_begun(server) == set(steps_saved(server)), "nothing that is torn is left"
    assert said.count("The checkpoint at 96 images could not be saved to s3://bucket/runs/tiny") == 1
    assert "the run goes on and tries again, for at most 1 minutes (storage.outage_minutes)" in said
    assert "Saved again, after" in said
    assert "checkpoint" in [failure["what"] for failure in summary["failures"]]
    assert kept_folders(said) == [] or "A copy of the checkpoint" in said
    assert events_of(server).count("train") == 4
    assert events_of(server).count("failure") == len(summary["failures"])


@pytest.mark.parametrize("stops", [False, True])
def test_an_outage_that_lasts_ends_the_run_in_one_sentence_and_what_it_could_not_save_is_kept(
    make_config: Callable[..., Config],
    server: FaultServer,
    unbroken: Config,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stops: bool,
) -> None:
    """What is kept, once it is copied to where it belongs, is a checkpoint that a run goes on from."""
    with monkeypatch.context() as patch:
        after_update(patch, 5, lambda: begin_outage(server, saved=4, method="PUT"))
        with pytest.raises(OutageError) as caught:
            fit(make_config(storage__outage_minutes=0.005), StoppingContext(stop_before=7 if stops else None))
    sentence = str(caught.value)
    assert sentence.startswith("Nothing could be saved to s3://bucket/runs/tiny for ")
    assert sentence.endswith("run the same command to go on.")
    assert steps_saved(server)[-1] == 4, "what was saved before is there"
    (kept,) = kept_folders(sentence)
    (folder,) = (kept / "checkpoints").iterdir()
    assert folder.name >= "step-000000006"
    end_outage(server)
    store = open_store("s3://bucket/runs/tiny", endpoint_url=server.endpoint_url)
    for path in folder.iterdir():
        store.put(path.relative_to(kept).as_posix(), path)
    capsys.readouterr()
    fit(make_config(), StoppingContext())
    assert_bitwise_equal(load_weights(unbroken), read_weights(server))
    said = capsys.readouterr().err
    assert f"(update {int(folder.name.removeprefix('step-'))})" in said or "is finished" in said


def test_a_request_to_stop_waits_for_the_end_of_an_outage(
    make_config: Callable[..., Config],
    server: FaultServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the stop on there is a copy on this machine, which goes when the checkpoint is saved."""
    original = background_saver.BackgroundSaver._keep_copy

    def keep_copy(saver: background_saver.BackgroundSaver[Any], **options: Any) -> None:
        original(saver, **options)
        end_outage(server)

    monkeypatch.setattr(background_saver.BackgroundSaver, "_keep_copy", keep_copy)
    after_update(monkeypatch, 3, lambda: begin_outage(server, saved=2))
    with pytest.raises(Stopped):
        fit(make_config(), StoppingContext(stop_before=5))
    said = capsys.readouterr().err
    assert steps_saved(server)[-1] == 5
    (kept,) = kept_folders(said)
    assert "A copy of the checkpoint at 120 images is in" in said
    assert not kept.exists()
