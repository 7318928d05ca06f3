"""A run in one process goes on when the process is killed, as often as `scale.max_failures` says.

Run: `make test ARGS=tests/e2e/test_restarts.py`
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from tests.helpers.processes import TrainCommand, checkpoint_names, train_command
from tests.helpers.runs import assert_bitwise_equal, load_weights, tiny_config


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


def config_of(folder: Path, digits: Path, **changes: Any) -> Config:
    """Configure a run that saves after every 20 updates, and that would not end by itself."""
    usual: dict[str, Any] = {
        "run__images": 24 * 1_000_000,
        "report__checkpoint_every": 24 * 20,
        "scale__max_failures": 3,
    }
    return tiny_config(folder, data__url=str(digits), **{**usual, **changes})


def kill_after_next_checkpoint(running: TrainCommand, config: Config) -> None:
    """End the process that trains by SIGKILL, once it has saved something new."""
    before = checkpoint_names(config)
    running.wait_for(lambda: checkpoint_names(config) != before)
    (child,) = running.find_descendants("ali_dist.train")
    os.kill(child, signal.SIGKILL)


def summary_of(config: Config) -> dict[str, object]:
    summary: dict[str, object] = json.loads((Path(config.run.dir) / config.run.name / "summary.json").read_text())
    return summary


def test_a_killed_process_is_started_again_and_ends_with_the_weights_of_an_unbroken_run(
    tmp_path: Path, digits: Path
) -> None:
    killed, unbroken = (
        config_of(tmp_path, digits, run__name=name, run__images=24 * 150) for name in ("killed", "unbroken")
    )
    with train_command(killed, tmp_path / "log") as running:
        for _ in range(2):
            kill_after_next_checkpoint(running, killed)
        assert running.wait() == 0, running.read_output()
        output = running.read_output()
    assert "ended by SIGKILL, perhaps for want of memory; it is started again (restart 2 of at most 3)." in output
    assert output.count("Continuing from the checkpoint") == 2
    assert (summary_of(killed)["status"], summary_of(killed)["restarts"]) == ("finished", 2)
    with train_command(unbroken, tmp_path / "unbroken.log") as running:  # with as many threads as the other
        assert running.wait() == 0, running.read_output()
    for file in ("model", "ema", "optimizer"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(killed, file))


def test_one_that_is_killed_too_often_ends_with_one_sentence(tmp_path: Path, digits: Path) -> None:
    config = config_of(tmp_path, digits, scale__max_failures=1)
    with train_command(config, tmp_path / "log") as running:
        for _ in range(2):
            kill_after_next_checkpoint(running, config)
        assert running.wait() == 1, running.read_output()
        last = running.read_output().strip().splitlines()[-1]
    assert last.startswith("ali_dist.train: The process that trains was killed more often than scale.max_failures (1)")
    assert checkpoint_names(config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_process_that_trains(tmp_path: Path, digits: Path, number: int) -> None:
    config = config_of(tmp_path, digits)
    with train_command(config, tmp_path / "log") as running:
        running.wait_for(lambda: len(checkpoint_names(config)) > 0)
        running.send_signal(signal.Signals(number))
        assert running.wait() == 75, running.read_output()
        output = running.read_output()
    assert output.count("Stopped on request after") == 1
    assert "started again" not in output
    assert "Traceback" not in output
    assert summary_of(config)["status"] == "stopped"


def test_the_process_that_trains_saves_and_ends_where_its_parent_is_killed(tmp_path: Path, digits: Path) -> None:
    """Else it would hold the run's lease, and the same command could not go on."""
    config = config_of(tmp_path, digits)
    with train_command(config, tmp_path / "log") as running:
        running.wait_for(lambda: len(checkpoint_names(config)) > 0)
        (child,) = running.find_descendants("ali_dist.train")
        running.send_signal(signal.SIGKILL)
        running.wait()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
    assert summary_of(config)["status"] == "stopped"


def test_a_mistake_is_said_once_and_not_tried_again(tmp_path: Path) -> None:
    config = config_of(tmp_path, tmp_path / "nothing", data__source="none")
    with train_command(config, tmp_path / "log") as running:
        assert running.wait() == 2, running.read_output()
        assert running.read_output().count("ali_dist.train: ") == 1, running.read_output()
        assert "started again" not in running.read_output()
