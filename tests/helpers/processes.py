"""The train command as a process of its own: start it, wait for what it leaves, and end it as a machine would."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ali_dist.config import Config
from tests.helpers.runs import command_line_for

ROOT = Path(__file__).parents[2]


class TrainCommand:
    """One `python -m ali_dist.train`, in a session of its own so that all it starts can be ended with it.

    Args:
        config: What to train.
        log: Where its output goes.
        env: Environment variables beside the current ones.
    """

    def __init__(self, config: Config, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ali_dist.train", *command_line_for(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=log.parent,
                env={**os.environ, **variables},
                start_new_session=True,
            )

    def wait(self, timeout: float = 200) -> int:
        """Wait for the end of the command; its exit code."""
        return self.process.wait(timeout)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        """Wait until `condition` holds; fails if the command ends before or `timeout` seconds pass."""
        wait_for_condition(self.process, condition, self.log, timeout)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(number)

    def read_output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def find_descendants(self, name: str) -> list[int]:
        """Pids of the processes below it whose command line contains `name`."""
        return [pid for pid in descendants_of(self.process.pid) if name in _command_line(pid)]


@contextlib.contextmanager
def train_command(config: Config, log: Path, env: dict[str, str] | None = None) -> Iterator[TrainCommand]:
    """A running command; it and everything it started are gone when the block ends."""
    running = TrainCommand(config, log, env)
    try:
        yield running
    finally:
        kill_tree(running.process)


def wait_for_condition(
    process: subprocess.Popen[Any], condition: Callable[[], bool], log: Path, timeout: float = 240
) -> None:
    """Wait until `condition` holds.

    Raises:
        AssertionError: The process ends before, or `timeout` seconds pass; the message has its log.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended with code {process.returncode} too early:\n{log.read_text(errors='replace')}")
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing happened for {timeout} seconds:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """End a process and everything below it at once, and wait until it is gone."""
    for pid in [*descendants_of(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def cpu_seconds_of(pid: int) -> float:
    """CPU time that a process has taken so far, in seconds; 0 if it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def descendants_of(root: int) -> list[int]:
    """Pids of all processes below one."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    descendants: list[int] = []
    pending = [root]
    while pending:
        of_one = children.get(pending.pop(), [])
        descendants += of_one
        pending += of_one
    return descendants


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def find_free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def checkpoint_names(config: Config) -> list[str]:
    """Names of the complete checkpoints of a local run."""
    folder = Path(config.run.dir) / config.run.name / "checkpoints"
    return sorted(p.parent.name for p in folder.glob("*/manifest.json"))
