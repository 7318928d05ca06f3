"""W&B and MLflow as trackers of a run: what they are told, across stops, and that their faults end nothing.

With stand-ins for their packages; with the real ones, offline, where these are installed.

Run: `make test ARGS=tests/unit/runs/test_services.py`
"""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ali_dist.config import Config
from ali_dist.errors import InputError, Stopped
from ali_dist.runs import tracker_guard
from ali_dist.runs.optional_packages import without_secrets
from ali_dist.runs.tracker import TrackedRun, Tracker
from ali_dist.runs.tracker_guard import DirectCalls, ServiceCalls, TrackerGuard
from ali_dist.runs.trackers import TRACKERS, TrackerMemory, check_trackers
from ali_dist.storage import open_store
from ali_dist.training.loop import fit
from tests.helpers.fake_services import FakeMlflow, FakeWandb
from tests.helpers.fault_server import ENV, FaultServer
from tests.helpers.runs import StoppingContext, tiny_config
from tests.helpers.trained import labelled_images, run_folder

TRAIN = [48, 96, 120, 144, 192]
"""Images of the training records of a run that is stopped after 5 of its 8 updates."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_images(tmp_path_factory.mktemp("data"), "none")


@pytest.fixture(autouse=True)
def _no_variables_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_MODE", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def configure(folder: Path, data: Path, trackers: str, **changes: Any) -> Config:
    places = {"data__url": str(data), "data__source": "none", "report__trackers": trackers}
    return tiny_config(folder, **places, **changes)


def train_with_a_stop(config: Config) -> None:
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=5))
    fit(config, StoppingContext())


def read_summary(config: Config) -> dict[str, Any]:
    return json.loads((run_folder(config) / "summary.json").read_text())


def test_wandb_hears_once_of_everything_in_one_run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeWandb().install(monkeypatch)
    config = configure(tmp_path, data, "wandb", report__gallery_every=96, storage__endpoint_url="http://me:pass@host/")
    train_with_a_stop(config)
    first, second = service.begun
    assert first["id"] == second["id"] == json.loads((run_folder(config) / "trackers.json").read_text())["wandb"]["id"]
    assert (first["project"], first["name"], first["resume"]) == ("ali_dist", "tiny", "allow")
    assert first["config"]["optim.lr_d"] == config.optim.lr_d
    assert "pass" not in json.dumps(first["config"])
    assert first["settings"]["disable_code"]
    assert first["settings"]["console"] == "off"
    assert service.images_of("train") == TRAIN
    assert service.images_of("pictures/samples") == [96, 192]
    assert service.images_of("histograms") == [96, 192]
    merged = {key for records in service.records.values() for record in records for key in record}
    assert {"train/d_loss", "train/penalty", "memory/host_gib", "histograms/d_q", "histograms/sigma"} <= merged
    assert service.exit_codes == {first["id"]: 0}
    assert "trackers" not in read_summary(config)


def test_a_service_that_knows_more_than_the_folder_is_believed(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of a machine that had not yet uploaded what its trackers remembered."""
    service = FakeWandb().install(monkeypatch)
    config = configure(tmp_path, data, "wandb", report__checkpoint_every=48)
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=5))
    path = run_folder(config) / "trackers.json"
    path.write_text(json.dumps({"wandb": {"id": json.loads(path.read_text())["wandb"]["id"], "logged": {}}}))
    service.summaries[service.begun[0]["id"]]["train/images"] = 144  # of a start that was lost
    fit(config, StoppingContext())
    assert service.images_of("train") == [48, 96, 120, 192]


def test_mlflow_hears_once_of_everything_in_one_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeMlflow().install(monkeypatch)
    config = configure(tmp_path, data, "mlflow", report__gallery_every=96)
    train_with_a_stop(config)
    assert list(service.tags) == ["tiny-0"]
    run_id = "tiny-0"
    assert [step for key, _, step in service.metrics[run_id] if key == "train/d_loss"] == TRAIN
    assert [step for key, _, step in service.metrics[run_id] if key == "histograms/mu/p50"] == [96, 192]
    assert service.params[run_id]["run.images"] == "192"
    assert service.artifacts[run_id].count("images/samples-000000096.png") == 1
    assert service.status[run_id] == "FINISHED"
    assert service.tags[run_id]["experiment"] == "experiment of ali_dist"
    assert service.tags[run_id]["ali_dist.images.train"] == "192"


