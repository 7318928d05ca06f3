"""What each command of `python -m cluster` does. Every `run_...` returns the command's exit code."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ali_dist.errors import FAILED, INTERRUPTED, InputError
from cluster import ray_cli, ssh, tunnel
from cluster.checks import check_documents, read_documents
from cluster.cluster_file import ClusterFile, load_cluster_file
from cluster.jobs import ENDED_STATES, JobClient

_JOIN_SECONDS = 1800.0  # enough for a machine that pulls a large image over a slow line


def is_address(target: str) -> bool:
    """Whether a cluster is named by the address of its job server, not by its file."""
    return target.startswith(("http://", "https://"))


@contextlib.contextmanager
def connect_to_jobs(target: str) -> Iterator[JobClient]:
    """Reach the job server of a cluster as long as the block runs.

    Args:
        target: The cluster's file, or the address of its job server.

    Raises:
        InputError: It cannot be reached.
    """
    if is_address(target):
        ray_cli.use_token()
        yield JobClient(target, f"what serves {target} (for Kubernetes: kubectl port-forward to the head's port 8265)")
        return
    cluster = load_cluster_file(Path(target))
    ray_cli.use_token(target)
    with tunnel.open_tunnel(cluster) as address:
        yield JobClient(address, f"python -m cluster up {shlex.quote(target)}")


# ---- clusters ------------------------------------------------------------------------------------------------------


def run_up(cluster: ClusterFile) -> int:
    """Start Ray on the machines, and wait until all of them have joined.

    Raises:
        InputError: The file cannot work or leaves something open, or a machine cannot be reached.
    """
    # This has to come first: the checks load Ray, which keeps the mode of authentication that it finds when loaded.
    ray_cli.make_token()
    ray_cli.use_token(cluster.path)
    if findings := check_documents(read_documents(cluster.path)):
        raise InputError("\n".join(f"{cluster.path}: {finding}" for finding in findings))
    if cluster.is_local:
        ssh.check_machines(cluster)
        if _is_up(cluster):
            print("The cluster is up already. To start it anew, with what you may have changed, take it down first.")
            print(describe_use(cluster))
            return 0
        if not _set_up_machines(cluster):
            return FAILED
    completed = ray_cli.run_ray(["up", "-y", "--no-config-cache", str(cluster.path)])
    if completed.returncode:
        _print_error("ray up failed, and its last lines say why.")
        return FAILED
    code = _wait_for_machines(cluster) if cluster.is_local else 0
    if code == 0:
        print(describe_use(cluster))
    return code


def describe_use(cluster: ClusterFile) -> str:
    """How jobs get to a cluster that is up: by the launcher; Ray's own commands find neither address nor token."""
    file = shlex.quote(str(cluster.path))
    return (
        f"Run something there: python -m cluster submit {file} --follow -- python -m ali_dist.train --run.dir "
        f"s3://BUCKET/runs\nRay's own `ray job submit` needs `python -m cluster tunnel {file}` beside it, and "
        f"{_describe_ray_variables(tunnel.DASHBOARD_PORT)}."
    )


def _describe_ray_variables(port: int) -> str:
    return f"RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:{port} in its environment"


def _is_up(cluster: ClusterFile) -> bool:
    with contextlib.suppress(InputError), connect_to_jobs(str(cluster.path)):
        return True
    return False


def _set_up_machines(cluster: ClusterFile) -> bool:
    """Prepare own machines for Ray, and return whether all of them are."""
    count = len(cluster.machines)
    print(f"Setting up {count} machine{'s' * (count > 1)}: minutes and 6 GB the first time.", flush=True)
    reasons = ssh.set_up_machines(cluster, ray_cli.ROOT)
    for reason in reasons:
        _print_error(reason)
    return not reasons


