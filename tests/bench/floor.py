"""What an update has to compute and to move, and how near it comes: `python -m tests.bench.floor [options]`.

For each preset: the operations of one update of the rule that a run takes, of its forward passes, its backward passes
and its penalty; those of the same update in the usual public style (see `reference_step`), so that their ratio is the
speed-up that arithmetic alone allows; and the bytes it moves by a simple model (`floor_count`). These do not depend on
the machine, and `--count` stops there.

Then the machine's own roof in the same run (one large matrix product, one large copy, before and after each preset; the
best of all counts), and the time of both real updates, which take turns. The floor is the longer of the times that
arithmetic and traffic take at the roof, and *of the roof* is the floor over the measured time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ali_dist.cli import parse_comma_list, parse_path, whole_number_type
from ali_dist.distributed import World, choose_device
from ali_dist.errors import InputError, exit_code
from ali_dist.model.build import build_networks
from ali_dist.model.data_space import lay_out_for_device
from ali_dist.training.precision import Precision
from ali_dist.training.state import build_train_state
from ali_dist.training.step import loss_weights_at
from tests.bench.contest import Contestant, summarize_turns, take_turns
from tests.bench.floor_cases import CASES, FloorCase, configure, draw_batch, index_of
from tests.bench.floor_count import UpdateCount, count_update
from tests.bench.floor_table import format_floor
from tests.bench.reference_step import UsualStep, use_stock_layers
from tests.bench.roof import Roof, measure_roof
from tests.bench.step import CLOCKS, describe_conditions
from tests.helpers.documents import replace_marked

USUAL, OURS = "usual", "ours"
_MOST_OPERATIONS_ON_CPU = 120e9  # of one of our updates, where --batch does not say: one or two seconds of one core
_LEAST_BATCH = 4  # with which batch norm still is one
_MARKER = "floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRow:
    """One preset, counted and measured.

    Attributes:
        count: What its update does.
        seconds: Of our update; None where nothing is measured.
        usual_seconds: Of the usual one.
        speed_up: The usual one's time over ours, in the same round; the median over rounds.
    """

    count: UpdateCount
    seconds: float | None = None
    usual_seconds: float | None = None
    speed_up: float | None = None


def fit_batch(case: FloorCase, width: float | None, device: torch.device) -> int:
    """The preset's batch, or on a CPU the largest of its halves that takes no more than some seconds."""
    batch = configure(case).data.global_batch_size
    if device.type != "cpu":
        return batch
    few = min(batch, _LEAST_BATCH)
    per_image = count_update(case, batch=few, width=width).total / few
    while batch > few and batch * per_image > _MOST_OPERATIONS_ON_CPU:
        batch = max(few, batch // 2)
    return batch


def make_updates(
    case: FloorCase, *, batch: int, width: float | None, device: torch.device, precision: str
) -> list[Contestant]:
    """The usual update with torch's layers, and ours as a run does it: from the same weights, on the same batch."""
    config, index = configure(case, batch=batch, width=width, scale__precision=precision), index_of(case)
    weights = loss_weights_at(config.objective, 0, 1.0)
    torch.manual_seed(0)
    ali, space = build_networks(config, index.spec, config.run.seed)
    use_stock_layers(ali)
    ali.to(device)
    inputs = draw_batch(config, ali, space, device)
    usual = UsualStep(
        ali, config.objective.loss, config.optim, Precision(precision, device), has_penalty=weights.has_penalty
    )
    state = build_train_state(config, index, device, World())
    own_inputs = inputs._replace(x=lay_out_for_device(inputs.x))
    return [
        Contestant(USUAL, partial(usual, inputs, weights), ali, (usual.opt_d, usual.opt_g)),
        Contestant(OURS, partial(state.update, own_inputs, weights), state.ali, (state.optimizer,), has_own_pool=True),
    ]


def measure_case(
    case: FloorCase,
    *,
    batch: int,
    width: float | None,
    device: torch.device,
    precision: str,
    rounds: int,
    clock: str = "wall",
) -> FloorRow:
    """Count the updates and time them."""
    count = count_update(case, batch=batch, width=width)
    updates = 10 if device.type == "cuda" else max(1, min(20, int(20e9 / count.total)))
    contestants = make_updates(case, batch=batch, width=width, device=device, precision=precision)
    times = take_turns(contestants, rounds, updates, device, lambda line: None, CLOCKS[clock])
    usual, ours = summarize_turns(times, USUAL, batch)
    return FloorRow(
        count=count,
        seconds=ours["seconds_per_update"],
        usual_seconds=usual["seconds_per_update"],
        speed_up=ours["ratio"],
    )


def run_bench(options: argparse.Namespace) -> dict[str, Any]:
    """Count and measure what `options` choose; the result is JSON-able.

    Raises:
        InputError: A preset is not known, or device and precision do not go together.
    """
    for name in options.presets:
        if name not in CASES:
            raise InputError(f"--presets has {name!r}, but must be some of {', '.join(CASES)}.")
    width = options.width / 100 if options.width else None
    if options.count:
        counted = {name: count_update(CASES[name], batch=options.batch, width=width) for name in options.presets}
        return {
            "command": options.command,
            "rows": {name: _as_mapping(FloorRow(count=counted[name])) for name in counted},
        }
    device = choose_device(options.device, 0)
    precision = Precision(options.precision, device).name
    if options.clock == "cpu" and device.type == "cuda":
        raise InputError("--clock cpu does not see what a GPU does: leave it out, or add --device cpu.")
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: dict[str, dict[str, Any]] = {}
    roof: Roof = measure_roof(device, CLOCKS[options.clock])
    for name in options.presets:
        case = CASES[name]
        batch = options.batch or fit_batch(case, width, device)
        row = measure_case(case, batch=batch, width=width, device=device, precision=precision, rounds=options.rounds)
        rows[name] = _as_mapping(row)
        roof = roof.best_with(measure_roof(device, CLOCKS[options.clock]))
        print(f"{name}: done", file=sys.stderr, flush=True)
    return {
        "command": options.command,
        "conditions": describe_conditions(device, precision),
        "roof": dataclasses.asdict(roof),
        "rows": rows,
    }


def _as_mapping(row: FloorRow) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row.count),
        "operations": row.count.total,
        "allowed_speed_up": row.count.allowed_speed_up,
        "intensity": row.count.intensity,
        "seconds": row.seconds,
        "usual_seconds": row.usual_seconds,
        "speed_up": row.speed_up,
    }


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.floor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--presets", type=parse_comma_list, default=tuple(CASES), help=f"some of {','.join(CASES)} (all)"
    )
    parser.add_argument("--count", action="store_true", help="count alone: measure nothing")
    parser.add_argument(
        "--batch",
        type=whole_number_type(1),
        help="images of an update (as in the preset; on a CPU halved until an update takes a second or two)",
    )
    parser.add_argument("--width", type=whole_number_type(1, 100), help="percent of the hidden layers' channels (100)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=whole_number_type(1), help="CPU threads (as torch chooses)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time, where other work disturbs; then with --threads 1",
    )
    parser.add_argument("--rounds", type=whole_number_type(1), default=3, help="turns of both updates (3)")
    parser.add_argument("--json", metavar="FILE", type=parse_path, help="write all figures there")
    parser.add_argument("--table", metavar="FILE.md", type=parse_path, help="write the table between its two markers")
    return parser


def _run_command(words: Sequence[str]) -> None:
    options = _make_parser().parse_args(words)
    options.command = " ".join(["python -m tests.bench.floor", *words])
    document = None if options.table is None else options.table.read_text(encoding="utf-8")
    if document is not None:  # found out before the measurement, not behind it
        replace_marked(document, _MARKER, "", "the table is")
    result = run_bench(options)
    text = format_floor(result)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if document is not None:
        options.table.write_text(replace_marked(document, _MARKER, text, "the table is"), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("tests.bench.floor", lambda: _run_command(words), "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
