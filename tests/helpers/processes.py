"""The train command as a process of its own: start it, wait for what it leaves, end it as a machine would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ali_dist.config import Config
from tests.helpers.runs import command_line_for

ROOT = Path(__file__).parents[2]


class Command:
    """One `python -m ali_dist.train`, in a session of its own so that all it starts can be ended with it.

    Args:
        config: What to train.
        log: Where its output goes.
        env: Variables beside the current ones.
    """

    def __init__(self, config: Config, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ali_dist.train", *command_line_for(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=log.parent,
                env={**os.environ, **settings},
                start_new_session=True,
            )

    def wait(self, timeout: float = 200) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        """Until `condition` holds; fails if the command ends before or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with code {self.process.returncode} too early:\n{self.output()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing happened for {timeout} seconds:\n{self.output()}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """A signal to the command alone."""
        self.process.send_signal(number)

    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def descendants(self, name: str) -> list[int]:
        """Pids of the processes below it whose command line contains `name`."""
        return [pid for pid in below(self.process.pid) if name in _command_line(pid)]


@contextlib.contextmanager
def command(config: Config, log: Path, env: dict[str, str] | None = None) -> Iterator[Command]:
    """A running command; it and everything it started are gone when the block ends."""
    running = Command(config, log, env)
    try:
        yield running
    finally:
        for pid in [*below(running.process.pid), running.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.process.wait()


def below(root: int) -> list[int]:
    """Pids of all descendants of a process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def checkpoints(config: Config) -> list[str]:
    """Names of the complete checkpoints of a local run."""
    folder = Path(config.run.dir) / config.run.name / "checkpoints"
    return sorted(p.parent.name for p in folder.glob("*/manifest.json"))
