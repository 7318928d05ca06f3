"""Both ways through a penalised update, beside each other: `python -m tests.bench.penalised [--cases digits,shapes]`.

Where D is piecewise linear, its loss and its gradient penalty are back-propagated together, through D four times; any
other D needs six times. Both compute the same gradients. They take turns here, on the same weights and the same batch,
launched and, on a GPU, replayed as a CUDA graph. Only the update is measured, without data, averages and records.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ali_dist.cli import parse_comma_list, whole_number_type
from ali_dist.distributed import World, choose_device
from ali_dist.errors import InputError, exit_code
from ali_dist.model.build import build_networks
from ali_dist.model.data_space import lay_out_for_device
from ali_dist.training.precision import Precision
from ali_dist.training.state import build_train_state
from ali_dist.training.step import loss_weights_at
from tests.bench.contest import Contestant, format_turns, summarize_turns, take_turns
from tests.bench.floor_cases import CASES, configure, draw_batch, index_of
from tests.bench.step import CLOCKS, REPLAYED, describe_conditions

PENALISED = ("digits", "shapes", "images-32", "images-64")
SIX, FOUR = "six passes", "four passes"


def make_contestants(
    case: str, device: torch.device, precision: str, batch: int | None
) -> tuple[list[Contestant], int]:
    """Build both ways, launched and on a GPU replayed too; returns them and the images of an update."""
    config = configure(CASES[case], batch=batch, scale__precision=precision)
    index = index_of(CASES[case])
    weights = loss_weights_at(config.objective, 0, 1.0)
    ali, space = build_networks(config, index.spec, config.run.seed)
    torch.manual_seed(0)
    inputs = draw_batch(config, ali, space, device)
    inputs = inputs._replace(x=lay_out_for_device(inputs.x))
    contestants = []
    for ending in ("", REPLAYED) if device.type == "cuda" else ("",):
        for way in (SIX, FOUR):
            state = build_train_state(config, index, device, World())
            assert state.step.has_piecewise_linear_d, case
            state.step.has_piecewise_linear_d = way == FOUR
            update = partial(state.update if ending else state.step, inputs, weights)
            contestants.append(
                Contestant(way + ending, update, state.ali, (state.optimizer,), has_own_pool=bool(ending))
            )
    return contestants, config.data.global_batch_size


def measure_case(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one preset; the result is JSON-able."""
    device = choose_device(options.device, 0)
    if options.clock == "cpu" and device.type == "cuda":
        raise InputError("--clock cpu does not see what a GPU does: leave it out, or add --device cpu.")
    precision = Precision(options.precision, device).name
    contestants, images = make_contestants(case, device, precision, options.batch)
    updates = options.updates or (20 if device.type == "cuda" else 3)
    times = take_turns(contestants, options.rounds, updates, device, lambda line: None, CLOCKS[options.clock])
    rows = summarize_turns(times, SIX, images)
    return {"case": case, "batch": images, "conditions": describe_conditions(device, precision), "rows": rows}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.penalised",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    positive = whole_number_type(1)
    parser.add_argument("--cases", type=parse_comma_list, default=list(PENALISED), metavar="A,B", help="which presets")
    parser.add_argument("--batch", type=positive, help="images of an update (default: the preset's)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each way (5)")
    parser.add_argument("--updates", type=positive, help="timed updates in a turn (20 on a GPU, 3 elsewhere)")
    parser.add_argument("--threads", type=positive, help="of a CPU (default: torch's)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: seconds of CPU, on a busy machine")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _make_parser().parse_args(arguments)
    for case in options.cases:
        if case not in PENALISED:
            raise InputError(f"--cases: {case!r} is none of {', '.join(PENALISED)}.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for case in options.cases:
        result = measure_case(case, options)
        heading = f"{result['case']}, batch {result['batch']}, {result['conditions']['precision']}"
        print(json.dumps(result) if options.json else format_turns(heading, result["rows"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("tests.bench.penalised", main))
