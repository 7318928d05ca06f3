"""Other ways of computing an update on this CPU: `python -m tests.bench.cpu_paths [--cases cifar10,digits,images-32]`.

The way that a run takes (plain: fp32, launched by Python), the same with all channels of a pixel side by side
(channels-last), with networks that torch.compile has compiled (compiled), and in bf16 with fp32 weights (bf16). They
take turns on the same weights and the same batch. Only the update is measured, without data, averages and records.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ali_dist.cli import parse_comma_list, whole_number_type
from ali_dist.distributed import World
from ali_dist.errors import InputError, exit_code
from ali_dist.model.build import build_networks
from ali_dist.training.state import build_train_state
from ali_dist.training.step import loss_weights_at
from tests.bench.contest import Contestant, format_turns, summarize_turns, take_turns
from tests.bench.floor_cases import CASES, configure, draw_batch, index_of
from tests.bench.step import CLOCKS, describe_conditions

CPU = torch.device("cpu")
PLAIN, CHANNELS_LAST, COMPILED, BF16 = "plain", "channels-last", "compiled", "bf16"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    CHANNELS_LAST: {},
    COMPILED: {"scale__compile": True},
    BF16: {"scale__precision": "bf16"},
}


def make_contestant(case: str, way: str, batch: int | None) -> tuple[Contestant, int]:
    """Build one way of updating the networks of a case; returns it and the images of an update."""
    config = configure(CASES[case], batch=batch, **{"scale__precision": "fp32", **WAYS[way]})
    index = index_of(CASES[case])
    ali, space = build_networks(config, index.spec, config.run.seed)
    torch.manual_seed(0)
    inputs = draw_batch(config, ali, space, CPU)
    state = build_train_state(config, index, CPU, World())
    if way == CHANNELS_LAST:
        inputs = inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))
        for module in state.ali.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(memory_format=torch.channels_last)
    update = partial(state.step, inputs, loss_weights_at(config.objective, 0, 1.0))
    return Contestant(way, update, state.ali, (state.optimizer,)), config.data.global_batch_size


def measure_case(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case; the result is JSON-able."""
    made = [make_contestant(case, way, options.batch) for way in options.ways]
    contestants, images = [contestant for contestant, _ in made], made[0][1]
    clock = CLOCKS["cpu" if torch.get_num_threads() == 1 else "wall"]
    times = take_turns(contestants, options.rounds, options.updates, CPU, lambda line: None, clock)
    rows = summarize_turns(times, PLAIN, images)
    return {"case": case, "batch": images, "conditions": describe_conditions(CPU, "fp32"), "rows": rows}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.cpu_paths",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    positive = whole_number_type(1)
    cases = ("cifar10", "digits", "images-32")
    parser.add_argument("--cases", type=parse_comma_list, default=cases, metavar="A,B", help=f"of {', '.join(CASES)}")
    parser.add_argument("--ways", type=parse_comma_list, default=tuple(WAYS), metavar="A,B", help="all, by default")
    parser.add_argument("--batch", type=positive, help="images of an update (default: the preset's)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each way (5)")
    parser.add_argument("--updates", type=positive, default=2, help="timed updates in a turn (2)")
    parser.add_argument("--threads", type=positive, default=1, help="1 (the default) takes CPU time, more the clock's")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _run_command(options: argparse.Namespace) -> None:
    for name, given, known in (("cases", options.cases, CASES), ("ways", options.ways, WAYS)):
        for word in given:
            if word not in known:
                raise InputError(f"--{name} has {word!r}: expected some of {', '.join(known)}.")
    if PLAIN not in options.ways:
        raise InputError(f"--ways must have {PLAIN!r}, which the others are compared with.")
    torch.set_num_threads(options.threads)
    for case in options.cases:
        result = measure_case(case, options)
        heading = f"{result['case']}, batch {result['batch']}"
        print(json.dumps(result) if options.json else format_turns(heading, result["rows"]), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    options = _make_parser().parse_args(arguments)
    return exit_code("tests.bench.cpu_paths", lambda: _run_command(options))


if __name__ == "__main__":
    sys.exit(main())
