"""Have we become slower? `python -m tests.bench.ratios` (`make bench`), in some minutes; `--record` writes new records.

A small set of ratios is measured and compared with those recorded in `ratios.json`, within the envelopes of `GROUPS`:

count     Operations of one update of every preset, and how many more the usual style takes (`floor_count`): exact.
step      Our update against the usual one (`reference_step`): the paper's CIFAR10 networks at a quarter of their width,
          and the penalised update of digits, in CPU time of one thread.
data      Images per CPU-second that our reader takes from a folder, against webdataset's pipeline.

Ratios of things that take turns hold on another machine far better than times do. Exit code 1: one is outside of its
envelope, on either side: what has become faster is to be recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ali_dist.cli import parse_comma_list
from ali_dist.errors import InputError, exit_code
from tests.bench import step as step_bench
from tests.bench.floor_cases import CASES
from tests.bench.floor_count import count_update

RECORDS = Path(__file__).with_name("ratios.json")
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Ratios that are measured together.

    Attributes:
        measure: Gives them by name.
        least: The smallest share of a recorded ratio that is accepted.
        most: The largest.
    """

    measure: Callable[[], dict[str, float]]
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ratio beside its record.

    Attributes:
        name: Of the ratio.
        measured: Now; None where it was not.
        recorded: Before; None where it never was.
        verdict: "ok", or what is wrong.
    """

    name: str
    measured: float | None
    recorded: float | None
    verdict: str


def measure_counts() -> dict[str, float]:
    """Millions of operations of an update, and the usual style's over ours; every preset, with 4 images."""
    ratios: dict[str, float] = {}
    for name, case in CASES.items():
        count = count_update(case, batch=4)
        ratios[f"count/{name}, MFLOP"] = round(count.total / 1e6, 3)
        ratios[f"count/{name}, usual over ours"] = round(count.allowed_speed_up, 4)
    return ratios


def measure_updates() -> dict[str, float]:
    """How many times as fast as the usual update ours is."""
    cases: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "cifar10": ("scaled", {"batch": 20, "updates": 1}, {"model.width": 0.25}),
        "digits": ("penalised", {"updates": 3}, {}),
    }
    ratios = {}
    for preset, (rule, sizes, layer) in cases.items():
        settings = step_bench.Settings(
            preset=preset, rounds=_ROUNDS, threads=1, device="cpu", clock="cpu", steps=(rule,), **sizes
        )
        result = step_bench.measure_steps(settings, lambda line: None, **layer)
        ratios[f"step/{preset}, {rule}"] = next(row["ratio"] for row in result["rows"] if row["step"] == rule)
    return ratios


def measure_data() -> dict[str, float]:
    """How many times as many images per CPU-second as webdataset our reader gives.

    An epoch has a quarter of the images of `tests.bench.data`, so that opening weighs more and the ratio is smaller.
    """
    from tests.bench.data import __main__ as data_bench  # webdataset may be missing where this is only read

    options = argparse.Namespace(
        sides=[32], encodings=("raw",), places=("folder",), scale=0.25, epochs=1, rounds=3, parts=("read",), command=""
    )
    rows = data_bench.run_bench(options)["reading"]
    return {"data/raw 32 px from a folder": next(r["ratio"] for r in rows if r["reader"] == "ours, streamed")}


GROUPS = {
    "count": Group(measure_counts, least=1.0, most=1.0),
    "step": Group(measure_updates, least=0.8, most=1.35),
    "data": Group(measure_data, least=0.6, most=1.6),
}
"""All groups by name, which is the part of a ratio's name before the stroke."""


def compare_ratios(measured: Mapping[str, float], recorded: Mapping[str, float]) -> list[Comparison]:
    """Put what was measured beside what is recorded of the same groups; whatever lacks the other is wrong, too."""
    groups = {_group_of(name) for name in measured}
    expected = [name for name in recorded if _group_of(name) in groups]
    names = [*measured, *(name for name in expected if name not in measured)]
    return [_compare(name, measured.get(name), recorded.get(name)) for name in names]


def _compare(name: str, measured: float | None, recorded: float | None) -> Comparison:
    if recorded is None:
        return Comparison(name, measured, recorded, "not recorded")
    if measured is None:
        return Comparison(name, measured, recorded, "not measured")
    group = GROUPS[_group_of(name)]
    least, most = group.least * recorded, group.most * recorded
    verdict = "ok" if least <= measured <= most else f"must be {least:.4g} to {most:.4g}"
    if verdict != "ok" and least == most:
        verdict = f"must be {recorded:g}"
    return Comparison(name, measured, recorded, verdict)


def _group_of(name: str) -> str:
    return name.partition("/")[0]


def format_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Format them as aligned plain text."""
    table = [("ratio", "measured", "recorded", "")]
    table += [(c.name, _format(c.measured), _format(c.recorded), c.verdict) for c in comparisons]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        f"{name.ljust(widths[0])}  {measured.rjust(widths[1])}  {recorded.rjust(widths[2])}  {verdict}"
        for name, measured, recorded, verdict in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def _format(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:,.2f}"


def read_records(file: Path) -> dict[str, float]:
    """The recorded ratios by name.

    Raises:
        InputError: There is no such file, or it is no such record.
    """
    try:
        ratios: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["ratios"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file.name} holds no recorded ratios ({error!r}): write them with --record.") from error
    return ratios


def write_records(file: Path, ratios: Mapping[str, float], conditions: Mapping[str, Any]) -> None:
    """Record these ratios; those of groups that were not measured stay."""
    kept = {}
    if file.exists():
        groups = {_group_of(name) for name in ratios}
        kept = {name: ratio for name, ratio in read_records(file).items() if _group_of(name) not in groups}
    record = {"conditions": dict(conditions), "ratios": {**kept, **{name: round(r, 4) for name, r in ratios.items()}}}
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _run_command(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.ratios", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--groups", type=parse_comma_list, default=tuple(GROUPS), help="some of count,step,data (all)")
    parser.add_argument("--record", action="store_true", help="write the ratios instead of comparing them")
    options = parser.parse_args(words)
    for name in options.groups:
        if name not in GROUPS:
            raise InputError(f"--groups has {name!r}, but must be some of {', '.join(GROUPS)}.")
    recorded = {} if options.record else read_records(RECORDS)  # found out before the measurement, not behind it
    measured: dict[str, float] = {}
    for name in options.groups:
        measured |= GROUPS[name].measure()
        print(f"{name}: done", file=sys.stderr, flush=True)
    if options.record:
        write_records(RECORDS, measured, step_bench.describe_conditions(torch.device("cpu"), "fp32"))
        print(f"Recorded {len(measured)} ratios in {RECORDS.name}.")
        return 0
    comparisons = compare_ratios(measured, recorded)
    print(format_comparisons(comparisons))
    return 0 if all(comparison.verdict == "ok" for comparison in comparisons) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("tests.bench.ratios", lambda: _run_command(words), "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
