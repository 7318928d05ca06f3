"""Ray's own commands, with the environment in which they do what they should."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ali_dist.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
# Ray looks for it here on every machine, and so do its own commands when a user calls them.
TOKEN = Path("~/.ray/auth_token")
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    # The newer autoscaler cannot start own machines (Ray 2.60: of several workers it starts one, and loops).
    "RAY_UP_enable_autoscaler_v2": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def make_token() -> None:
    """The token that closes clusters to everybody else: made on first use, readable by its owner alone.

    Raises:
        InputError: It cannot be written.
    """
    path = TOKEN.expanduser()
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = os.umask(0o077)
            try:
                subprocess.run(command_words("get-auth-token", "--generate"), check=True, capture_output=True)
            finally:
                os.umask(before)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): it keeps the clusters' token.") from error


def use_token(file: object = None) -> None:
    """Make Ray in this process, and in what it starts, show the token.

    Args:
        file: That of the cluster; None for one that others started, whose token may also be in RAY_AUTH_TOKEN.

    Raises:
        InputError: There is no token for the cluster, or two.
    """
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    there = TOKEN.expanduser().exists()
    if file is not None and named:
        raise InputError(
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set, but clusters get the token of {TOKEN}: unset it; to use "
            "another token, put it into that file."
        )
    if file is not None and not there:
        raise InputError(
            f"There is no token in {TOKEN}, so the cluster was not started from here: start it with python -m cluster "
            f"up {file}, or bring the token here."
        )
    os.environ.update(SETTINGS if named or there else {**SETTINGS, "RAY_AUTH_MODE": "disabled"})


def command_words(*arguments: str) -> list[str]:
    """`ray` of this Python, with arguments."""
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def run_ray(arguments: Sequence[str], *, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """A `ray` command from the project's folder, where the files that a cluster mounts are.

    Args:
        arguments: Of `ray`.
        quiet: Keep its output instead of showing it.
    """
    return subprocess.run(
        command_words(*arguments, "--log-style=pretty"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
