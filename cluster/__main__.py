"""From here onto a cluster: `python -m cluster COMMAND FILE.yaml ...`.

  up FILE                          start the machines' Ray (with AWS: also the machines), and wait until all are there
  submit FILE [--follow] -- CMD    run a command there, e.g. python -m ali_dist.train --run.dir s3://bucket/runs
  status FILE                      machines and jobs
  logs FILE JOB                    follow a job's output
  stop FILE JOB                    let a job save a checkpoint and end
  tunnel FILE                      the dashboard on http://127.0.0.1:8265, until Ctrl-C
  down FILE                        end Ray on all machines (with AWS: end the machines)

FILE is cluster/local.yaml (own machines over SSH) or cluster/ali.yaml (AWS) with your values. Where a cluster is there
already, such as on Kubernetes, give the address of its job server instead, e.g. http://127.0.0.1:8265.

submit sends the current folder, without .git, .venv, data, runs and what git ignores, and passes AWS_* variables on.
--env NAME or --env NAME=VALUE passes others; no secrets, for Ray logs them. --follow shows the output and ends with the
command's own exit code (0 done, 2 wrong input, 1 failure, 75 stopped); Ctrl-C then leaves the job alone.

Exit codes: 0 done, 2 wrong input, 1 failure.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ali_dist.errors import INTERRUPTED, InputError, exit_code
from cluster import ray_cli as ray_commands
from cluster import ssh, tunnel
from cluster.checks import check_documents, read_documents
from cluster.cluster_file import ClusterFile, load_cluster_file
from cluster.jobs import JobClient

_JOIN_SECONDS = 1800.0  # a machine that pulls a large image over a slow line
_NEEDS = {"up": 0, "submit": 0, "status": 0, "logs": 1, "stop": 1, "tunnel": 0, "down": 0}  # words beside FILE


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"--help", "-h"} & set(arguments[: _end_of_own(arguments)]):
        print((__doc__ or "").strip())
        return 0 if arguments else 2
    return exit_code("cluster", lambda: _run_command(arguments))


def _end_of_own(arguments: list[str]) -> int:
    return arguments.index("--") if "--" in arguments else len(arguments)


def _run_command(arguments: list[str]) -> int:
    command, *own = arguments[: _end_of_own(arguments)]
    entrypoint = arguments[_end_of_own(arguments) + 1 :]
    if command not in _NEEDS:
        raise InputError(f"{command!r} is no command; these are: {', '.join(_NEEDS)}. See python -m cluster --help.")
    follow, passed, place, words = _parse_options(command, own)
    if command == "submit" and not entrypoint:
        raise InputError("submit needs the command after --, such as: -- python -m ali_dist.train --run.dir s3://...")
    if command in ("up", "tunnel", "down"):
        if "://" in place:
            raise InputError(f"{command} takes the YAML file of a cluster, not the address {place}.")
        return {"up": start_cluster, "tunnel": open_tunnel, "down": stop_cluster}[command](
            load_cluster_file(Path(place))
        )
    with reach_cluster(place) as jobs:
        if command == "submit":
            return submit_job(jobs, place, entrypoint, passed, follow=follow)
        if command == "status":
            return print_status(jobs)
        return follow_job(jobs, place, words[0]) if command == "logs" else stop_job(jobs, words[0])


def _parse_options(command: str, own: list[str]) -> tuple[bool, list[str], str, list[str]]:
    """(--follow, values of --env, FILE, further words)."""
    follow, passed, words = False, [], []
    rest = iter(own)
    for word in rest:
        if word == "--follow" and command == "submit":
            follow = True
        elif word == "--env" and command == "submit":
            passed.append(next(rest, ""))
        elif word.startswith("-"):
            raise InputError(f"{command} has no option {word}; see python -m cluster --help.")
        else:
            words.append(word)
    if len(words) != 1 + _NEEDS[command]:
        what = "FILE.yaml JOB" if _NEEDS[command] else "FILE.yaml"
        raise InputError(f"{command} takes {what}; it was given {' '.join(words) or 'nothing'}.")
    return follow, passed, words[0], words[1:]


@contextlib.contextmanager
def reach_cluster(place: str) -> Iterator[JobClient]:
    """The job server of a cluster, by its file or address.

    Raises:
        InputError: It cannot be reached.
    """
    if place.startswith(("http://", "https://")):
        ray_commands.use_token()
        yield JobClient(place, f"what serves {place} (for Kubernetes: kubectl port-forward to the head's port 8265)")
        return
    cluster = load_cluster_file(Path(place))
    ray_commands.use_token(place)
    with tunnel.open_tunnel(cluster) as address:
        yield JobClient(address, f"python -m cluster up {place}")


def start_cluster(cluster: ClusterFile) -> int:
    """Start Ray on the machines, and wait until all of them are there.

    Raises:
        InputError: The file cannot work or leaves something open, or a machine cannot be reached.
    """
    # Before all else: the checks load Ray, which keeps the mode of authentication that it finds when it is loaded.
    ray_commands.make_token()
    ray_commands.use_token(cluster.path)
    if findings := check_documents(read_documents(cluster.path)):
        raise InputError("\n".join(f"{cluster.path}: {finding}" for finding in findings))
    if cluster.is_local:
        ssh.check_machines(cluster)
    if cluster.is_local and _is_up(cluster):
        print("The cluster is up already; to start it anew, with what you may have changed, take it down first.")
        return 0
    if cluster.is_local and not _set_up_machines(cluster):
        return 1
    done = ray_commands.run_ray(["up", "-y", "--no-config-cache", str(cluster.path)])
    if done.returncode:
        print("cluster: ray up failed; what it said last says why.", file=sys.stderr)
        return 1
    return _wait_for_machines(cluster)


def _set_up_machines(cluster: ClusterFile) -> bool:
    """Whether all own machines are ready for Ray now."""
    count = len(cluster.machines)
    print(f"Setting up {count} machine{'s' * (count > 1)}: minutes and 6 GB the first time.", flush=True)
    reasons = ssh.set_up_machines(cluster, ray_commands.ROOT)
    for reason in reasons:
        print(f"cluster: {reason}", file=sys.stderr)
    return not reasons


def _is_up(cluster: ClusterFile) -> bool:
    with contextlib.suppress(InputError), reach_cluster(str(cluster.path)):
        return True
    return False


def _wait_for_machines(cluster: ClusterFile) -> int:
    """The head starts the others; tell who is there until all are."""
    if not cluster.is_local:
        return 0
    deadline, seen = time.monotonic() + _JOIN_SECONDS, 0
    with reach_cluster(str(cluster.path)) as jobs:
        while time.monotonic() < deadline:
            nodes = jobs.nodes()
            if len(nodes) > seen:
                seen = len(nodes)
                print(f"{seen} of {len(cluster.machines)} machines are in the cluster.", flush=True)
            if seen >= len(cluster.machines):
                return 0
            time.sleep(1)
        there = {node.node_ip for node in nodes}
    absent = ", ".join(sorted(set(cluster.machines) - there))
    print(
        f"cluster: {absent} did not join within {_JOIN_SECONDS:.0f} seconds; the head's reasons: "
        f"ssh {cluster.user}@{cluster.head} 'tail -n 50 /tmp/ray/session_latest/logs/monitor.*'",
        file=sys.stderr,
    )
    return 1


def submit_job(jobs: JobClient, place: str, entrypoint: list[str], passed: list[str], *, follow: bool) -> int:
    """Start a job; with `follow`, show it to its end."""
    job = jobs.submit(entrypoint, Path.cwd(), passed)
    print(f"Job {job} runs: {shlex.join(entrypoint)}", flush=True)
    if follow:
        return follow_job(jobs, place, job)
    print(f"Its output: python -m cluster logs {place} {job}\nTo end it:  python -m cluster stop {place} {job}")
    return 0


def follow_job(jobs: JobClient, place: str, job: str) -> int:
    """Show a job's output to its end; its exit code."""
    try:
        return jobs.follow(job)
    except KeyboardInterrupt:
        print(f"\nThe job goes on. To end it: python -m cluster stop {place} {job}", file=sys.stderr)
        return INTERRUPTED


