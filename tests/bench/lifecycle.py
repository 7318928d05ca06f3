"""What a run takes beside its updates: `python -m tests.bench.lifecycle [--parts start,ray,...] [options]`.

start       Seconds from the command to the end of the first update, in this process: cold (no data prepared, and no
            compiled bytecode of any package), then warm; and what of that importing torch takes.
ray         The same with one Ray worker, warm.
looks       The share of a whole run of digits that evaluations and galleries take, by its summary's time budget.
checkpoint  The longest of the updates that follow a checkpoint against the median update, and the bytes saved.

Everything is read from what runs record anyway. Beside each figure stands its target; exit code 1: one was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ali_dist.cli import parse_comma_list, parse_path, whole_number_type
from ali_dist.errors import InputError, exit_code
from tests.bench.launch import started
from tests.bench.step import describe_conditions
from tests.helpers.documents import replace_marked
from tests.helpers.processes import cpu_seconds_of, descendants_of

BATCH = 64  # of the preset digits
WHOLE_RUN = 96_000  # images, likewise
LOOKS = ("evaluation", "drawing")  # parts of a run's time budget
_MOST_SECONDS = 1800.0
_UPDATES, _BETWEEN_CHECKPOINTS, _WARM_UP = 100, 20, 10
_AROUND = 5  # updates after a checkpoint, during which it is being written
_MARKER = "lifecycle"


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure.

    Attributes:
        what: It is of.
        value: The figure.
        unit: Of the figure: s, % or updates.
        target: The most that it should be; None: it is only told.
        remark: What belongs to it.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    remark: str = ""

    @property
    def is_met(self) -> bool:
        """Whether it keeps to the target."""
        return self.target is None or self.value <= self.target


# ---- what runs record ------------------------------------------------------------------------------------------------


def share_of_looks(summary: dict[str, Any]) -> float:
    """The share of a run's time that went to evaluations and galleries."""
    spent: dict[str, float] = summary["time"]
    return sum(spent[part] for part in LOOKS) / sum(spent.values())


@dataclass(frozen=True, slots=True)
class Stall:
    """What checkpoints cost the updates beside them, in seconds.

    Attributes:
        median_update: From one record to the next, over all updates.
        longest_around: Of the updates that follow a checkpoint the longest; the median over checkpoints.
        longest_elsewhere: The longest of all other updates: what the machine does by itself.
    """

    median_update: float
    longest_around: float
    longest_elsewhere: float

    @property
    def in_updates(self) -> float:
        """How many updates later than usual the longest of them ends."""
        return (self.longest_around - self.median_update) / self.median_update


def find_stall(seconds: Sequence[float], every: int) -> Stall:
    """Find it in the moments of records after each update.

    Args:
        seconds: Of a record after update 1, 2 and so on.
        every: Updates from one checkpoint to the next.
    """
    gaps = {step: later - earlier for step, (earlier, later) in enumerate(zip(seconds, seconds[1:], strict=False), 1)}
    gaps = {step: gap for step, gap in gaps.items() if step >= _WARM_UP}
    around = {
        first: [gaps[step] for step in range(first, first + _AROUND) if step in gaps]
        for first in range(every, len(seconds), every)
    }
    elsewhere = [gap for step, gap in gaps.items() if step % every >= _AROUND]
    return Stall(
        median_update=median(gaps.values()),
        longest_around=median(max(found) for found in around.values() if found),
        longest_elsewhere=max(elsewhere),
    )


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """A start, up to the end of the first update.

    Attributes:
        seconds: By the clock.
        cpu_seconds: Of all processes that it has started and that still run.
        processes: How many these are.
    """

    seconds: float
    cpu_seconds: float
    processes: int