def test_a_run_in_s3_continues_on_another_machine(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trackers remember goes with the run, before the checkpoint that it goes on from."""
    service = FakeWandb().install(monkeypatch)
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    with FaultServer() as server:
        server.serve_objects({"bucket": b""})
        places = {"run__dir": "s3://bucket/runs", "storage__endpoint_url": server.endpoint_url}
        config = configure(tmp_path, data, "wandb", **places)
        train_with_a_stop(config)
        store = open_store("s3://bucket/runs/tiny", endpoint_url=server.endpoint_url)
        memory = json.loads(store.get("trackers.json"))["wandb"]
    first, second = service.begun
    assert first["id"] == second["id"] == memory["id"]
    assert first["dir"] != second["dir"]
    assert memory["logged"]["train"] == 192
    assert service.images_of("train") == TRAIN


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_with_its_extra(
    name: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    config = configure(tmp_path, data, f"tensorboard,{name}")
    with pytest.raises(InputError, match=rf"pip install 'ali-dist\[{name}\]'"):
        fit(config, StoppingContext())
    assert not (run_folder(config) / "checkpoints").exists()


def test_a_folder_that_is_named_like_the_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves a folder `wandb` where it works, which Python would import as an empty package."""
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("the package wandb is installed here")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="is not installed"):
        check_trackers(["wandb"])


def test_an_unknown_tracker_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"'wandbb'.*did you mean wandb\?"):
        check_trackers(["wandbb"])


@pytest.mark.parametrize("value", ["wandb,wandb", "wandb,", ",", "none,none"])
def test_a_list_with_gaps_or_doubles_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="report.trackers"):
        configure(tmp_path, tmp_path, value)


