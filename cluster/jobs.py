"""Jobs on a running cluster, through Ray's job server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ali_dist.errors import InputError
from ali_dist.launchers.ray_storage import ACCESS_VARIABLES, storage_access
from cluster.entry import MARK

STOPPED, FAILED = 75, 1
# From the root of the working directory: data and results have their own ways, and `data` is also a package's name.
_LEFT_BEHIND = [".git", ".venv", "/runs/", "/data/", "/.swift/", "*.egg-info", ".*_cache", ".hypothesis"]
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


class JobClient:
    """The job server at an address, e.g. http://127.0.0.1:8265.

    Raises:
        InputError: Ray does not answer there.
    """

    def __init__(self, address: str, how_to_start: str) -> None:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)  # else each upload and log comes with remarks about itself
        self._how_to_start = how_to_start
        self.address = address
        with self._answering():
            self._client: Any = JobSubmissionClient(address)

    def submit(self, entrypoint: Sequence[str], folder: Path, passed: Sequence[str]) -> str:
        """Start a command with the contents of a folder; the job's id.

        Args:
            entrypoint: The command and its arguments.
            folder: The job starts in a copy of it, without what git ignores, data and results.
            passed: NAME, whose value is taken from here, or NAME=VALUE: for the environment of all its processes.
        """
        runtime = {
            "working_dir": str(folder),
            "excludes": _LEFT_BEHIND,
            "env_vars": choose_environment(passed, os.environ),
        }
        access = {MARK + name: value for name, value in storage_access().items()}
        if access and not (folder / "cluster" / "entry.py").is_file():
            raise InputError(f"{folder} is not the project's folder, which has to travel with the job: go there first.")
        words = [*(["python", "-m", "cluster.entry"] if access else []), *entrypoint]
        with self._answering():
            try:
                # Keys go into the request's body: into no file, and no argument that others could read.
                job = self._client.submit_job(entrypoint=shlex.join(words), runtime_env=runtime, metadata=access)
            except ValueError as error:
                raise InputError(f"{folder} cannot be sent to the cluster: {error}") from error
        return str(job)

    def follow(self, job: str) -> int:
        """Show the job's output to its end; its exit code, 75 where it was stopped."""
        self.info(job)

        async def show() -> None:
            async for lines in self._client.tail_job_logs(job):
                sys.stdout.write(lines)
                sys.stdout.flush()

        with self._answering():
            asyncio.run(show())
        return self.outcome(job)

    def outcome(self, job: str, timeout: float = 60.0) -> int:
        """The exit code of a job that has ended or soon will: its command's own, or 75 where it was stopped."""
        deadline = time.monotonic() + timeout
        while self.info(job).status not in _ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        info = self.info(job)
        if info.status == "STOPPED":
            return STOPPED
        if info.driver_exit_code is None:
            sys.stderr.write(f"cluster: the job {job} is {info.status}: {(info.message or '').strip()}\n")
            return FAILED
        return int(info.driver_exit_code)

    def stop(self, job: str, timeout: float = 180.0) -> str:
        """Ask a job to save and stop, wait for it; its state then.

        Raises:
            InputError: There is no such job.
        """
        if self.info(job).status in _ENDED:
            return str(self.info(job).status)
        with self._answering():
            self._client.stop_job(job)
        deadline = time.monotonic() + timeout
        while self.info(job).status not in _ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        return str(self.info(job).status)

    def info(self, job: str) -> Any:
        """What the server knows of a job.

        Raises:
            InputError: There is no such job.
        """
        with self._answering():
            try:
                return self._client.get_job_info(job)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                known = [entry.submission_id for entry in self.all() if entry.submission_id]
                raise InputError(
                    f"The cluster has no job {job!r}; it has {', '.join(known[-5:]) or 'none yet'}."
                ) from error

    def all(self) -> list[Any]:
        """All jobs, the oldest first."""
        with self._answering():
            return sorted(self._client.list_jobs(), key=lambda entry: entry.start_time or 0)

    def nodes(self) -> list[Any]:
        """The machines that are in the cluster now."""
        from ray.util.state import list_nodes

        with self._answering():
            return list(list_nodes(address=self.address, filters=[("state", "=", "ALIVE")], limit=1000))

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Ray's complaints about a server that is not there or not ours, as sentences."""
        try:
            yield
        except Exception as error:
            kind, text = type(error).__name__, str(error)
            if isinstance(error, ConnectionError) or "ConnectionError" in kind or "Failed to connect" in text:
                raise InputError(f"Ray does not answer: start it with {self._how_to_start}.") from error
            if "Authentication" in kind or "nauthorized" in text:
                raise InputError(
                    "The cluster does not know the token in ~/.ray/auth_token: it was started with another one; take "
                    f"that, or start the cluster anew with {self._how_to_start}."
                ) from error
            raise


def choose_environment(passed: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What --env asks for, by name.

    Raises:
        InputError: A name has no value here, or is one that must not get into Ray's logs.
    """
    found = {}
    for word in passed:
        name, equals, value = word.partition("=")
        if name in ACCESS_VARIABLES:
            raise InputError(
                f"--env {name}: it is passed on by itself where it is set; Ray would log what --env names."
            )
        if not equals and name not in environment:
            raise InputError(f"--env {name}: the variable is not set here; set it, or give --env {name}=VALUE.")
        found[name] = value if equals else environment[name]
    return found
