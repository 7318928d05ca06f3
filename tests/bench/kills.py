"""Runs that are killed again and again equal unbroken ones: `python -m tests.bench.kills [--kills 1000]`.

Small runs on the digits, each of 1 to 8 ranks, are ended by SIGKILL at moments that a seed chooses: half of them before
an operation on files of rank 0, the others after some time on any rank. As on a cluster, the other ranks are killed
with it, and all start again from what is on the disk. In the end the parameters of each run must have the bits of an
unbroken run of as many ranks, every batch of every start must have had that run's samples, and the records must be
those of that run. `--every-operation` takes each operation on files of a run, and of its continuation, in turn.

Ranks are forked from a process that has loaded everything, so that a start takes a second and not ten.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ali_dist.cli import parse_comma_list, parse_path, whole_number_type
from ali_dist.config import Config
from ali_dist.data.loader import open_batches
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World
from ali_dist.errors import InputError, exit_code
from ali_dist.training import loop, train_batches
from tests.helpers.runs import StoppingContext, load_weights, tiny_config

SIZES = (1, 2, 3, 4, 8)
MOST_KILLS = 6
"""Kills of one run, at most."""
SECONDS_OF_AN_ATTEMPT = 120
_FILE_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.utime"}
_LOADED_LATE = ("matplotlib.figure", "matplotlib.backends.backend_agg")
"""What a run loads when it first draws: a third of the time of a run as small as these."""
_WRITING = os.O_WRONLY | os.O_RDWR
Ledger = dict[tuple[int, int], list[int]]
"""The sample ids of a rank's part of a batch, by rank and step."""


@dataclass(frozen=True)
class Moment:
    """When a start of a run is to be killed.

    Attributes:
        operation: Before this operation on files of rank 0, counted from 1; 0: not so.
        seconds: So long after the start; only where there is no operation.
        rank: The rank that is killed then.
    """

    operation: int = 0
    seconds: float = float("inf")
    rank: int = 0


@dataclass
class Attempt:
    """How one start of a run ended.

    Attributes:
        finished: Whether every rank ended by itself, with 0.
        was_killed: Whether the moment came; else the run finished before it, or failed.
        seconds: What it took.
        operations: Operations on files of rank 0, where it finished.
    """

    finished: bool
    was_killed: bool
    seconds: float
    operations: int


@dataclass
class Expected:
    """An unbroken run of some number of ranks: what runs of that many must come out as."""

    config: Config
    ledger: Ledger
    seconds: float
    operations: int


