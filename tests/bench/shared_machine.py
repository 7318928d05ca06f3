"""Training beside busy programs: `python -m tests.bench.shared_machine [--case digits] [options]`.

Updates by one process, on a machine that is quiet, and beside a program for each core that never rests; with as many
threads as there are cores, which look out for work while they wait (PyTorch's way), with threads that soon sleep, and
with one thread. Each has a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from ali_dist.cli import whole_number_type
from ali_dist.distributed import World
from ali_dist.errors import InputError, exit_code
from ali_dist.training.host_allocator import freed_memory_kept
from ali_dist.training.state import build_train_state
from ali_dist.training.step import loss_weights_at
from tests.bench.floor_cases import CASES, configure, draw_batch, index_of
from tests.bench.step import describe_conditions

CPU = torch.device("cpu")
WAYS: dict[str, dict[str, str]] = {
    "as it is": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_WARM_UP = 3  # updates
_BUSY = "while True: pass"


def measure_turn(case: str, batch: int | None, seconds: float) -> float:
    """Update the networks of a case for so long, with the threads that the environment asks for: images per second."""
    config = configure(CASES[case], batch=batch, scale__precision="fp32")
    state = build_train_state(config, index_of(CASES[case]), CPU, World())
    inputs = draw_batch(config, state.ali, state.space, CPU)
    weights = loss_weights_at(config.objective, 0, 1.0)
    with freed_memory_kept():
        for _ in range(_WARM_UP):
            state.step(inputs, weights)
        began, updates = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            state.step(inputs, weights)
            updates += 1
        return updates * config.data.global_batch_size / (time.perf_counter() - began)


@contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """So many programs that never rest, meanwhile."""
    programs = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def compare_ways(options: argparse.Namespace, programs: int) -> list[str]:
    """Let the ways take turns beside so many programs: the median rate of each, with the smallest and the largest."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with busy_programs(programs):
        for _ in range(options.rounds):
            for way, environment in WAYS.items():
                command = [sys.executable, "-m", "tests.bench.shared_machine", "--turn", "--case", options.case]
                command += ["--seconds", str(options.seconds)]
                command += ["--batch", str(options.batch)] if options.batch else []
                done = subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
                rates[way].append(float(done.stdout))
    return [f"{median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})" for found in rates.values()]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.shared_machine",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    positive = whole_number_type(1)
    parser.add_argument("--case", default="digits", help=f"networks of {', '.join(CASES)} (digits)")
    parser.add_argument("--batch", type=positive, help="images of an update (default: the preset's)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each way (3)")
    parser.add_argument("--seconds", type=positive, default=8, help="of each turn (8)")
    parser.add_argument("--turn", action="store_true", help="one turn in this process: prints images per second")
    return parser


def _run_command(options: argparse.Namespace) -> None:
    if options.case not in CASES:
        raise InputError(f"--case is {options.case!r}: expected one of {', '.join(CASES)}.")
    if options.turn:
        print(measure_turn(options.case, options.batch, options.seconds))
        return
    conditions = describe_conditions(CPU, "fp32")
    print(f"{options.case}, images/s: {conditions['cpu']}, {conditions['cores']} cores, torch {conditions['torch']}")
    print(f"| beside | {' | '.join(WAYS)} |\n{'|---' * (1 + len(WAYS))}|")
    cores = os.cpu_count() or 1
    for beside, programs in (("nothing", 0), (f"{cores} busy programs", cores)):
        print(f"| {beside} | {' | '.join(compare_ways(options, programs))} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    options = _make_parser().parse_args(arguments)
    return exit_code("tests.bench.shared_machine", lambda: _run_command(options))


if __name__ == "__main__":
    sys.exit(main())