def test_wandb_without_a_key_is_refused_only_online(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeWandb().install(monkeypatch)
    check_trackers(["wandb"])
    service.mode = "online"
    with pytest.raises(InputError, match="WANDB_MODE=offline"):
        check_trackers(["wandb"])
    service.has_key = True
    check_trackers(["wandb"])


def test_a_tracker_that_fails_is_said_once_and_counted(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = FakeWandb().install(monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    service.faults = [ConnectionError("no route to http://me:word@host with 0123456789")] * 2
    config = configure(tmp_path, data, "wandb")
    fit(config, StoppingContext())
    summary = read_summary(config)
    assert summary["status"] == "finished"
    reason = "ConnectionError: no route to http://***@host with ***"
    assert summary["trackers"] == {"wandb": {"failures": 2, "missed": 0, "reason": reason}}
    assert capsys.readouterr().err.count("The tracker wandb failed") == 1


def test_a_tracker_that_cannot_start_is_left_alone(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = FakeMlflow().install(monkeypatch)
    monkeypatch.setattr(service, "create_run", lambda *words, **more: 1 / 0)
    config = configure(tmp_path, data, "mlflow")
    fit(config, StoppingContext())
    found = read_summary(config)["trackers"]["mlflow"]
    assert found["failures"] == 1
    assert found["missed"] >= 9  # 4 records of training and as many of memory, and the end
    assert capsys.readouterr().err.count("The tracker mlflow could not be started") == 1
    assert not service.metrics


class FailingTracker(Tracker):
    """Fails at every record."""

    def log_record(self, record: dict[str, Any]) -> None:
        raise OSError("disk full")


def test_a_tracker_of_files_that_fails_ends_no_run_either(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "failing", FailingTracker)
    config = configure(tmp_path, data, "failing")
    assert fit(config, StoppingContext())["status"] == "finished"  # type: ignore[index]
    counted = read_summary(config)["trackers"]["failing"]
    assert counted["failures"] == tracker_guard.MOST_FAILURES
    assert counted["missed"] > 0
    assert counted["reason"] == "OSError: disk full"


def test_a_request_to_stop_is_no_failure() -> None:
    def stop() -> None:
        raise Stopped("on request")

    with pytest.raises(Stopped):
        TrackerGuard("x", print).call(stop)


def test_a_service_that_hangs_holds_up_neither_the_run_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_released = threading.Event()

    class HangingTracker(Tracker):
        def log_record(self, record: dict[str, Any]) -> None:
            is_released.wait(30)

    monkeypatch.setattr(tracker_guard, "_SECONDS_TO_FINISH", 0.2)
    monkeypatch.setattr(tracker_guard, "_MOST_WAITING", 5)
    said: list[str] = []
    guard = TrackerGuard("slow", said.append)
    calls = ServiceCalls(HangingTracker(tmp_path), guard, TrackerMemory(tmp_path, None))
    calls.start(TrackedRun("run", 0, {}))
    for images in range(10):
        calls.log_record({"event": "train", "images": images})
    calls.finish({"status": "finished", "images": 9})
    is_released.set()
    assert "did not take everything" in said[-1]
    record = guard.to_record()
    assert record is not None
    assert record["missed"] >= 5


def test_a_rollback_repeats_nothing(tmp_path: Path) -> None:
    heard: list[int] = []

    class HearingTracker(Tracker):
        def log_record(self, record: dict[str, Any]) -> None:
            heard.append(record["images"])

    calls = ServiceCalls(HearingTracker(tmp_path), TrackerGuard("x", print), TrackerMemory(tmp_path, None))
    calls.start(TrackedRun("run", 0, {}))
    for images in (1, 2, 3):
        calls.log_record({"event": "train", "images": images})
    calls.forget_after(1)
    for images in (2, 3, 4):
        calls.log_record({"event": "train", "images": images})
    calls.finish({"status": "finished", "images": 4})
    assert heard == [1, 2, 3, 4]


def test_damaged_memory_is_no_reason_to_fail(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeWandb().install(monkeypatch)
    config = configure(tmp_path, data, "wandb")
    run_folder(config).mkdir(parents=True)
    (run_folder(config) / "trackers.json").write_text('{"wandb": [')
    fit(config, StoppingContext())
    assert service.images_of("train") == [48, 96, 144, 192]


def test_secrets_are_taken_out_of_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open sesame")
    assert without_secrets("401 for s3://a:b@c/d with open sesame") == "401 for s3://***@c/d with ***"


def test_the_guard_keeps_what_a_tracker_says_of_forgetting(tmp_path: Path) -> None:
    class TellingTracker(Tracker):
        def forget_after(self, images: int) -> str:
            return f"forgot after {images}"

    assert DirectCalls(TellingTracker(tmp_path), TrackerGuard("x", print)).forget_after(5) == "forgot after 5"


def read_wandb_file(data: bytes) -> list[bytes]:
    """The messages of a file of W&B: LevelDB's log format, blocks of 32 KiB, behind 7 bytes of its own."""
    messages, parts, place = [], b"", 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # what is left of a block holds no header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            messages.append(parts)
            parts = b""
    return messages


@pytest.mark.slow
def test_real_wandb_offline_writes_one_run_without_repeats(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = configure(tmp_path, data, "wandb")
    train_with_a_stop(config)
    wandb.teardown()
    files = sorted((run_folder(config) / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1
    images = []
    for path in files:
        for message in read_wandb_file(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            keys = [(item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item]
            images += [int(value) for key, value in keys if key == "train/images"]
    assert images == TRAIN


@pytest.mark.slow
def test_real_mlflow_with_a_database_in_a_file_keeps_one_run_without_repeats(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    config = configure(tmp_path, data, "mlflow")
    train_with_a_stop(config)
    client = mlflow.MlflowClient()
    run_id = json.loads((run_folder(config) / "trackers.json").read_text())["mlflow"]["id"]
    assert [metric.step for metric in client.get_metric_history(run_id, "train/d_loss")] == TRAIN
    assert client.get_run(run_id).info.status == "FINISHED"