@dataclass
class Findings:
    """What has been seen so far.

    Attributes:
        kills: By number of ranks.
        runs: Likewise.
        faults: Sentences on runs that did not come out as they should.
    """

    kills: Counter[int] = field(default_factory=Counter)
    runs: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class _LedgerOfBatches:
    """A source of batches that writes down the samples of each before it is used."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def open_batches(self, *args: Any, **kwargs: Any) -> Any:
        self._source, self._step = open_batches(*args, **kwargs), kwargs["start_step"]
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __enter__(self) -> Any:
        self._source.__enter__()
        return self

    def __exit__(self, *details: Any) -> Any:
        return self._source.__exit__(*details)

    def __next__(self) -> Any:
        batch = next(self._source)
        with self._file.open("a") as out:
            out.write(json.dumps([self._step, batch.ids.tolist()]) + "\n")
        self._step += 1
        return batch


def _be_rank(config: Config, rank: int, size: int, scratch: Path, operation: int) -> None:
    """Train as one rank of a run; ends before the given operation on files, if there is one."""
    count = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in _FILE_CHANGES or (event == "open" and isinstance(details[2], int) and details[2] & _WRITING)
        if not changes or (event == "open" and str(scratch) in str(details[0])):
            return
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    if size > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        timeout = timedelta(seconds=SECONDS_OF_AN_ATTEMPT)
        dist.init_process_group("gloo", (scratch / "group").as_uri(), timeout, size, rank)
    train_batches.open_batches = _LedgerOfBatches(scratch / f"ledger-{rank}").open_batches  # type: ignore[attr-defined]
    if rank == 0:
        sys.addaudithook(watch)
    loop.fit(config, StoppingContext(World(rank, rank, size)))
    if rank == 0:
        (scratch / "operations").write_text(str(count))


def _fork_rank(config: Config, rank: int, size: int, scratch: Path, operation: int) -> int:
    """Start a rank as a copy of this process, with its output in a file; gives its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(scratch / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _be_rank(config, rank, size, scratch, operation)
        status = 0
    except BaseException as error:
        os.write(1, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def start_run(config: Config, size: int, scratch: Path, moment: Moment) -> Attempt:
    """Start or continue a run, and wait until it ends or is killed; no process is left."""
    for name in ("group", "operations"):
        (scratch / name).unlink(missing_ok=True)
    began = time.monotonic()
    alive = {_fork_rank(config, rank, size, scratch, moment.operation): rank for rank in range(size)}
    statuses: dict[int, int] = {}
    killed = False
    try:
        while alive and not any(statuses.values()) and not killed:
            time.sleep(0.002)
            _reap(alive, statuses)
            elapsed = time.monotonic() - began
            killed = elapsed >= moment.seconds and moment.rank in alive.values()
            if elapsed > SECONDS_OF_AN_ATTEMPT:
                raise InputError(f"A run of {size} ranks hung after {elapsed:.0f} s, at {moment}.")
    finally:
        for process in alive:
            os.kill(process, signal.SIGKILL)
        for process in alive:
            os.waitpid(process, 0)
    killed = killed or statuses.get(0) == -signal.SIGKILL
    finished = len(statuses) == size and not any(statuses.values())
    operations = int((scratch / "operations").read_text()) if finished else 0
    return Attempt(finished, killed, time.monotonic() - began, operations)


def _reap(alive: dict[int, int], statuses: dict[int, int]) -> None:
    """Move the processes that have ended from `alive` to `statuses`, by rank."""
    for process, rank in list(alive.items()):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            statuses[rank] = os.waitstatus_to_exitcode(status)
            del alive[process]


def run_unbroken(folder: Path, size: int) -> Expected:
    """Train a run of so many ranks without a kill.

    Raises:
        InputError: It failed, or an epoch of it lost or repeated samples.
    """
    config = _configure(folder, f"unbroken-{size}")
    scratch = _make_scratch(folder, config)
    attempt = start_run(config, size, scratch, Moment())
    if not attempt.finished:
        raise InputError(f"The unbroken run of {size} ranks failed: {_read_outputs(scratch)}")
    ledger, faults = _read_ledger(scratch, size, {})
    seen = Counter(sample for ids in ledger.values() for sample in ids)
    if faults or max(seen.values()) - min(seen.values()) > 1:
        raise InputError(f"The unbroken run of {size} ranks has samples more than once in an epoch. {faults}")
    return Expected(config, ledger, attempt.seconds, attempt.operations)


def break_run(
    folder: Path, name: str, size: int, expected: Expected, moments: Sequence[Moment]
) -> tuple[int, list[str]]:
    """Train a run that is killed at each of the moments, and then left to end.

    Returns:
        How often it was killed, and what was wrong with it in the end.
    """
    config = _configure(folder, name)
    scratch = _make_scratch(folder, config)
    kills = 0
    for moment in [*moments, Moment()]:
        attempt = start_run(config, size, scratch, moment)
        kills += attempt.was_killed
        if attempt.finished:
            break
        if not attempt.was_killed:
            return kills, [f"{name}: a start after {kills} kills failed: {_read_outputs(scratch)}"]
    faults = [f"{name}: {fault}" for fault in _compare(config, scratch, size, expected)]
    if not faults:
        shutil.rmtree(Path(config.run.dir) / name)
        shutil.rmtree(scratch)
    return kills, faults


def _compare(config: Config, scratch: Path, size: int, expected: Expected) -> list[str]:
    """What of a run that ended differs from the unbroken one."""
    _, faults = _read_ledger(scratch, size, expected.ledger)
    ours, theirs = load_weights(config), load_weights(expected.config)
    for name, tensor in theirs.items():
        # Statistics of batch norm are averaged over ranks at checkpoints, which agrees up to rounding.
        same = (
            torch.equal(ours[name], tensor)
            if "running" not in name or size == 1
            else torch.allclose(ours[name], tensor)
        )
        if not same:
            faults.append(f"{name} differs by {float((ours[name] - tensor).abs().max()):.3g}")
    trained = [_trained_images(each) for each in (config, expected.config)]
    if trained[0] != trained[1]:
        faults.append(f"metrics.jsonl has records at {trained[0]} images, not at {trained[1]}")
    return faults


def _trained_images(config: Config) -> list[int]:
    lines = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text().splitlines()
    return [record["images"] for record in map(json.loads, lines) if record["event"] == "train"]


def _read_ledger(scratch: Path, size: int, expected: Ledger) -> tuple[Ledger, list[str]]:
    """Read what ranks wrote; every start must have given a step the same samples, and none may be missing."""
    ledger: Ledger = dict(expected)
    seen: set[tuple[int, int]] = set()
    faults = []
    for rank in range(size):
        for line in (scratch / f"ledger-{rank}").read_text().splitlines():
            if not line.endswith("]]"):
                continue  # cut short by the kill: the step was not trained
            step, ids = json.loads(line)
            seen.add((rank, step))
            if ledger.setdefault((rank, step), ids) != ids:
                faults.append(f"step {step} has other samples on rank {rank}")
    faults += [f"rank {rank} lacks step {step}" for rank, step in sorted(ledger.keys() - seen)]
    return ledger, faults


def choose_moments(draws: random.Random, size: int, expected: Expected) -> list[Moment]:
    """Draw 1 to `MOST_KILLS` moments."""
    moments = []
    for _ in range(draws.randint(1, MOST_KILLS)):
        if draws.random() < 0.5:
            moments.append(Moment(operation=draws.randint(1, expected.operations)))
        else:
            moments.append(Moment(seconds=draws.uniform(0.0, expected.seconds), rank=draws.randrange(size)))
    return moments


def kill_at_random(folder: Path, sizes: Sequence[int], kills: int, seed: int) -> Findings:
    """Break runs of all sizes in turn until there were so many kills."""
    draws = random.Random(seed)
    findings = Findings()
    expected = {size: run_unbroken(folder, size) for size in sizes}
    while findings.kills.total() < kills:
        # Larger worlds take longer to start, so that they get fewer of the kills.
        size = draws.choices(sizes, weights=[1 / size for size in sizes])[0]
        name = f"broken-{findings.runs.total()}"
        count, faults = break_run(folder, name, size, expected[size], choose_moments(draws, size, expected[size]))
        findings.kills[size] += count
        findings.runs[size] += 1
        findings.faults += faults
        _say(f"{findings.kills.total():,} kills, {findings.runs.total():,} runs, {len(findings.faults)} faults")
    return findings


def kill_at_every_operation(folder: Path) -> Findings:
    """Break a run of one rank, and the continuation of one, before each of its operations on files."""
    findings = Findings()
    expected = run_unbroken(folder, 1)
    middle = Moment(operation=expected.operations // 2)
    for number in range(1, 2 * expected.operations + 1):
        moments = [Moment(operation=number)]
        if number > expected.operations:
            moments = [middle, Moment(operation=number - expected.operations)]
        count, faults = break_run(folder, f"operation-{number}", 1, expected, moments)
        findings.kills[1] += count
        findings.runs[1] += 1
        findings.faults += faults
        if count < len(moments) and len(moments) == 2:
            break  # the continuation has fewer operations
        _say(f"operation {number} of at most {2 * expected.operations}, {len(findings.faults)} faults")
    return findings


def format_findings(findings: Findings) -> str:
    """Format the counts as a Markdown table, with faults below it."""
    lines = ["| ranks | kills | runs that ended as an unbroken one |", "|---|---|---|"]
    broken = Counter(fault.split(":")[0] for fault in findings.faults)
    for size in sorted(findings.runs):
        lines.append(f"| {size} | {findings.kills[size]:,} | {findings.runs[size]:,} |")
    lines.append(f"| all | {findings.kills.total():,} | {findings.runs.total() - len(broken):,} |")
    return "\n".join([*lines, *(f"- {fault}" for fault in findings.faults)])


def _configure(folder: Path, name: str) -> Config:
    changes: dict[str, Any] = {
        "data__url": str(folder / "data"),
        "data__lanes": 8,
        "run__images": 480,
        "model__discriminator_dropout": 0.2,
    }
    return tiny_config(folder, run__name=name, **changes)


def _make_scratch(folder: Path, config: Config) -> Path:
    scratch = folder / "scratch" / config.run.name
    scratch.mkdir(parents=True)
    return scratch


def _read_outputs(scratch: Path) -> str:
    return " ".join(file.read_text()[-400:] for file in sorted(scratch.glob("output-*")))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_command(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ali-kills-", dir=options.dir))
    torch.set_num_threads(1)
    for name in _LOADED_LATE:
        importlib.import_module(name)
    ensure_prepared("digits", str(folder / "data"))
    if options.every_operation:
        findings = kill_at_every_operation(folder)
    else:
        findings = kill_at_random(folder, [int(size) for size in options.sizes], options.kills, options.seed)
    print(format_findings(findings))
    if findings.faults:
        raise InputError(f"Runs that did not end as they should are kept in {folder}.")
    shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=whole_number_type(1), default=1000, help="how many, at least (1000)")
    parser.add_argument("--sizes", type=parse_comma_list, default=SIZES, help="numbers of ranks (1,2,3,4,8)")
    parser.add_argument("--seed", type=whole_number_type(0), default=0, help="chooses the moments (0)")
    parser.add_argument("--every-operation", action="store_true", help="each operation on files in turn, with one rank")
    parser.add_argument("--dir", type=parse_path, help="where runs are kept (the system's temporary folder)")
    options = parser.parse_args(arguments)
    return exit_code("tests.bench.kills", lambda: _run_command(options), "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
