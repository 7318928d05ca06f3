"""Ray workers on this machine: they see the batches and losses of one process, through kills, from a folder and S3."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.sources.digits import digits_splits
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.storage import open_store
from ali_dist.training.loop import fit
from tests.distributed.test_ranks import train_rank
from tests.helpers.distributed import run_distributed
from tests.helpers.fault_server import ENV as FAULT_SERVER_ENV
from tests.helpers.fault_server import FaultServer
from tests.helpers.processes import TrainCommand, checkpoint_names, train_command
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, load_weights, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ENV = {"RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
LOSSES = ("d_loss", "g_loss", "d_q", "d_p", "penalty", "cycle")


@pytest.fixture(scope="module")
def ring(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("ring")
    ensure_prepared("mixture-ring", str(folder), samples=2_000)
    return str(folder)


def read_losses(text: str) -> list[tuple[int, list[float]]]:
    records = [json.loads(line) for line in text.splitlines()]
    return [(r["images"], [r[key] for key in LOSSES]) for r in records if r["event"] == "train"]


def test_a_killed_worker_costs_nothing_but_time(tmp_path, ring):
    """With networks without batch norm, one process and two workers see the same losses, killed or not."""
    budget = {
        "data__url": ring,
        "run__images": 24 * 3000,
        "report__log_every": 24 * 10,
        "report__checkpoint_every": 24 * 50,
        "optim__eps": 1e-3,
    }
    alone, killed, unbroken = (
        tiny_config(tmp_path, "mixture-ring", run__name=name, scale__workers=workers, **budget)
        for name, workers in (("alone", "0"), ("killed", "2"), ("unbroken", "2"))
    )
    with train_command(killed, tmp_path / "killed.log", ENV) as running:
        running.wait_for(lambda: len(checkpoint_names(killed)) > 0, timeout=200)
        workers = running.find_descendants("ray::RayTrainWorker")
        assert len(workers) == 2, running.read_output()
        # Each process of Ray costs seconds of every start: none is there that only other users of Ray Train need.
        unused = ("DatasetManager", "PreemptionWatcher", "PlacementGroupCleaner", "AutoscalingCoordinator")
        assert [name for name in unused if running.find_descendants(name)] == []
        os.kill(workers[-1], signal.SIGKILL)
        assert running.wait(300) == 0, running.read_output()
        assert "Continuing from the checkpoint" in running.read_output()
        rays_own = (
            "TrainingReport(",
            "Requesting resources",
            "Attempting to start",
            "PreemptionWatcher",
            "local Ray instance",
            "FailurePolicy",
            "Traceback",
            "A worker died",
        )
        assert [words for words in rays_own if words in running.read_output()] == []
        assert running.read_output().count("A worker is lost or has failed: all start again from the newest") == 1
    summary = json.loads((Path(killed.run.dir) / "killed" / "summary.json").read_text())
    assert (summary["world_size"], summary["restarts"], summary["status"]) == (2, 1, "finished")
    run_distributed(train_rank, 2, 2, unbroken.to_mapping())
    for file in ("model", "ema", "optimizer"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(killed, file))
    fit(alone, StoppingContext())
    records = [read_losses((Path(c.run.dir) / c.run.name / "metrics.jsonl").read_text()) for c in (alone, killed)]
    assert [images for images, _ in records[0]] == [images for images, _ in records[1]]
    # The game is chaotic: a change of 1e-7 in the weights shows in the sixth digit after 10 updates, and in the third
    # after 16. The first record is of 10.
    assert records[1][0][1] == pytest.approx(records[0][0][1], rel=1e-3, abs=1e-4)


def test_a_notice_that_the_machine_will_leave_saves_a_checkpoint_and_training_goes_on(tmp_path, ring):
    config = tiny_config(
        tmp_path,
        "mixture-ring",
        data__url=ring,
        scale__workers="2",
        run__images=24 * 1_000_000,
        report__checkpoint_every=0,
        report__log_every=24 * 50,
    )
    # A cluster that ends with its run looks out for no notice, unless it is told to.
    with train_command(config, tmp_path / "log", ENV | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}) as running:
        running.wait_for(lambda: " img/s" in running.read_output(), timeout=200)
        drain_node_of(running)
        running.wait_for(lambda: len(checkpoint_names(config)) == 1)
        # A worker's words reach the driver when Ray brings them, which may be after its files.
        running.wait_for(lambda: "A machine is about to leave: saving a checkpoint at" in running.read_output())
        lines = running.read_output().count(" img/s")
        running.wait_for(lambda: running.read_output().count(" img/s") > lines)
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 75, running.read_output()


def drain_node_of(running: TrainCommand) -> None:
    """Give Ray notice that the only node of a run's cluster will leave in ten minutes, as a cloud's agent does."""
    raylet = Path(f"/proc/{running.find_descendants('raylet')[0]}/cmdline").read_text()
    options = dict(word.lstrip("-").split("=", 1) for word in raylet.split("\0") if "=" in word)
    command = ["drain-node", "--address", options["gcs-address"], "--node-id", options["node_id"]]
    notice = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds=600",
    ]
    ray_command = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray_command, *command, *notice], check=True, env={**os.environ, **ENV}, timeout=120)


def test_a_request_to_stop_is_honoured_though_a_worker_hangs(tmp_path, ring):
    """The ranks cannot agree on it while one of them stands still: they are started again, and then they do."""
    config = tiny_config(
        tmp_path,
        "mixture-ring",
        data__url=ring,
        scale__workers="2",
        scale__collective_timeout=20,  # the request is what ends the waiting
        run__images=24 * 1_000_000,
        report__checkpoint_every=24 * 50,
        report__log_every=24 * 50,
    )
    with train_command(config, tmp_path / "log", ENV) as running:
        running.wait_for(lambda: len(checkpoint_names(config)) > 0, timeout=200)
        rank_0 = int(re.search(r"RayTrainWorker pid=(\d+)", running.read_output())[1])  # it alone has said something
        (rank_1,) = set(running.find_descendants("ray::RayTrainWorker")) - {rank_0}
        os.kill(rank_1, signal.SIGSTOP)
        saved = checkpoint_names(config)
        running.send_signal(signal.SIGTERM)
        assert running.wait(200) == 75, running.read_output()
    assert re.search(r"Rank 0 waited .* and was asked to stop: rank 1 ", running.read_output())
    summary = json.loads((Path(config.run.dir) / config.run.name / "summary.json").read_text())
    assert (summary["status"], summary["restarts"]) == ("stopped", 1)
    assert max(checkpoint_names(config)) >= max(saved)


def test_an_outage_that_lasts_ends_the_run_in_one_sentence_and_without_restarts(tmp_path, monkeypatch):
    for key, value in FAULT_SERVER_ENV.items():
        monkeypatch.setenv(key, value)
    write_splits(open_store(str(tmp_path / "digits")), digits_splits(), WriteOptions(shard_mb=0.5))
    with FaultServer() as server:
        server.serve_objects({"bucket": b""})
        config = tiny_config(
            tmp_path,
            data__url=str(tmp_path / "digits"),
            data__source="none",
            run__dir="s3://bucket/runs",
            run__images=24 * 1_000_000,
            report__checkpoint_every=48,
            scale__workers="2",
            storage__endpoint_url=server.endpoint_url,
            storage__attempts=1,
            storage__outage_minutes=0.05,
        )
        first = "bucket/runs/tiny/checkpoints/step-000000002/manifest.json"
        server.refuses = lambda method, name: method == "PUT" and first in server.objects
        with train_command(config, tmp_path / "log", ENV) as running:
            assert running.wait(300) == 1, running.read_output()
        assert first in server.objects
    output = running.read_output()
    last = output.strip().splitlines()[-1]
    assert last.startswith("ali_dist.train: Nothing could be saved to s3://bucket/runs/tiny for "), output
    assert "Continuing from the checkpoint" not in output
    assert "Traceback" not in output


@pytest.mark.s3
def test_two_workers_stream_from_s3_checkpoint_to_it_and_stop_on_request(tmp_path, swift_env, monkeypatch):
    for key, value in swift_env.env.items():
        monkeypatch.setenv(key, value)
    bucket = swift_env.make_bucket()
    places = {"data__url": f"s3://{bucket}/digits", "run__dir": f"s3://{bucket}/runs"}
    write_splits(open_store(f"s3://{bucket}/digits"), digits_splits(), WriteOptions(shard_mb=0.5))
    config = tiny_config(
        tmp_path,
        data__residency="stream",
        scale__workers="2",
        run__images=24 * 4000,
        report__checkpoint_every=24 * 20,
        **places,
    )
    run = open_store(f"s3://{bucket}/runs/tiny")
    with train_command(config, tmp_path / "log", ENV) as running:
        running.wait_for(lambda: bool(run.list("checkpoints/")), timeout=200)
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 75, running.read_output()
    newest = CheckpointStore(run, 2, print).read_newest()
    assert newest is not None
    assert newest.metadata.world_size == 2
    summary = json.loads(run.get("summary.json"))
    assert (summary["status"], summary["residency"]) == ("stopped", "stream")
    assert summary["step"] == newest.metadata.step
    shorter = tiny_config(tmp_path, run__images=24 * (newest.metadata.step + 6), run__name="tiny", **places)
    again = fit(shorter, StoppingContext())  # one process goes on where two workers stopped
    assert again is not None
    assert (again["restarts"], again["images"]) == (1, 24 * (newest.metadata.step + 6))
    assert run.stat("report.html") is not None
