"""Ray's own commands, and the environment variables and the token that they need."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ali_dist.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
# Ray looks for the token here on every machine, also when a user calls Ray's own commands.
TOKEN_FILE = Path("~/.ray/auth_token")
_RAY_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    # The newer autoscaler cannot start own machines (Ray 2.60: of several workers it starts one, and loops).
    "RAY_UP_enable_autoscaler_v2": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def make_token() -> None:
    """Make the token that closes clusters to everybody else, on first use, and readable by its owner alone.

    Raises:
        InputError: The token cannot be written.
    """
    path = TOKEN_FILE.expanduser()
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            previous_mask = os.umask(0o077)
            try:
                subprocess.run(build_ray_command("get-auth-token", "--generate"), check=True, capture_output=True)
            finally:
                os.umask(previous_mask)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise InputError(
            f"{path}, which holds the token of your clusters, cannot be written ({error.strerror}): make it writable."
        ) from error


def use_token(cluster_path: str | Path | None = None) -> None:
    """Make Ray show the token, in this process and in those that it starts.

    Args:
        cluster_path: The cluster's file. None for a cluster that others started, whose token may also be in the
            variable RAY_AUTH_TOKEN.

    Raises:
        InputError: There is no token for the cluster, or there are two.
    """
    is_in_variable = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    is_in_file = TOKEN_FILE.expanduser().exists()
    if cluster_path is not None and is_in_variable:
        raise InputError(
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set, but clusters get the token of {TOKEN_FILE}: unset it; to "
            "use another token, put it into that file."
        )
    if cluster_path is not None and not is_in_file:
        raise InputError(
            f"There is no token in {TOKEN_FILE}, so the cluster was not started from here: start it with python -m "
            f"cluster up {shlex.quote(str(cluster_path))}, or bring the token here."
        )
    has_token = is_in_variable or is_in_file
    os.environ.update(_RAY_VARIABLES if has_token else {**_RAY_VARIABLES, "RAY_AUTH_MODE": "disabled"})


def build_ray_command(*arguments: str) -> list[str]:
    """The command line of this Python's `ray` with `arguments`."""
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def check_checkout() -> None:
    """Check that this launcher lies in the project's folder, whose code and pinned versions `up` copies to machines.

    Raises:
        InputError: It was installed from a wheel, which has neither.
    """
    if not (ROOT / "constraints.txt").is_file():
        raise InputError(
            f"`up` copies the project's folder to the machines, but {ROOT}, where this launcher is installed, has no "
            "constraints.txt: run it in a checkout or in the unpacked source archive."
        )


def run_ray(arguments: Sequence[str], *, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `ray` in the project's folder, from which the paths of files that a cluster mounts start.

    Args:
        arguments: The arguments of `ray`.
        quiet: Keep its output instead of showing it.
    """
    return subprocess.run(
        build_ray_command(*arguments, "--log-style=pretty"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
