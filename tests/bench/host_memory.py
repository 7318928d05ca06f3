"""What keeping freed memory saves on a CPU: `python -m tests.bench.host_memory [--cases cifar10,digits]`.

An update while the C library keeps the memory that is freed, as in a run (see `ali_dist.training.host_allocator`), and
while it gives it back to the system, as it does by itself. Both have processes of their own, which take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median

import torch

from ali_dist.cli import parse_comma_list, whole_number_type
from ali_dist.distributed import World
from ali_dist.errors import InputError, exit_code
from ali_dist.training.host_allocator import freed_memory_kept
from ali_dist.training.state import build_train_state
from ali_dist.training.step import loss_weights_at
from tests.bench.floor_cases import CASES, configure, draw_batch, index_of
from tests.bench.step import describe_conditions

CPU = torch.device("cpu")
RETURNED, KEPT = "returned", "kept"
_WARM_UP = 3  # updates: the heap finds its size
_HEADER = ("networks", "batch", "ms of CPU, returned", "ms of CPU, kept", "times as fast", "pages cleared", "peak, MiB")


@dataclass(frozen=True, slots=True)
class Turn:
    """One process's updates: CPU ms and pages cleared of one, images in it, and the most memory of the process."""

    milliseconds: float
    pages: float
    peak_mib: float
    batch: int


def measure_turn(case: str, batch: int | None, updates: int, threads: int, *, is_kept: bool) -> Turn:
    """Update the networks of a case in this process."""
    torch.set_num_threads(threads)
    config = configure(CASES[case], batch=batch, scale__precision="fp32")
    state = build_train_state(config, index_of(CASES[case]), CPU, World())
    inputs = draw_batch(config, state.ali, state.space, CPU)
    weights = loss_weights_at(config.objective, 0, 1.0)
    with freed_memory_kept() if is_kept else nullcontext():
        for _ in range(_WARM_UP):
            state.step(inputs, weights)
        pages, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        for _ in range(updates):
            state.step(inputs, weights)
        took = time.process_time() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    images = config.data.global_batch_size
    return Turn(1e3 * took / updates, (usage.ru_minflt - pages) / updates, usage.ru_maxrss / 1024, images)


def compare_ways(case: str, options: argparse.Namespace) -> str:
    """Let both ways take turns; returns a row of the table."""
    turns: dict[str, list[Turn]] = {RETURNED: [], KEPT: []}
    for _ in range(options.rounds):
        for way, done in turns.items():
            command = [sys.executable, "-m", "tests.bench.host_memory", "--cases", case, "--turn", way]
            command += ["--updates", str(options.updates), "--threads", str(options.threads)]
            command += ["--batch", str(options.batch)] if options.batch else []
            done.append(Turn(**json.loads(subprocess.run(command, check=True, capture_output=True).stdout)))
    ratios = [
        returned.milliseconds / kept.milliseconds for returned, kept in zip(turns[RETURNED], turns[KEPT], strict=True)
    ]
    middle = {way: median(turn.milliseconds for turn in done) for way, done in turns.items()}
    pages = " and ".join(f"{median(turn.pages for turn in done):,.0f}" for done in turns.values())
    peak = " and ".join(f"{max(turn.peak_mib for turn in done):,.0f}" for done in turns.values())
    cells = (
        case,
        f"{turns[KEPT][0].batch}",
        f"{middle[RETURNED]:,.0f}",
        f"{middle[KEPT]:,.0f}",
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        pages,
        peak,
    )
    return f"| {' | '.join(cells)} |"


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.host_memory",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    positive = whole_number_type(1)
    cases = ("cifar10", "digits", "images-32", "images-64")
    parser.add_argument("--cases", type=parse_comma_list, default=cases, metavar="A,B", help=f"of {', '.join(CASES)}")
    parser.add_argument("--batch", type=positive, help="images of an update (default: the preset's)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each way (3)")
    parser.add_argument("--updates", type=positive, default=5, help="timed updates in a turn (5)")
    parser.add_argument("--threads", type=positive, default=1, help="of each process (1)")
    parser.add_argument("--turn", choices=(RETURNED, KEPT), help="one turn of one case, as JSON")
    return parser


def _run_command(options: argparse.Namespace) -> None:
    for word in options.cases:
        if word not in CASES:
            raise InputError(f"--cases has {word!r}: expected some of {', '.join(CASES)}.")
    if options.turn:
        (case,) = options.cases
        turn = measure_turn(case, options.batch, options.updates, options.threads, is_kept=options.turn == KEPT)
        print(json.dumps(asdict(turn)))
        return
    conditions = describe_conditions(CPU, "fp32")
    print(f"{conditions['cpu']}, {options.threads} of {conditions['cores']} cores, torch {conditions['torch']}")
    print(f"| {' | '.join(_HEADER)} |\n{'|---' * len(_HEADER)}|")
    for case in options.cases:
        print(compare_ways(case, options), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    options = _make_parser().parse_args(arguments)
    return exit_code("tests.bench.host_memory", lambda: _run_command(options))


if __name__ == "__main__":
    sys.exit(main())
