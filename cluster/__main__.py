"""The launcher: `python -m cluster COMMAND FILE.yaml ...`.

  up FILE                          start Ray on the machines (on AWS: also the machines), and wait until all have joined
  submit FILE [--follow] -- CMD    run a command there, e.g. python -m ali_dist.train --run.dir s3://bucket/runs
  status FILE                      show machines and jobs
  logs FILE JOB                    show a job's output until it ends
  stop FILE JOB                    let a job save a checkpoint and end
  tunnel FILE                      open the dashboard on http://127.0.0.1:8265, until Ctrl-C
  down FILE                        end Ray on all machines (on AWS: end the machines)

FILE is cluster/local.yaml (own machines over SSH) or cluster/ali.yaml (AWS) with your values. Where a cluster exists
already, such as on Kubernetes, give the address of its job server instead, e.g. http://127.0.0.1:8265.

submit sends the current folder, without .git, .venv, data, runs and what git ignores, and passes AWS_* variables on.
--env NAME or --env NAME=VALUE passes others on; use it for no secrets, for Ray logs them. --follow shows the output and
ends with the command's own exit code (0 done, 2 wrong input, 1 failure, 75 stopped); Ctrl-C then leaves the job alone.

Exit codes: 0 done, 2 wrong input, 1 failure.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ali_dist.cli import CommandParser
from ali_dist.errors import WRONG_INPUT, InputError, exit_code
from cluster import commands
from cluster.cluster_file import ClusterFile, load_cluster_file
from cluster.ray_cli import check_checkout

_HELP = "see python -m cluster --help"
# Each command's own arguments.
_ARGUMENTS = {
    "up": ("FILE.yaml",),
    "submit": ("FILE.yaml",),
    "status": ("FILE.yaml",),
    "logs": ("FILE.yaml", "JOB"),
    "stop": ("FILE.yaml", "JOB"),
    "tunnel": ("FILE.yaml",),
    "down": ("FILE.yaml",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command line asks for.

    Args:
        command: One of the commands.
        target: The cluster's file, or the address of its job server.
        job: The job's id; empty unless the command takes one.
        follow: Whether `submit` shows the job's output.
        variables: The values of `--env` of `submit`.
        entrypoint: What `submit` runs: the words after `--`.
    """

    command: str
    target: str
    job: str
    follow: bool
    variables: tuple[str, ...]
    entrypoint: tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("cluster", lambda: _answer(words))


def _answer(arguments: list[str]) -> int | None:
    own_words, _ = _split_entrypoint(arguments)
    if not arguments or {"--help", "-h"} & set(own_words):
        print((__doc__ or "").strip())
        return 0 if arguments else WRONG_INPUT
    return run_request(parse_request(arguments))


def parse_request(arguments: list[str]) -> Request:
    """Read a command line.

    Raises:
        InputError: It names no command, an option that the command does not have, or too many or too few arguments.
    """
    own_words, entrypoint = _split_entrypoint(arguments)
    options = make_parser().parse_intermixed_args(own_words)
    command = options.command
    if command not in _ARGUMENTS:
        raise InputError(f"There is no command {command!r}; the commands are {', '.join(_ARGUMENTS)}; {_HELP}.")
    if command != "submit" and (options.follow or options.env):
        raise InputError(f"{command} has no option {'--follow' if options.follow else '--env'}; {_HELP}.")
    if len(options.values) != len(_ARGUMENTS[command]):
        given = " ".join(options.values) or "nothing"
        raise InputError(f"{command} takes {' '.join(_ARGUMENTS[command])}, but was given {given}; {_HELP}.")
    if command == "submit" and not entrypoint:
        raise InputError("submit needs the command after --, such as: -- python -m ali_dist.train --run.dir s3://...")
    return Request(
        command=command,
        target=options.values[0],
        job=options.values[1] if len(options.values) > 1 else "",
        follow=options.follow,
        variables=tuple(options.env),
        entrypoint=tuple(entrypoint),
    )


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("cluster", (__doc__ or "").strip())
    parser.add_argument("command", nargs="?", default="")
    parser.suggestions["command"] = list(_ARGUMENTS)
    parser.add_argument("values", nargs="*")
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--env", action="append", default=[])
    return parser


def _split_entrypoint(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's own words, and those after the first `--`."""
    if "--" not in arguments:
        return arguments, []
    position = arguments.index("--")
    return arguments[:position], arguments[position + 1 :]


def run_request(request: Request) -> int:
    """Do what a command line asks for, and return the exit code."""
    match request.command:
        case "up":
            check_checkout()
            return commands.run_up(_load_target(request))
        case "down":
            return commands.run_down(_load_target(request))
        case "tunnel":
            return commands.run_tunnel(_load_target(request))
        case "submit":
            return commands.run_submit(request.target, request.entrypoint, request.variables, follow=request.follow)
        case "logs":
            return commands.run_logs(request.target, request.job)
        case "stop":
            return commands.run_stop(request.target, request.job)
        case _:  # status
            return commands.run_status(request.target)


def _load_target(request: Request) -> ClusterFile:
    """The file of a cluster, for commands that act on its machines.

    Raises:
        InputError: The file is wrong, or an address was given in its place.
    """
    if "://" in request.target:
        raise InputError(f"{request.command} takes the YAML file of a cluster, not the address {request.target}.")
    return load_cluster_file(Path(request.target))


if __name__ == "__main__":
    sys.exit(main())
