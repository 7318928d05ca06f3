"""How what a run takes grows: `python -m tests.bench.growth [--parts batch,side,...] [--plot FILE.svg] [options]`.

batch    Images per CPU-second of one update, and memory, from 64 to 4,096 images.
side     The same from 16 to 128 pixels, beside the arithmetic of an image.
ranks    1 to 8 gloo ranks on this machine; beyond it by the model that `model.py` states, for 10, 25 and 100 Gbit/s.
trace    The gradients' all-reduces of two ranks beside the backward pass of one update.
shards   Opening and planning 1 to 10,000 shards, and reading up to 1,000 small ones.
samples  Planning an epoch of a thousand to ten million samples.
trials   What a sweep's bookkeeping costs a trial, of 1 to 64, without Ray.

Times are CPU time wherever other work on the machine would disturb the clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ali_dist.cli import parse_comma_list, parse_path, whole_number_type
from ali_dist.errors import InputError, exit_code
from tests.bench.growth.panels import Finding, draw_findings
from tests.bench.growth.planning import measure_samples, measure_shards
from tests.bench.growth.trials import measure_trials
from tests.bench.growth.updates import measure_batch, measure_ranks, measure_side, model_ranks, trace_overlap
from tests.bench.step import describe_conditions
from tests.helpers.documents import replace_marked

MODELLED_RANKS = (1, 2, 4, 8, 16, 32, 64)
_MARKER = "growth"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where each quantity is measured."""

    batches: Sequence[int] = (64, 128, 256, 512, 1024, 2048, 4096)
    sides: Sequence[int] = (16, 32, 64, 128)
    ranks: Sequence[int] = (1, 2, 4, 8)
    traced: tuple[str, int] = ("cifar10", 8)  # preset and images
    shards: Sequence[int] = (1, 10, 100, 1_000, 10_000)
    read_shards: Sequence[int] = (1, 10, 100, 1_000)
    samples: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    trials: Sequence[int] = (1, 4, 16, 64)


QUICK = Grid(
    batches=(8, 16),
    sides=(16,),
    ranks=(1, 2),
    traced=("digits", 16),
    shards=(1, 100),
    read_shards=(1, 100),
    samples=(1_000, 100_000),
    trials=(1, 4),
)

PARTS: dict[str, Callable[[Grid, int], Sequence[Finding]]] = {
    "batch": lambda grid, rounds: measure_batch(grid.batches, rounds),
    "side": lambda grid, rounds: measure_side(grid.sides, rounds),
    "ranks": lambda grid, rounds: [*measure_ranks(grid.ranks, rounds), *model_ranks(MODELLED_RANKS)],
    "trace": lambda grid, rounds: trace_overlap(*grid.traced),
    "shards": lambda grid, rounds: measure_shards(grid.shards, grid.read_shards, rounds),
    "samples": lambda grid, rounds: measure_samples(grid.samples, rounds),
    "trials": lambda grid, rounds: measure_trials(grid.trials),
}


def format_findings(command: str, conditions: dict[str, Any], findings: Sequence[Finding]) -> str:
    """Format them as Markdown."""
    head = (
        f"`{command}`: {conditions['cpu']}, {conditions['cores']} cores that other work shared (load "
        f"{conditions['load']:.1f}); torch {conditions['torch']}, Python {conditions['python']}, {conditions['date']}."
    )
    return "\n\n".join([head, *(finding.to_markdown() for finding in findings)])


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.growth", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--parts", type=parse_comma_list, default=tuple(PARTS), help=f"some of {','.join(PARTS)} (all)")
    parser.add_argument("--rounds", type=whole_number_type(1), default=3, help="of which the median counts (3)")
    parser.add_argument("--quick", action="store_true", help="few small points, which only checks the command")
    parser.add_argument("--plot", metavar="FILE.svg", type=parse_path, help="draw all curves there")
    parser.add_argument("--json", metavar="FILE", type=parse_path, help="write all figures there")
    parser.add_argument("--table", metavar="FILE.md", type=parse_path, help="write the tables between its two markers")
    return parser


def _run_command(words: Sequence[str]) -> None:
    options = _make_parser().parse_args(words)
    for name in options.parts:
        if name not in PARTS:
            raise InputError(f"--parts has {name!r}, but must be some of {', '.join(PARTS)}.")
    document = None if options.table is None else options.table.read_text(encoding="utf-8")
    if document is not None:  # found out before the measurement, not behind it
        replace_marked(document, _MARKER, "", "the tables are")
    torch.set_num_threads(1)
    findings: list[Finding] = []
    for name in options.parts:
        findings += PARTS[name](QUICK if options.quick else Grid(), options.rounds)
        print(f"{name}: done", file=sys.stderr, flush=True)
    conditions = {**describe_conditions(torch.device("cpu"), "fp32"), "load": os.getloadavg()[0]}
    text = format_findings(" ".join(["python -m tests.bench.growth", *words]), conditions, findings)
    print(text)
    if options.plot is not None:
        options.plot.write_text(draw_findings(findings), encoding="utf-8")
    if options.json is not None:
        rows = [dataclasses.asdict(finding) for finding in findings]
        options.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if document is not None:
        options.table.write_text(replace_marked(document, _MARKER, text, "the tables are"), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("tests.bench.growth", lambda: _run_command(words), "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
