"""Own machines over SSH: check them, copy files to them and run commands on all of them at once."""

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
_COMMAND_SECONDS = 120.0
_SETUP_SECONDS = 1800.0  # enough for a machine that installs everything over a slow line
_SSH_FAILED = 255  # the exit code of ssh itself
_NO_RSYNC = 81
_NO_PYTHON = 82
_CHECK_SCRIPT = f"""
command -v rsync >/dev/null || exit {_NO_RSYNC}
~/ali/venv/bin/python -c '' 2>/dev/null && exit 0
for python in python3.11 python3; do
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && exit 0
done
exit {_NO_PYTHON}
"""
_STOP_RAY_SCRIPT = "if [ -x ~/ali/venv/bin/ray ]; then ~/ali/venv/bin/ray stop; fi"
_UNREACHABLE = ("timed out", "No route to host", "Connection refused", "unreachable", "resolve hostname")

Completed = subprocess.CompletedProcess[str]


def build_ssh_command(cluster: ClusterFile, *options: str) -> list[str]:
    """`ssh` with the cluster's user and key, ready for an address to be appended.

    It never asks for a password or a confirmation, and gives up after some seconds.
    """
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    command += ["-o", "StrictHostKeyChecking=accept-new", "-o", "ServerAliveInterval=15", "-o", "LogLevel=ERROR"]
    if cluster.key is not None:
        command += ["-i", str(cluster.key), "-o", "IdentitiesOnly=yes"]
    return [*command, "-l", cluster.user, *options]


def run_remote(cluster: ClusterFile, address: str, command: str, timeout: float = _COMMAND_SECONDS) -> Completed:
    """Run a shell command on one machine, for at most `timeout` seconds; exit code 255 is a failure of SSH itself."""
    try:
        return _run_quietly([*build_ssh_command(cluster), address, command], timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], _SSH_FAILED, "", f"timed out after {timeout:.0f} s")


def check_machines(cluster: ClusterFile) -> None:
    """Log in to every machine and see whether it has what it needs to be set up.

    Raises:
        InputError: SSH is not installed here, or some machines cannot be used; the message names each with its fix.
    """
    if shutil.which("ssh") is None or shutil.which("rsync") is None:
        raise InputError("Own machines are reached with ssh and rsync: install both on this machine.")

    def check_machine(address: str) -> str:
        return _explain_check(cluster, address, run_remote(cluster, address, _CHECK_SCRIPT))

    if reasons := _collect_failures(cluster, check_machine):
        raise InputError(" ".join(dict.fromkeys(reasons)))


def _explain_check(cluster: ClusterFile, address: str, completed: Completed) -> str:
    if completed.returncode == _NO_RSYNC:
        return f"{address} has no rsync: install it there."
    if completed.returncode == _NO_PYTHON:
        return f"{address} has no Python 3.11 with venv: install it there (python3.11 and python3.11-venv)."
    return explain_ssh_error(cluster, address, completed.stderr) if completed.returncode else ""


def explain_ssh_error(cluster: ClusterFile, address: str, error: str) -> str:
    """What SSH printed about a machine, as one sentence with the fix."""
    last_line = (error.strip().splitlines() or ["no reason given"])[-1].strip().rstrip(".")
    if "Permission denied" in error:
        return (
            f"{address} does not let {cluster.user} in with the key {cluster.key or 'of your SSH agent'}: check "
            f"auth.ssh_user and auth.ssh_private_key, or add the key with ssh-copy-id {cluster.user}@{address}."
        )
    if "REMOTE HOST IDENTIFICATION" in error or "Host key verification failed" in error:
        return (
            f"{address} is not the machine that SSH knows under this address: if it was installed anew, forget the "
            f"old one with ssh-keygen -R {address}."
        )
    if any(text in error for text in _UNREACHABLE):
        return f"{address} cannot be reached by SSH ({last_line}): check its address, its power and its SSH server."
    return f"{address} cannot be used by SSH ({last_line}): make ssh {cluster.user}@{address} work first."


def set_up_machines(cluster: ClusterFile, root: Path) -> list[str]:
    """Copy the cluster's files to all machines and run its setup commands there, on all machines at once.

    `ray up` does the same on the head and then lets the head do it on the others, whose failures stay in its logs.
    When it runs afterwards, it finds everything done.

    Args:
        cluster: A cluster of own machines.
        root: The folder from which relative paths of the cluster's mounts start.

    Returns:
        A sentence for each machine that could not be set up.
    """
    folders = sorted({posixpath.dirname(target) for target, _ in cluster.mounts})
    make_folders = f"mkdir -p {' '.join(map(_quote_home_path, folders))}" if folders else "true"

    def set_up_machine(address: str) -> str:
        completed = run_remote(cluster, address, make_folders)
        if completed.returncode:
            return explain_ssh_error(cluster, address, completed.stderr)
        for target, source in cluster.mounts:
            completed = _copy_to_machine(cluster, root / Path(source).expanduser(), address, target)
            if completed.returncode:  # rsync prints the reason first and its exit code last
                return f"{address} does not take {source}: {_list_output_lines(completed)[0]}"
        for command in cluster.setup:
            completed = run_remote(cluster, address, command, _SETUP_SECONDS)
            if completed.returncode:
                return f"{address} could not be set up: {_list_output_lines(completed)[-1]}"
        return ""

    return _collect_failures(cluster, set_up_machine)


def _list_output_lines(completed: Completed) -> list[str]:
    """What a command that failed has printed; at least one line."""
    return (completed.stderr or completed.stdout).strip().splitlines() or [f"exit code {completed.returncode}"]


def _copy_to_machine(cluster: ClusterFile, source: Path, address: str, target: str) -> Completed:
    """Copy a file or folder to `target` on a machine, which may begin with `~/`. The login user will own the copy."""
    slash = "/" if source.is_dir() else ""
    destination = f"{address}:{target.removeprefix('~/')}{slash}"
    remote_shell = shlex.join(build_ssh_command(cluster))
    return _run_quietly(["rsync", "-rlpt", "-e", remote_shell, f"{source}{slash}", destination])


def _quote_home_path(path: str) -> str:
    """Quote a path for a shell that has to expand a leading `~/`."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def stop_ray_everywhere(cluster: ClusterFile) -> list[str]:
    """End Ray on every machine; on the head first, which would start it again on the others.

    Returns:
        A sentence for each machine that could not be reached.
    """

    def stop_ray(address: str) -> str:
        completed = run_remote(cluster, address, _STOP_RAY_SCRIPT)
        is_unreachable = completed.returncode == _SSH_FAILED
        return explain_ssh_error(cluster, address, completed.stderr) if is_unreachable else ""

    stop_ray(cluster.head)
    return _collect_failures(cluster, stop_ray)


def _collect_failures(cluster: ClusterFile, action: Callable[[str], str]) -> list[str]:
    """Call `action` with the address of every machine at once; the sentences that it returned, without empty ones."""
    with ThreadPoolExecutor(32) as pool:
        return [reason for reason in pool.map(action, cluster.machines) if reason]


def _run_quietly(command: list[str], timeout: float | None = None) -> Completed:
    """Run a command without input and keep its output.

    Raises:
        subprocess.TimeoutExpired: It took more than `timeout` seconds.
    """
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
