"""A way to the cluster's job server, which listens on the head's 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from ali_dist.errors import InputError
from cluster import ray_cli as ray_commands
from cluster import ssh
from cluster.cluster_file import ClusterFile

PORT = 8265  # of the job server and dashboard, on the head
_OPEN_SECONDS = 90.0  # looking up a cloud's head and logging in to it


@contextlib.contextmanager
def open_tunnel(cluster: ClusterFile, port: int | None = None) -> Iterator[str]:
    """The job server's address on this machine, as long as the block runs.

    Args:
        cluster: Whose.
        port: The port here; default: a free one.

    Raises:
        InputError: The head cannot be reached.
    """
    port = port or _free_port()
    if cluster.is_local:
        forward = f"127.0.0.1:{port}:127.0.0.1:{PORT}"
        options = ("-N", "-L", forward, "-o", "ExitOnForwardFailure=yes")
        command = [*ssh.ssh_words(cluster, *options), cluster.head]
    else:
        command = ray_commands.command_words(
            "dashboard", str(cluster.path), "--port", str(port), "--remote-port", str(PORT)
        )
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, text=True
        )
        try:
            _wait_until_open(cluster, port, process, said)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_until_open(cluster: ClusterFile, port: int, process: subprocess.Popen[str], said: IO[str]) -> None:
    deadline = time.monotonic() + _OPEN_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            said.seek(0)
            text = said.read()
            if cluster.is_local:
                raise InputError(ssh.setup_failures(cluster, cluster.head, text))
            last = (text.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
            raise InputError(
                f"The cluster of {cluster.path} cannot be reached ({last}): start it with python -m cluster up "
                f"{cluster.path}."
            )
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