def print_status(jobs: JobClient) -> int:
    """Machines and jobs."""
    for node in jobs.nodes():
        has = node.resources_total
        what = ", ".join(f"{has[kind]:g} {kind}" for kind in ("CPU", "GPU") if has.get(kind)) or "no work"
        print(f"{node.node_ip:<16} {what}{'  (head)' if node.is_head_node else ''}")
    for job in jobs.all():
        if job.submission_id:
            print(f"{job.submission_id:<28} {str(job.status.value):<10} {job.entrypoint}")
    return 0


def stop_job(jobs: JobClient, job: str) -> int:
    """Let a job save and end."""
    state = jobs.stop(job)
    print(f"Job {job} is {state}.")
    return 0 if state in ("STOPPED", "SUCCEEDED", "FAILED") else 1


def open_tunnel(cluster: ClusterFile) -> int:
    """Keep the way to the dashboard open until Ctrl-C."""
    ray_commands.use_token(cluster.path)
    with tunnel.open_tunnel(cluster, tunnel.PORT) as address:
        print(f"Dashboard: {address} (it asks for the token in {ray_commands.TOKEN}). Ctrl-C ends this.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


def stop_cluster(cluster: ClusterFile) -> int:
    """End Ray on the machines, and clouds' machines with it."""
    ray_commands.use_token(cluster.path)
    if not cluster.is_local:
        return ray_commands.run_ray(["down", "-y", str(cluster.path)]).returncode
    # `ray down` forgets own machines but ends Ray on the head alone.
    reasons = ssh.stop_ray_everywhere(cluster)
    done = ray_commands.run_ray(["down", "-y", str(cluster.path)], quiet=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    for reason in reasons:
        print(f"cluster: {reason}", file=sys.stderr)
    if reasons or done.returncode:
        return 1
    print(f"Ray has ended on {', '.join(cluster.machines)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
