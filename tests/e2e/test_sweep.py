"""Real sweeps on this machine: two trials, killed in the middle and resumed, and with Ray Train workers in each."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ali_dist.data.sources import ensure_prepared
from ali_dist.settings import flatten, from_mapping, load_preset
from tests.helpers.processes import ROOT, below
from tests.helpers.sweeps import write_space

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ENV = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
SPACE = "optim.lr_d: {loguniform: [5.0e-4, 2.0e-3]}\nmodel.discriminator_dropout: [0.0, 0.1]\n"


@contextlib.contextmanager
def sweeping(folder: Path, *more: str, images: int = 24_000) -> Iterator[subprocess.Popen]:
    """A sweep of two small trials in `folder`; it and what it started are gone when the block ends."""
    settings = {"run.dir": folder, "run.name": "sweep", "run.images": images, "data.url": folder / "ring"}
    settings |= {"model.width": 0.25, "report.evaluation_samples": 200}
    words = ["--preset=mixture-ring", f"--space={write_space(folder, SPACE)}", "--trials=2", "--scheduler=none", *more]
    with (folder / "log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuning.sweep", *words, *(f"--{name}={value}" for name, value in settings.items())],
            env={**os.environ, **ENV}, cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        for pid in [*below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def folder(tmp_path) -> Path:
    ensure_prepared("mixture-ring", str(tmp_path / "ring"), mixture_samples=2_000)
    return tmp_path


def trial(folder: Path, number: int) -> dict:
    path = folder / "sweep" / "trials" / f"{number:03d}" / "trial.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "absent", "evaluations": []}


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_killed_in_the_middle_is_resumed_with_nothing_repeated_and_ends_in_an_answer(folder):
    """Also: each trial's own config.json has what it was given, and best.yaml trains."""
    with sweeping(folder) as process:
        deadline = time.monotonic() + 240
        while len(trial(folder, 0)["evaluations"]) < 3:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
    before = [trial(folder, number) for number in (0, 1)]
    assert "running" in {one["state"] for one in before}, "nothing was left to resume"
    with sweeping(folder, "--resume") as process:
        assert process.wait(300) == 0, (folder / "log").read_text()

    rows = results(folder)
    assert [row["state"] for row in rows] == ["finished", "finished"]
    for number, was in enumerate(before):
        run = folder / "sweep" / "trials" / f"{number:03d}"
        summary, config = (json.loads((run / name).read_text()) for name in ("summary.json", "config.json"))
        assert trial(folder, number)["settings"].items() <= dict(flatten(config)).items()
        assert not was["evaluations"] or was["state"] == "finished" or summary["restarts"] == 1
        assert len({e["images"] for e in trial(folder, number)["evaluations"]}) == 8
    assert rows[0]["optim.lr_d"] != rows[1]["optim.lr_d"]

    best = from_mapping(load_preset(str(folder / "sweep" / "best.yaml")))
    assert best.optim.lr_d in {float(row["optim.lr_d"]) for row in rows}
    assert "Learning curves" in (folder / "sweep" / "sweep.html").read_text()
    finished = [(folder / "sweep" / "trials" / f"{n:03d}" / "summary.json").stat().st_mtime_ns for n in (0, 1)]
    with sweeping(folder, "--resume") as process:
        assert process.wait(200) == 0, (folder / "log").read_text()
    assert [(folder / "sweep" / "trials" / f"{n:03d}" / "summary.json").stat().st_mtime_ns for n in (0, 1)] == finished


def test_trials_of_two_workers_do_not_wait_for_each_other_for_ever(folder):
    """On a cluster of two CPUs, two trials of two workers each would hold one CPU each without the arithmetic."""
    with sweeping(folder, "--workers-per-trial=2", images=3000) as process:
        assert process.wait(400) == 0, (folder / "log").read_text()
    for number, row in enumerate(results(folder)):
        assert row["state"] == "finished", row
        summary = json.loads((folder / "sweep" / "trials" / f"{number:03d}" / "summary.json").read_text())
        assert summary["world_size"] == 2


def test_a_sweep_that_is_asked_to_stop_says_how_to_go_on(folder):
    with sweeping(folder, images=2_400_000) as process:
        deadline = time.monotonic() + 240
        while trial(folder, 0)["state"] != "running":
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, (folder / "log").read_text()
    assert "add --resume to go on" in (folder / "log").read_text()
    assert trial(folder, 0)["state"] == "running"
