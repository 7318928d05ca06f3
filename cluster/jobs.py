"""Jobs on a running cluster, through Ray's job server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ali_dist.errors import InputError

STOPPED, FAILED = 75, 1
# The names with which boto3 and Arrow are given access; nothing else of the environment leaves this machine unasked.
_STORAGE = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip
# From the root of the working directory: data and results have their own ways, and `data` is also a package's name.
_LEFT_BEHIND = [".git", ".venv", "/runs/", "/data/", "/.swift/", "*.egg-info", ".*_cache", ".hypothesis"]
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


class Jobs:
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
            passed: NAME, whose value is taken from here, or NAME=VALUE: for the job's environment, beside AWS_*.
        """
        # In the request's body, not in an argument or a file: nobody else on this machine gets to see it.
        environment = job_environment(passed, os.environ)
        runtime = {"working_dir": str(folder), "excludes": _LEFT_BEHIND, "env_vars": environment}
        with self._answering():
            try:
                return str(self._client.submit_job(entrypoint=shlex.join(entrypoint), runtime_env=runtime))
            except ValueError as error:
                raise InputError(f"{folder} cannot be sent to the cluster: {error}") from error

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


def job_environment(passed: Sequence[str], environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """What a job's environment gets: access to storage where it is set here, and what `passed` names.

    Raises:
        InputError: A name in `passed` has no value here.
    """
    found = {name: environment[name] for name in _STORAGE if environment.get(name)}
    for word in passed:
        name, equals, value = word.partition("=")
        if not equals and name not in environment:
            raise InputError(f"--env {name}: the variable is not set here; set it, or give --env {name}=VALUE.")
        found[name] = value if equals else environment[name]
    return found
