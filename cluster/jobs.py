"""Jobs on a running cluster, through Ray's job server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ali_dist.errors import FAILED, STOPPED, InputError
from ali_dist.launchers.ray_storage import ACCESS_VARIABLES, storage_access
from cluster.entry import ACCESS_PREFIX

# What does not travel with a job, beside what git ignores. A leading slash stands for the root of the working folder:
# `data` is also the name of a package.
_EXCLUDED_PATHS = [".git", ".venv", "/runs/", "/data/", "/.swift/", "*.egg-info", ".*_cache", ".hypothesis"]
ENDED_STATES = ("STOPPED", "SUCCEEDED", "FAILED")
_NO_AGENT = "No available agent"  # Ray's words, with status 500
_AGENT_SECONDS = 90.0
_AGENT_POLL_SECONDS = 1.0
_MOST_JOBS = 5  # known jobs that a sentence lists


class JobClient:
    """The client of a cluster's job server.

    Args:
        address: The server's address, such as http://127.0.0.1:8265.
        start_hint: What starts the server, as a phrase for messages.

    Raises:
        InputError: No server of Ray answers at the address.
    """

    def __init__(self, address: str, start_hint: str) -> None:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)  # or Ray remarks on each upload and each log
        self._start_hint = start_hint
        self._address = address
        with self._explain_errors():
            self._client: Any = JobSubmissionClient(address)

    def submit_job(self, entrypoint: Sequence[str], folder: Path, variables: Sequence[str]) -> str:
        """Start a command in a copy of a folder, and return the job's id.

        Args:
            entrypoint: The command and its arguments.
            folder: What travels with the job, but for data, results and what git ignores.
            variables: Environment variables of all its processes: NAME=VALUE, or NAME for the value here.

        Raises:
            InputError: The folder cannot be sent, or a variable is refused.
        """
        runtime = {
            "working_dir": str(folder),
            "excludes": _EXCLUDED_PATHS,
            "env_vars": collect_variables(variables, os.environ),
        }
        access = {ACCESS_PREFIX + name: value for name, value in storage_access().items()}
        if access and not (folder / "cluster" / "entry.py").is_file():
            raise InputError(f"{folder} is not the project's folder, which has to travel with the job: go there first.")
        prefix = ["python", "-m", "cluster.entry"] if access else []
        command = shlex.join([*prefix, *entrypoint])
        with self._explain_errors():
            try:
                # The keys travel in the request's body: in no file, and in no argument that others could read.
                job = _retry_without_agent(
                    lambda: self._client.submit_job(entrypoint=command, runtime_env=runtime, metadata=access)
                )
            except ValueError as error:
                raise InputError(f"{folder} cannot be sent to the cluster: {error}") from error
        return str(job)

    def show_output(self, job: str) -> int:
        """Write the output of a job to stdout until it ends, and return its exit code, as `wait_for_exit_code` does.

        Raises:
            InputError: There is no such job.
        """
        self.get_job(job)

        async def write_lines() -> None:
            async for lines in self._client.tail_job_logs(job):
                sys.stdout.write(lines)
                sys.stdout.flush()

        with self._explain_errors():
            asyncio.run(write_lines())
        return self.wait_for_exit_code(job)

    def wait_for_exit_code(self, job: str, timeout: float = 60.0) -> int:
        """The exit code of a job's own command, or 75 if the job was stopped.

        Args:
            job: A job that has ended or is about to end.
            timeout: Seconds to wait for its end.
        """
        info = self._wait_for_end(job, timeout)
        if info.status == "STOPPED":
            return STOPPED
        if info.driver_exit_code is None:
            sys.stderr.write(f"cluster: the job {job} is {info.status}: {(info.message or '').strip()}\n")
            return FAILED
        return int(info.driver_exit_code)

    def stop_job(self, job: str, timeout: float = 180.0) -> str:
        """Ask a job to save a checkpoint and stop, wait up to `timeout` seconds, and return its state then.

        Raises:
            InputError: There is no such job.
        """
        if self.get_job(job).status not in ENDED_STATES:
            with self._explain_errors():
                self._client.stop_job(job)
        return str(self._wait_for_end(job, timeout).status)

    def _wait_for_end(self, job: str, timeout: float) -> Any:
        """What the server knows of a job when it has ended, or when `timeout` seconds have passed."""
        deadline = time.monotonic() + timeout
        while (info := self.get_job(job)).status not in ENDED_STATES and time.monotonic() < deadline:
            time.sleep(0.5)
        return info

    def get_job(self, job: str) -> Any:
        """What the server knows of a job: Ray's `JobDetails`.

        Raises:
            InputError: There is no such job.
        """
        with self._explain_errors():
            try:
                return self._client.get_job_info(job)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                known = [entry.submission_id for entry in self.list_jobs() if entry.submission_id]
                newest = f"its newest are {', '.join(known[-_MOST_JOBS:])}" if known else "it has had none yet"
                raise InputError(f"The cluster has no job {job!r}: give the id of another one; {newest}.") from error

    def list_jobs(self) -> list[Any]:
        """All jobs as Ray's `JobDetails`, the oldest first."""
        with self._explain_errors():
            return sorted(self._client.list_jobs(), key=lambda entry: entry.start_time or 0)

    def list_nodes(self) -> list[Any]:
        """The machines that are in the cluster now, as Ray's `NodeState`."""
        from ray.util.state import list_nodes

        with self._explain_errors():
            return list(list_nodes(address=self._address, filters=[("state", "=", "ALIVE")], limit=1000))

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Turn Ray's errors about a server that does not answer, or refuses the token, into sentences."""
        try:
            yield
        except Exception as error:
            kind = type(error).__name__
            text = str(error)
            if isinstance(error, ConnectionError) or "ConnectionError" in kind or "Failed to connect" in text:
                raise InputError(f"Ray does not answer: start it with {self._start_hint}.") from error
            if "Authentication" in kind or "nauthorized" in text:
                raise InputError(
                    "The cluster does not know the token in ~/.ray/auth_token, for it was started with another one: "
                    f"use that one, or start the cluster anew with {self._start_hint}."
                ) from error
            raise


def _retry_without_agent(submit: Callable[[], Any]) -> Any:
    """Submit a job; a cluster that has just started takes none before an agent of the job server runs.

    Raises:
        InputError: There is none within `_AGENT_SECONDS`.
    """
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if _NO_AGENT not in str(error):
                raise
            if time.monotonic() > deadline:
                raise InputError(
                    f"The cluster takes no jobs yet: none of its machines has run an agent of the job server within "
                    f"{_AGENT_SECONDS:.0f} seconds. Try again later; its logs are in /tmp/ray/session_latest/logs."
                ) from error
        time.sleep(_AGENT_POLL_SECONDS)


def collect_variables(variables: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that --env names, with their values.

    Args:
        variables: NAME=VALUE, or NAME for the value in `environment`.
        environment: This process's environment.

    Raises:
        InputError: A name has no value, or its value must not get into Ray's logs.
    """
    values = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if name in ACCESS_VARIABLES:
            raise InputError(
                f"--env {name} would show the value in Ray's logs: leave it out; where the variable is set, it is "
                "passed on by itself."
            )
        if not equals and name not in environment:
            raise InputError(f"--env {name}: the variable is not set here; set it, or give --env {name}=VALUE.")
        values[name] = value if equals else environment[name]
    return values
