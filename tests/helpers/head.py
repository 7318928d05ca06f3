"""A Ray cluster of one machine, closed by a token as ours are, and our launcher in a user's checkout beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.processes import ROOT, below

PACKAGES = ("ali_dist", "cluster", "tuning")


class Head:
    """What `started_head` gives.

    Args:
        address: Of the job server.
        ray: Of Ray itself, as RAY_ADDRESS has it.
        checkout: A copy of the project, where the launcher is called.
        env: The user's variables: a home of its own, where the token is.
        temp: Ray's folder for sockets and logs.
    """

    def __init__(self, address: str, ray: str, checkout: Path, env: dict[str, str], temp: Path) -> None:
        self.address, self.ray, self.checkout, self.env, self.temp = address, ray, checkout, env, temp

    def launch(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """`python -m cluster` with these words, running; both outputs together."""
        return subprocess.Popen(
            [sys.executable, "-m", "cluster", *words],
            cwd=self.checkout,
            env={**self.env, **(env or {})},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *words: str, env: dict[str, str] | None = None, timeout: float = 200) -> tuple[int, str]:
        """Exit code and output of the launcher."""
        process = self.launch(*words, env=env)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} took more than {timeout} s:\n{process.communicate()[0]}") from None
        return process.returncode, output


def copy_project(folder: Path) -> Path:
    """A checkout as a user has it: our code, and beside it what must not travel."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in (".git/config", ".venv/pyvenv.cfg", "runs/old/model", "data/digits/index.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("stays here\n", encoding="utf-8")
    return folder


@contextlib.contextmanager
def started_head(folder: Path, cpus: int = 2) -> Iterator[Head]:
    """A head with a job server; it and all it started are gone when the block ends.

    Args:
        folder: For the user's home and checkout.
        cpus: What Ray believes this machine has.
    """
    home, temp = folder / "home", Path(tempfile.mkdtemp(prefix="ray-"))  # sockets' paths have to be short
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text("0123456789abcdef" * 4, encoding="ascii")
    token.chmod(0o600)
    drop = ("RAY_", "AWS_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    env |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    env |= {"PATH": f"{sys.prefix}/bin:{env['PATH']}", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    port, dashboard = _free_port(), _free_port()
    words = f"start --head --block --port={port} --dashboard-port={dashboard} --num-cpus={cpus} --temp-dir={temp}"
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words.split(), "--include-dashboard=true"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(dashboard, process, folder / "head.log")
        env.pop("RAY_AUTH_MODE")  # the launcher has to see to that itself
        places = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
        yield Head(*places, copy_project(folder / "checkout"), env, temp)
    finally:
        for pid in [*below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"the head does not start:\n{log.read_text(errors='replace')}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
