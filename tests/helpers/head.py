"""A Ray cluster of one machine, closed by a token as ours are, and our launcher in a user's checkout beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.processes import ROOT, find_free_port, kill_tree

PACKAGES = ("ali_dist", "cluster", "tuning")


class Head:
    """A running head, as `started_head` gives it.

    Args:
        address: Address of the job server.
        ray_address: Address of Ray itself, as RAY_ADDRESS has it.
        checkout: A copy of the project, where the launcher is called.
        env: The user's environment variables: a home of its own, where the token is.
        temp: Ray's folder for sockets and logs.
    """

    def __init__(self, address: str, ray_address: str, checkout: Path, env: dict[str, str], temp: Path) -> None:
        self.address = address
        self.ray_address = ray_address
        self.checkout = checkout
        self.env = env
        self.temp = temp

    def start_launcher(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `python -m cluster` with these words; both outputs come together."""
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

    def run_launcher(self, *words: str, env: dict[str, str] | None = None, timeout: float = 200) -> tuple[int, str]:
        """Run the launcher to its end; its exit code and output."""
        process = self.start_launcher(*words, env=env)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} took more than {timeout} s:\n{process.communicate()[0]}") from None
        return process.returncode, output


def copy_project(folder: Path) -> Path:
    """Make a checkout as a user has it: our code, and beside it what must not travel."""
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
        cpus: How many CPUs Ray believes this machine to have.
    """
    home = folder / "home"
    temp = Path(tempfile.mkdtemp(prefix="ray-"))  # paths of sockets have to be short
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text("0123456789abcdef" * 4, encoding="ascii")
    token.chmod(0o600)
    dropped = ("RAY_", "AWS_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    env |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    env |= {"PATH": f"{sys.prefix}/bin:{env['PATH']}", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    port = find_free_port()
    dashboard_port = find_free_port()
    words = f"start --head --block --port={port} --dashboard-port={dashboard_port} --num-cpus={cpus} --temp-dir={temp}"
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
        _wait_for_port(dashboard_port, process, folder / "head.log")
        env.pop("RAY_AUTH_MODE")  # the launcher has to see to that itself
        checkout = copy_project(folder / "checkout")
        yield Head(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{port}", checkout, env, temp)
    finally:
        kill_tree(process)
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"the head does not start:\n{log.read_text(errors='replace')}")
