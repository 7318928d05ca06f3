"""What Ray costs beside torchrun: `python -m tests.bench.launch [--workers 1] [--preset mixture-ring] [options]`.

Workers over gloo on this machine's CPU, started by `torchrun` and by Ray Train, run the same loop on the same data: one
update of real training, with records written and everything that Ray keeps running beside it. The two take turns. A
worker has one thread, so with fewer workers than cores the system has cores left, as it has beside GPUs; with as many,
all else that runs takes its time from the workers.

Of warm training it measures the time of an update on the clock; the CPU time that the workers spend on it; the share of
that in threads beside the one that trains, where Ray's are, which no noise of the machine can hide; and the share of a
core that everything else of the command takes. Of the start it measures the seconds from the command to the first
update.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from tests.helpers.processes import ROOT, descendants_of, kill_tree

WORKER_NAMES = {"torchrun": "-m ali_dist.train", "ray": "ray::RayTrainWorker"}  # in a worker's command line
COMMANDS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node={workers}", "-m", "ali_dist.train"],
    "ray": ["-m", "ali_dist.train", "--scale.workers={workers}"],
}
PRESETS = {"mixture-ring": 200, "digits": 20}  # updates from one record to the next: about 2 seconds
_WARM_UP_RECORDS = 2  # at the beginning of a run; they are not counted
_MOST_SECONDS = 600.0


ThreadSeconds = dict[tuple[int, int], float]
"""CPU seconds by process and thread."""


@dataclass(frozen=True, slots=True)
class RunMeasurement:
    """What one run took, once it was warm.

    Attributes:
        update_seconds: Seconds of an update, in each record.
        cpu_seconds: CPU seconds of an update, of all workers together.
        beside_share: Share of these in threads other than each worker's busiest, which is the one that trains.
        other_cores: CPU seconds in a second, of all other processes of the command.
        start_seconds: Seconds from the command to the first update.
    """

    update_seconds: list[float]
    cpu_seconds: float
    beside_share: float
    other_cores: float
    start_seconds: float


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of a running command.

    Attributes:
        clock: When it was taken, in seconds.
        records: Records written so far.
        threads: CPU seconds of the workers' threads.
        other_seconds: CPU seconds of all else.
    """

    clock: float
    records: int
    threads: ThreadSeconds
    other_seconds: float


def measure_run(kind: str, preset: str, workers: int, records: int, folder: Path, data: Path) -> RunMeasurement:
    """Run one command to its end.

    Args:
        kind: A name in `COMMANDS`.
        preset: A name in `PRESETS`.
        workers: How many processes train.
        records: How many lines of metrics are counted.
        folder: A new folder, for the run.
        data: The folder of the prepared data.
    """
    batch = from_mapping(load_preset(preset)).data.global_batch_size
    updates = PRESETS[preset]
    words = [f"--preset={preset}", f"--data.url={data}", f"--run.dir={folder}", "--run.name=run"]
    words += [f"--run.images={batch * updates * (records + _WARM_UP_RECORDS)}", f"--report.log_every={batch * updates}"]
    words += ["--report.evaluation=none", "--report.gallery_every=0", "--report.checkpoint_every=0"]
    words += ["--scale.threads=1", "--scale.device=cpu"]
    command = [word.format(workers=workers) for word in COMMANDS[kind]]
    metrics = folder / "run" / "metrics.jsonl"
    folder.mkdir()
    start = time.monotonic()
    with started([*command, *words], folder, {"OMP_NUM_THREADS": "1"}) as process:
        moments = list(_watch_records(kind, process, metrics, folder / "log", start))
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    seconds = [batch / line["images_per_second"] for line in lines if line["event"] == "train"]
    early = next(moment for moment in moments if moment.records >= _WARM_UP_RECORDS)
    # Before the last record, after which a run does what belongs to its end.
    late = [moment for moment in moments if moment.records < records + _WARM_UP_RECORDS][-1]
    total, beside = seconds_between(early.threads, late.threads)
    return RunMeasurement(
        update_seconds=seconds[_WARM_UP_RECORDS:],
        cpu_seconds=total / (updates * (late.records - early.records)),
        beside_share=beside / total,
        other_cores=(late.other_seconds - early.other_seconds) / (late.clock - early.clock),
        start_seconds=moments[0].clock - start - (updates - 1) * seconds[0],
    )


