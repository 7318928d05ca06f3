"""Real sweeps on this machine: killed or stopped in the middle and resumed, in S3, and as a job on a cluster."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ali_dist.config.loading import flatten_mapping, from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.storage import open_store
from ali_dist.train import parse_arguments
from tests.helpers.processes import ROOT, find_free_port, kill_tree, wait_for_condition
from tests.helpers.sweeps import write_space

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ENV = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
SPACE = "optim.lr_d: {loguniform: [5.0e-4, 2.0e-3]}\nmodel.discriminator_dropout: [0.0, 0.1]\n"


def sweep_words(folder: Path, *more: str, images: int = 24_000, runs: str | None = None) -> list[str]:
    """The command line of a sweep of two small trials in `folder`, or with its results at the URL `runs`."""
    settings: dict[str, object] = {"run.dir": runs or folder, "run.name": "sweep", "run.images": images}
    settings |= {"data.url": folder / "ring", "model.width": 0.25, "report.evaluation_samples": 200}
    options = ["--preset=mixture-ring", f"--space={write_space(folder, SPACE)}", "--trials=2", "--scheduler=none"]
    return ["-m", "tuning.sweep", *options, *more, *(f"--{name}={value}" for name, value in settings.items())]


@contextlib.contextmanager
def started_process(command: list[str], log: Path, env: dict[str, str] = ENV) -> Iterator[subprocess.Popen]:
    """A process; it and what it started are gone when the block ends."""
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, cwd=log.parent, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        kill_tree(process)


def started_sweep(folder: Path, *more: str, **changes) -> contextlib.AbstractContextManager[subprocess.Popen]:
    """The sweep of `sweep_words` as a process."""
    return started_process([sys.executable, *sweep_words(folder, *more, **changes)], folder / "log")


@pytest.fixture
def folder(tmp_path) -> Path:
    ensure_prepared("mixture-ring", str(tmp_path / "ring"), samples=2_000)
    return tmp_path


def read_trial(folder: Path, number: int) -> dict:
    path = folder / "sweep" / "trials" / f"{number:03d}" / "trial.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "absent", "evaluations": []}


def read_results(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_killed_in_the_middle_is_resumed_with_nothing_repeated_and_ends_in_an_answer(folder):
    """Besides, each trial's own config.json has what the trial was given, and best.yaml is a preset."""
    with started_sweep(folder) as process:
        wait_for_condition(process, lambda: len(read_trial(folder, 0)["evaluations"]) >= 3, folder / "log")
    before = [read_trial(folder, number) for number in (0, 1)]
    assert "running" in {trial["state"] for trial in before}, "nothing was left to resume"
    with started_sweep(folder, "--resume") as process:
        assert process.wait(300) == 0, (folder / "log").read_text()

    rows = read_results(folder)
    assert [row["state"] for row in rows] == ["finished", "finished"]
    for number, earlier in enumerate(before):
        run = folder / "sweep" / "trials" / f"{number:03d}"
        summary, config = (json.loads((run / name).read_text()) for name in ("summary.json", "config.json"))
        assert read_trial(folder, number)["settings"].items() <= dict(flatten_mapping(config)).items()
        assert not earlier["evaluations"] or earlier["state"] == "finished" or summary["restarts"] == 1
        assert len({e["images"] for e in read_trial(folder, number)["evaluations"]}) == 8
    assert rows[0]["optim.lr_d"] != rows[1]["optim.lr_d"]

    best = from_mapping(load_preset(str(folder / "sweep" / "best.yaml")))
    assert best.optim.lr_d in {float(row["optim.lr_d"]) for row in rows}
    assert "Learning curves" in (folder / "sweep" / "sweep.html").read_text()
    finished = [(folder / "sweep" / "trials" / f"{n:03d}" / "summary.json").stat().st_mtime_ns for n in (0, 1)]
    with started_sweep(folder, "--resume") as process:
        assert process.wait(200) == 0, (folder / "log").read_text()
    assert [(folder / "sweep" / "trials" / f"{n:03d}" / "summary.json").stat().st_mtime_ns for n in (0, 1)] == finished


def test_trials_of_two_workers_each_as_a_job_on_a_cluster_do_not_wait_for_each_other_forever(folder):
    """On a cluster of two CPUs, two trials of two workers each would hold one CPU each without the arithmetic."""
    programs = Path(sys.executable).parent
    port = find_free_port()
    address = f"http://127.0.0.1:{find_free_port()}"
    env = ENV | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_API_SERVER_ADDRESS": address}
    env |= {"PATH": f"{programs}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    head = [f"{programs}/ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    head += [f"--port={port}", f"--dashboard-port={address.rpartition(':')[2]}", "--disable-usage-stats"]
    list_jobs = [f"{programs}/ray", "job", "list"]
    quietly = {"env": {**os.environ, **env}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = [
        f"{programs}/ray",
        "job",
        "submit",
        "--",
        "python",
        *sweep_words(folder, "--workers-per-trial=2", images=3000),
    ]
    with (  # a short name, because paths of sockets have 107 bytes at most
        tempfile.TemporaryDirectory(prefix="ray-") as short,
        started_process([*head, f"--temp-dir={short}"], folder / "head", env) as cluster,
    ):
        wait_for_condition(cluster, lambda: subprocess.run(list_jobs, **quietly).returncode == 0, folder / "head")
        for _ in range(20):  # the head answers before its agent, which starts jobs, is there
            (folder / "log").unlink(missing_ok=True)
            with started_process(job, folder / "log", env) as process:
                code = process.wait(400)
            if "No available agent" not in (folder / "log").read_text():
                break
        assert code == 0, (folder / "log").read_text()
    for number, row in enumerate(read_results(folder)):
        assert row["state"] == "finished", row
        summary = json.loads((folder / "sweep" / "trials" / f"{number:03d}" / "summary.json").read_text())
        assert summary["world_size"] == 2


@pytest.mark.s3
def test_a_sweep_in_s3_that_is_asked_to_stop_saves_its_trials_and_goes_on_from_there(folder, swift_env):
    """It searches with Optuna, whose knowledge comes from the records alone. The whole folder of the sweep is in S3."""
    pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'ali-dist[sweep]')")
    runs = f"s3://{swift_env.make_bucket()}/runs"
    log = folder / "log"
    store = open_store(f"{runs}/sweep")

    def read(key: str) -> dict:
        return json.loads(store.get(key)) if store.stat(key) else {}

    first = "trials/000/trial.json"
    with started_sweep(folder, "--search=optuna", runs=runs, images=96_000) as process:
        wait_for_condition(process, lambda: bool(read(first).get("evaluations")), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, log.read_text()
    assert "add --resume to go on" in log.read_text()
    assert read(first)["state"] == "running"
    saved = read("trials/000/summary.json")
    newest = CheckpointStore(store.child("trials/000"), 2, print).read_newest()
    assert newest is not None
    assert (saved["status"], saved["images"]) == ("stopped", newest.metadata.images_seen)

    with started_sweep(folder, "--search=optuna", "--resume", runs=runs, images=96_000) as process:
        assert process.wait(300) == 0, log.read_text()
    assert read("trials/000/summary.json")["restarts"] == 1
    rows = list(csv.DictReader(store.get("results.csv").decode().splitlines()))
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert rows[0]["optim.lr_d"] != rows[1]["optim.lr_d"]
    assert b"data:image/png;base64" in store.get("sweep.html")
    config, _ = parse_arguments(["--preset", f"{runs}/sweep/best.yaml"])
    assert config.optim.lr_d in {float(row["optim.lr_d"]) for row in rows}