class Runs:
    """Runs of the preset digits in a folder of their own.

    Args:
        folder: An empty one; data and compiled bytecode go there, too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def start(self, *words: str) -> tuple[Path, list[str]]:
        """The folder of the next run, and its command."""
        self._count += 1
        name = f"run-{self._count}"
        places = [f"--run.dir={self._folder / 'runs'}", f"--run.name={name}"]
        return self._folder / "runs" / name, ["-m", "ali_dist.train", *places, "--scale.device=cpu", *words]

    def seconds_to_first_update(self, workers: int, *, is_cold: bool = False) -> float:
        """Start a run, and end it as soon as it has recorded its first update; see `start_to_first_update`."""
        return self.start_to_first_update(workers, is_cold=is_cold).seconds

    def start_to_first_update(self, workers: int, *, is_cold: bool = False) -> Start:
        """Start a run, and end it as soon as it has recorded its first update.

        Args:
            workers: Of Ray; 0: without Ray.
            is_cold: Whether Python finds no compiled bytecode.
        """
        words = [f"--scale.workers={workers}", f"--report.log_every={BATCH}", "--report.evaluation=none"]
        run, command = self.start(*words, "--report.gallery_every=0", "--report.checkpoint_every=0")
        variables = {"PYTHONPYCACHEPREFIX": str(self._folder / "bytecode")} if is_cold else {}
        began = time.monotonic()
        with started(command, self._folder, variables) as process:
            while not _has_record(run / "metrics.jsonl"):
                _check_runs(process.poll(), began, self._folder)
                time.sleep(0.005)
            seconds = time.monotonic() - began
            pids = [process.pid, *descendants_of(process.pid)]
            return Start(seconds, sum(map(cpu_seconds_of, pids)), len(pids))

    def seconds_to_import_torch(self) -> float:
        """Start Python and import what no training can do without; its end, which takes a second, does not count."""
        began = time.monotonic()
        with started(["-c", "import os, torch; os._exit(0)"], self._folder) as process:
            process.wait(_MOST_SECONDS)
        return time.monotonic() - began

    def complete(self, *words: str) -> Path:
        """Train a run to its end; returns its folder."""
        run, command = self.start("--scale.workers=0", *words)
        began = time.monotonic()
        with started(command, self._folder) as process:
            while (code := process.poll()) is None:
                _check_runs(None, began, self._folder)
                time.sleep(0.1)
        if code:
            raise RuntimeError(_log_of(self._folder))
        return run


def _has_record(metrics: Path) -> bool:
    return metrics.exists() and b"\n" in metrics.read_bytes()


def _check_runs(code: int | None, began: float, folder: Path) -> None:
    if code is not None or time.monotonic() - began > _MOST_SECONDS:
        raise RuntimeError(_log_of(folder))


def _log_of(folder: Path) -> str:
    return f"A run failed:\n{(folder / 'log').read_text(errors='replace')[-4000:]}"


# ---- parts -----------------------------------------------------------------------------------------------------------


def measure_start(runs: Runs, options: argparse.Namespace) -> list[Finding]:
    """From the command to the end of the first update, in one process."""
    cold = runs.seconds_to_first_update(0, is_cold=True)
    runs.seconds_to_first_update(0)  # compiles what this checkout has not been compiled of
    warm = [runs.seconds_to_first_update(0) for _ in range(options.rounds)]
    return [
        Finding("first update, cold", cold, "s", remark="data prepared, all bytecode compiled"),
        Finding("first update, warm", median(warm), "s", 3.0, _spread(warm)),
        Finding("importing torch alone", runs.seconds_to_import_torch(), "s"),
    ]


def measure_ray(runs: Runs, options: argparse.Namespace) -> list[Finding]:
    """The same with one Ray worker."""
    runs.seconds_to_first_update(0)  # prepares the data, where this part comes first
    runs.seconds_to_first_update(1)  # compiles what has not been compiled
    warm = [runs.start_to_first_update(1) for _ in range(options.rounds)]
    seconds = [start.seconds for start in warm]
    processes = f"of {warm[-1].processes} processes that then run"
    return [
        Finding("first update with one Ray worker, warm", median(seconds), "s", 10.0, _spread(seconds)),
        Finding("its CPU time", median(start.cpu_seconds for start in warm), "s", remark=processes),
    ]


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} in {len(seconds)} starts"


def measure_looks(runs: Runs, options: argparse.Namespace) -> list[Finding]:
    """The share of evaluations and galleries."""
    run = runs.complete(f"--run.images={options.images}")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in summary["time"].items())
    return [Finding("evaluations and galleries", 100 * share_of_looks(summary), "% of the run", 5.0, spent)]


def measure_checkpoints(runs: Runs, options: argparse.Namespace) -> list[Finding]:
    """What checkpoints cost the updates beside them."""
    words = [f"--run.images={BATCH * _UPDATES}", f"--report.log_every={BATCH}", "--report.evaluation=none"]
    words += ["--report.gallery_every=0", f"--report.checkpoint_every={BATCH * _BETWEEN_CHECKPOINTS}"]
    run = runs.complete(*words)
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    stall = find_stall([record["seconds"] for record in records if record["event"] == "train"], _BETWEEN_CHECKPOINTS)
    newest = max(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    saved = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    remark = (
        f"the longest after a checkpoint takes {1e3 * stall.longest_around:.0f} ms, elsewhere "
        f"{1e3 * stall.longest_elsewhere:.0f}, the median {1e3 * stall.median_update:.0f}; {saved / 1e6:.1f} MB saved"
    )
    return [Finding("stall of a checkpoint", stall.in_updates, "updates", 1.0, remark)]


PARTS: dict[str, Callable[[Runs, argparse.Namespace], list[Finding]]] = {
    "start": measure_start,
    "ray": measure_ray,
    "looks": measure_looks,
    "checkpoint": measure_checkpoints,
}


# ---- the command -----------------------------------------------------------------------------------------------------


def format_findings(command: str, conditions: dict[str, Any], findings: Sequence[Finding]) -> str:
    """Format them as Markdown."""
    lines = [
        f"`{command}`: {conditions['cpu']}, {conditions['cores']} cores; torch {conditions['torch']}, "
        f"Python {conditions['python']}, {conditions['date']}.",
        "",
        "| what | measured | target | |",
        "| --- | --- | --- | --- |",
    ]
    for finding in findings:
        target = "-" if finding.target is None else f"at most {finding.target:g}{'' if finding.is_met else ': missed'}"
        lines.append(f"| {finding.what} | {finding.value:.1f} {finding.unit} | {target} | {finding.remark} |")
    return "\n".join(lines)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.lifecycle", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--parts", type=parse_comma_list, default=tuple(PARTS), help=f"some of {','.join(PARTS)} (all)")
    parser.add_argument("--rounds", type=whole_number_type(1), default=3, help="warm starts (3)")
    parser.add_argument(
        "--images", type=whole_number_type(BATCH), default=WHOLE_RUN, help="of the run of part looks (as in the preset)"
    )
    parser.add_argument("--json", metavar="FILE", type=parse_path, help="write all figures there")
    parser.add_argument("--table", metavar="FILE.md", type=parse_path, help="write the table between its two markers")
    return parser


def _run_command(words: Sequence[str]) -> int:
    options = _make_parser().parse_args(words)
    for name in options.parts:
        if name not in PARTS:
            raise InputError(f"--parts has {name!r}, but must be some of {', '.join(PARTS)}.")
    document = None if options.table is None else options.table.read_text(encoding="utf-8")
    if document is not None:  # found out before the measurement, not behind it
        replace_marked(document, _MARKER, "", "the table is")
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        for name in options.parts:
            findings += PARTS[name](runs, options)
            print(f"{name}: done", file=sys.stderr, flush=True)
    conditions = {**describe_conditions(torch.device("cpu"), "fp32"), "load": os.getloadavg()[0]}
    text = format_findings(" ".join(["python -m tests.bench.lifecycle", *words]), conditions, findings)
    print(text)
    if options.json is not None:
        rows = [{name: getattr(finding, name) for name in Finding.__slots__} for finding in findings]
        options.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if document is not None:
        options.table.write_text(replace_marked(document, _MARKER, text, "the table is"), encoding="utf-8")
    return 0 if all(finding.is_met for finding in findings) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("tests.bench.lifecycle", lambda: _run_command(words), "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
