"""The tunnel to a cluster's job server and dashboard, which listen on the head's 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from ali_dist.errors import InputError
from cluster import ray_cli, ssh
from cluster.cluster_file import ClusterFile

DASHBOARD_PORT = 8265  # of the dashboard and the job server, on the head
_OPEN_SECONDS = 90.0  # enough to look up a cloud's head and log in to it


@contextlib.contextmanager
def open_tunnel(cluster: ClusterFile, port: int | None = None) -> Iterator[str]:
    """Open a tunnel, which is closed when the block ends.

    Args:
        cluster: The cluster whose head to reach.
        port: The tunnel's port on this machine; None takes a free one.

    Yields:
        The job server's address on this machine.

    Raises:
        InputError: The head cannot be reached.
    """
    port = port or _find_free_port()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            _build_tunnel_command(cluster, port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            text=True,
        )
        try:
            _wait_until_open(cluster, port, process, output)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _build_tunnel_command(cluster: ClusterFile, port: int) -> list[str]:
    if cluster.is_local:
        forward = f"127.0.0.1:{port}:127.0.0.1:{DASHBOARD_PORT}"
        return [*ssh.build_ssh_command(cluster, "-N", "-L", forward, "-o", "ExitOnForwardFailure=yes"), cluster.head]
    ports = ("--port", str(port), "--remote-port", str(DASHBOARD_PORT))
    return ray_cli.build_ray_command("dashboard", str(cluster.path), *ports)


def _wait_until_open(cluster: ClusterFile, port: int, process: subprocess.Popen[str], output: IO[str]) -> None:
    deadline = time.monotonic() + _OPEN_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            output.seek(0)
            raise InputError(_explain_failure(cluster, output.read()))
        time.sleep(0.05)


def _explain_failure(cluster: ClusterFile, text: str) -> str:
    """What the tunnel's process printed, as one sentence with the fix."""
    if cluster.is_local:
        return ssh.explain_ssh_error(cluster, cluster.head, text)
    last_line = (text.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
    return (
        f"The cluster of {cluster.path} cannot be reached ({last_line}): start it with python -m cluster up "
        f"{shlex.quote(str(cluster.path))}."
    )


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