def _wait_for_machines(cluster: ClusterFile) -> int:
    """Print how many machines have joined until all have. The head starts Ray on the others."""
    machine_count = len(cluster.machines)
    most_joined = 0
    nodes: list[Any] = []
    deadline = time.monotonic() + _JOIN_SECONDS
    with connect_to_jobs(str(cluster.path)) as jobs:
        while time.monotonic() < deadline:
            nodes = jobs.list_nodes()
            if len(nodes) > most_joined:
                most_joined = len(nodes)
                print(f"{most_joined} of {machine_count} machines are in the cluster.", flush=True)
            if most_joined >= machine_count:
                return 0
            time.sleep(1)
    absent = ", ".join(sorted(set(cluster.machines) - {node.node_ip for node in nodes}))
    _print_error(
        f"{absent} did not join within {_JOIN_SECONDS:.0f} seconds; the head's logs say why: "
        f"ssh {cluster.user}@{cluster.head} 'tail -n 50 /tmp/ray/session_latest/logs/monitor.*'"
    )
    return FAILED


def run_down(cluster: ClusterFile) -> int:
    """End Ray on all machines, and in a cloud the machines themselves."""
    ray_cli.use_token(cluster.path)
    if not cluster.is_local:
        return ray_cli.run_ray(["down", "-y", str(cluster.path)]).returncode
    # `ray down` ends Ray on the head alone, and then forgets the other machines.
    reasons = ssh.stop_ray_everywhere(cluster)
    completed = ray_cli.run_ray(["down", "-y", str(cluster.path)], quiet=True)
    if completed.returncode:
        print(completed.stdout, file=sys.stderr)
    for reason in reasons:
        _print_error(reason)
    if reasons or completed.returncode:
        return FAILED
    print(f"Ray has ended on {', '.join(cluster.machines)}.")
    return 0


def run_tunnel(cluster: ClusterFile) -> int:
    """Keep a tunnel to the dashboard open until Ctrl-C."""
    ray_cli.use_token(cluster.path)
    with tunnel.open_tunnel(cluster, tunnel.DASHBOARD_PORT) as address:
        print(f"Dashboard: {address} (it asks for the token in {ray_cli.TOKEN_FILE}). Ctrl-C ends this.", flush=True)
        print(f"Ray's own commands work with {_describe_ray_variables(tunnel.DASHBOARD_PORT)}.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


# ---- jobs ----------------------------------------------------------------------------------------------------------


def run_submit(target: str, entrypoint: Sequence[str], variables: Sequence[str], *, follow: bool) -> int:
    """Start a command as a job with the contents of the current folder.

    Args:
        target: The cluster's file, or the address of its job server.
        entrypoint: The command and its arguments.
        variables: Environment variables of the job: NAME, or NAME=VALUE.
        follow: Show the job's output until it ends, and return its exit code.
    """
    with connect_to_jobs(target) as jobs:
        job = jobs.submit_job(entrypoint, Path.cwd(), variables)
        print(f"Job {job} runs: {shlex.join(entrypoint)}", flush=True)
        if follow:
            return _show_output(jobs, target, job)
    words = f"{shlex.quote(target)} {job}"
    print(f"Its output: python -m cluster logs {words}\nTo end it:  python -m cluster stop {words}")
    return 0


def run_logs(target: str, job: str) -> int:
    """Show a job's output until it ends, and return its exit code."""
    with connect_to_jobs(target) as jobs:
        return _show_output(jobs, target, job)


def _show_output(jobs: JobClient, target: str, job: str) -> int:
    try:
        return jobs.show_output(job)
    except KeyboardInterrupt:
        print(f"\nThe job goes on. To end it: python -m cluster stop {shlex.quote(target)} {job}", file=sys.stderr)
        return INTERRUPTED


def run_status(target: str) -> int:
    """Show the cluster's machines and jobs."""
    with connect_to_jobs(target) as jobs:
        for node in jobs.list_nodes():
            total = node.resources_total
            offer = ", ".join(f"{total[kind]:g} {kind}" for kind in ("CPU", "GPU") if total.get(kind)) or "no work"
            print(f"{node.node_ip:<16} {offer}{'  (head)' if node.is_head_node else ''}")
        for job in jobs.list_jobs():
            if job.submission_id:
                print(f"{job.submission_id:<28} {str(job.status.value):<10} {job.entrypoint}")
    return 0


def run_stop(target: str, job: str) -> int:
    """Let a job save a checkpoint and end."""
    with connect_to_jobs(target) as jobs:
        state = jobs.stop_job(job)
    print(f"Job {job} is {state}.")
    return 0 if state in ENDED_STATES else FAILED


def _print_error(sentence: str) -> None:
    print(f"cluster: {sentence}", file=sys.stderr)
