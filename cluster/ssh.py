"""Own machines over SSH: whether they can be used, and a command on each of them."""

from __future__ import annotations

import posixpath
import shlex
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ali_dist.errors import InputError
from cluster.cluster_file import ClusterFile

_CONNECT_SECONDS = 10
_SETUP_SECONDS = 1800.0  # a machine that installs everything over a slow line
_NO_RSYNC, _NO_PYTHON = 81, 82
_CAN_WORK = f"""
command -v rsync >/dev/null || exit {_NO_RSYNC}
~/ali/venv/bin/python -c '' 2>/dev/null && exit 0
for python in python3.11 python3; do
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && exit 0
done
exit {_NO_PYTHON}
"""
_UNREACHABLE = ("timed out", "No route to host", "Connection refused", "unreachable", "resolve hostname")


def ssh_words(cluster: ClusterFile, *options: str) -> list[str]:
    """`ssh` with the cluster's user and key; the address comes next. It asks nothing and gives up soon."""
    found = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    found += ["-o", "StrictHostKeyChecking=accept-new", "-o", "ServerAliveInterval=15", "-o", "LogLevel=ERROR"]
    if cluster.key is not None:
        found += ["-i", str(cluster.key), "-o", "IdentitiesOnly=yes"]
    return [*found, "-l", cluster.user, *options]


def check_machines(cluster: ClusterFile) -> None:
    """Log in to every machine and see whether it has what setting it up takes.

    Raises:
        InputError: SSH is not installed here, or one or more machines cannot be used: which, why and what to do.
    """
    if shutil.which("ssh") is None or shutil.which("rsync") is None:
        raise InputError("Own machines are reached with ssh and rsync: install both on this machine.")
    if reasons := _on_each_machine(
        cluster, lambda address: _setup_failure(cluster, address, run_remote(cluster, address, _CAN_WORK))
    ):
        raise InputError(" ".join(dict.fromkeys(reasons)))


def run_remote(
    cluster: ClusterFile, address: str, command: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """A shell command on one machine; 255 is SSH's own failure."""
    try:
        return subprocess.run(
            [*ssh_words(cluster), address, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 255, "", f"timed out after {timeout:.0f} s")


def setup_failures(cluster: ClusterFile, address: str, error: str) -> str:
    """SSH's complaint about a machine as a sentence with the fix."""
    last = (error.strip().splitlines() or ["no reason given"])[-1].strip().rstrip(".")
    if "Permission denied" in error:
        return (
            f"{address} does not let {cluster.user} in with the key {cluster.key or 'of your SSH agent'}: check "
            f"auth.ssh_user and auth.ssh_private_key, or add the key with ssh-copy-id {cluster.user}@{address}."
        )
    if "REMOTE HOST IDENTIFICATION" in error or "Host key verification failed" in error:
        return (
            f"{address} is not the machine that SSH knows under this address: if it was set up anew, forget the old "
            f"one with ssh-keygen -R {address}."
        )
    if any(word in error for word in _UNREACHABLE):
        return f"{address} cannot be reached by SSH ({last}): check its address, that it is on, and its SSH server."
    return f"{address} cannot be used by SSH ({last}): see that ssh {cluster.user}@{address} works."


def _setup_failure(cluster: ClusterFile, address: str, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == _NO_RSYNC:
        return f"{address} has no rsync: install it there."
    if done.returncode == _NO_PYTHON:
        return f"{address} has no Python 3.11 with venv: install it there (python3.11 and python3.11-venv)."
    return setup_failures(cluster, address, done.stderr) if done.returncode else ""


def set_up_machines(cluster: ClusterFile, root: Path) -> list[str]:
    """Make all machines ready at once; the reason of each failure.

    `ray up` does the same to the head and then lets the head do it to the others, whose failures stay in its logs.
    What is done already takes it no time.

    Args:
        cluster: Own machines.
        root: What relative paths of its mounts start from.
    """
    folders = sorted({posixpath.dirname(there) for there, _ in cluster.mounts})

    def one(address: str) -> str:
        done = run_remote(cluster, address, f"mkdir -p {' '.join(map(_quote_words, folders))}" if folders else "true")
        if done.returncode:
            return setup_failures(cluster, address, done.stderr)
        for there, here in cluster.mounts:
            done = _copy_project(cluster, root / Path(here).expanduser(), address, there)
            if done.returncode:  # rsync says first what is wrong, and last its code
                return f"{address} does not take {here}: {_output_lines(done)[0]}"
        for command in cluster.setup:
            done = run_remote(cluster, address, command, _SETUP_SECONDS)
            if done.returncode:
                return f"{address} could not be set up: {_output_lines(done)[-1]}"
        return ""

    return _on_each_machine(cluster, one)


def _output_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a command that failed said."""
    return (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]


def _copy_project(cluster: ClusterFile, here: Path, address: str, there: str) -> subprocess.CompletedProcess[str]:
    """Copy a file or a folder to a path of a machine, of which `~/` may be the beginning; it will be the user's own."""
    slash = "/" if here.is_dir() else ""
    goal = f"{address}:{there.removeprefix('~/')}{slash}"
    return subprocess.run(
        ["rsync", "-rlpt", "-e", shlex.join(ssh_words(cluster)), f"{here}{slash}", goal],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _quote_words(path: str) -> str:
    """For a shell that still has to read a leading `~/`."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def stop_ray_everywhere(cluster: ClusterFile) -> list[str]:
    """End Ray on every machine, the head first, which would start the others again; the reason of each failure."""
    command = "if [ -x ~/ali/venv/bin/ray ]; then ~/ali/venv/bin/ray stop; fi"

    def stop(address: str) -> str:
        done = run_remote(cluster, address, command)
        return setup_failures(cluster, address, done.stderr) if done.returncode == 255 else ""

    stop(cluster.head)
    return _on_each_machine(cluster, stop)


def _on_each_machine(cluster: ClusterFile, one: Callable[[str], str]) -> list[str]:
    """The reasons that `one` gives for addresses, all at once; "" is none."""
    with ThreadPoolExecutor(32) as pool:
        return [reason for reason in pool.map(one, cluster.machines) if reason]