@contextlib.contextmanager
def started(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that logs into its folder; it and all it started are gone when the block ends."""
    variables = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, **variables, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_tree(process)


def _watch_records(
    kind: str, process: subprocess.Popen[bytes], metrics: Path, log: Path, start: float
) -> Iterator[Moment]:
    """The moments at which records appear, until the command ends.

    Raises:
        RuntimeError: It fails or takes too long.
    """
    records = 0
    while process.poll() is None:
        if time.monotonic() - start > _MOST_SECONDS:
            raise RuntimeError(f"{kind} does not end:\n{log.read_text(errors='replace')[-8000:]}")
        written = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if written > records:
            records = written
            clock = time.monotonic()
            yield Moment(clock, records, *cpu_seconds(process.pid, WORKER_NAMES[kind]))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{kind} failed:\n{log.read_text(errors='replace')[-8000:]}")


def cpu_seconds(root: int, worker: str) -> tuple[ThreadSeconds, float]:
    """CPU seconds so far of the workers' threads below a process, and of all else below it and itself."""
    threads: ThreadSeconds = {}
    other_seconds = 0.0
    for pid in [root, *descendants_of(root)]:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if worker in words and "torch.distributed.run" not in words:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    threads[pid, int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
            else:
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                other_seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return threads, other_seconds


def seconds_between(early: ThreadSeconds, late: ThreadSeconds) -> tuple[float, float]:
    """CPU seconds between two moments, of all threads, and of those that are not their process's busiest."""
    by_process: dict[int, list[float]] = {}
    for (pid, thread), seconds in late.items():
        by_process.setdefault(pid, []).append(seconds - early.get((pid, thread), 0.0))
    total = sum(sum(of_process) for of_process in by_process.values())
    return total, total - sum(max(of_process) for of_process in by_process.values())


def compare_commands(preset: str, workers: int, rounds: int, records: int) -> dict[str, Any]:
    """Run rounds in which each command has one turn; the one that begins changes. The result can be written as JSON."""
    runs: dict[str, list[RunMeasurement]] = {kind: [] for kind in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        source = from_mapping(load_preset(preset)).data.source
        assert source is not None, "the presets of this bench have built-in data"
        ensure_prepared(source, str(data))
        for number in range(rounds):
            for kind in sorted(COMMANDS, reverse=number % 2 == 0):
                runs[kind].append(measure_run(kind, preset, workers, records, Path(folder) / f"{kind}-{number}", data))
                print(f"round {number + 1} of {rounds}: {kind}", file=sys.stderr, flush=True)
    return summarize_runs(preset, runs) | {"workers": workers, "conditions": _describe_machine()}


def summarize_runs(preset: str, runs: dict[str, list[RunMeasurement]]) -> dict[str, Any]:
    """Medians over rounds, and ratios of the two commands in the same round."""
    clock = {kind: [median(run.update_seconds) for run in of_kind] for kind, of_kind in runs.items()}
    cpu = {kind: [run.cpu_seconds for run in of_kind] for kind, of_kind in runs.items()}
    rows = [
        {
            "command": kind,
            "ms_per_update": 1e3 * median(clock[kind]),
            "ms_by_round": [1e3 * value for value in clock[kind]],
            "cpu_ms_per_update": 1e3 * median(cpu[kind]),
            "cpu_ms_by_round": [1e3 * value for value in cpu[kind]],
            "beside_percent": 100 * median(run.beside_share for run in of_kind),
            "others_percent": 100 * median(run.other_cores for run in of_kind),
            "start_seconds": median(run.start_seconds for run in of_kind),
            "start_by_round": [run.start_seconds for run in of_kind],
        }
        for kind, of_kind in runs.items()
    ]
    return {"preset": preset, "rows": rows, "ratios": {"clock": _ratios(clock), "worker CPU": _ratios(cpu)}}


def _ratios(values: dict[str, list[float]]) -> list[float]:
    return [ray / alone for ray, alone in zip(values["ray"], values["torchrun"], strict=True)]


def _describe_machine() -> dict[str, Any]:
    import ray
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ray": ray.__version__,
    }


def format_table(result: dict[str, Any]) -> str:
    """The result as aligned plain text."""
    conditions = result["conditions"]
    lines = [
        f"Preset {result['preset']}, workers over gloo with one thread each: {result['workers']}; {conditions['date']}",
        f"{conditions['cpu']}, {conditions['cores']} cores; torch {conditions['torch']}, Ray {conditions['ray']}",
        "",
        f"{'command':<10}{'ms/update':>11}{'worker CPU ms':>15}{'beside training, %':>20}{'all else, % of a core':>23}"
        f"{'first update, s':>17}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['command']:<10}{row['ms_per_update']:>11.3f}{row['cpu_ms_per_update']:>15.3f}"
            f"{row['beside_percent']:>20.2f}{row['others_percent']:>23.1f}{row['start_seconds']:>17.1f}"
        )
    lines.append("")
    for name, ratios in result["ratios"].items():
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        lines.append(f"Ray's update over torchrun's in the same round, {name}: {median(ratios):.3f} ({spread}).")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.launch", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mixture-ring")
    parser.add_argument("--workers", type=int, default=2, help="processes that train (2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each command (3)")
    parser.add_argument("--records", type=int, default=8, help="stretches of about 2 seconds that are counted (8)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    result = compare_commands(options.preset, options.workers, options.rounds, options.records)
    print(format_table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
