"""What Ray costs beside torchrun: `python -m tests.bench.launch [--workers 1] [--preset mixture-ring] [options]`.

Workers over gloo on this machine's CPU, started by `torchrun` and by Ray Train, run the same loop on the same data: one
update of real training, with records written and everything that Ray keeps running beside it. The two take turns. A
worker has one thread, so with fewer workers than cores the system has cores left, as it has beside GPUs; with as many,
all else that runs takes its time from the workers.
Of warm training come out the time of an update on the clock; the CPU time that the workers spend on it; the share of
that in threads beside the one that trains, where Ray's are, which no noise of the machine can hide; and the share of a
core that everything else of the command takes. Of the start come out the seconds from the command to the first update.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from tests.helpers.processes import ROOT, below

WORKER = {"torchrun": "-m ali_dist.train", "ray": "ray::RayTrainWorker"}  # in a worker's command line
COMMANDS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node={workers}", "-m", "ali_dist.train"],
    "ray": ["-m", "ali_dist.train", "--scale.workers={workers}"],
}
PRESETS = {"mixture-ring": 200, "digits": 20}  # updates from one record to the next: about 2 seconds
_WARM = 2  # records of a run that are not counted
_LIMIT = 600.0


Threads = dict[tuple[int, int], float]
"""CPU seconds by process and thread."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run, warm.

    Args:
        updates: Seconds of an update, in each record.
        cpu: CPU seconds of an update, of all workers together.
        beside: Share of it in threads other than each worker's busiest, which is the one that trains.
        others: CPU seconds in a second, of all other processes of the command.
        start: Seconds from the command to the first update.
    """

    updates: list[float]
    cpu: float
    beside: float
    others: float
    start: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Of a running command: the clock, records written, CPU seconds of the workers' threads and of all else."""

    clock: float
    records: int
    threads: Threads
    others: float


def train(kind: str, preset: str, workers: int, records: int, folder: Path, data: Path) -> Run:
    """Run one command to its end.

    Args:
        kind: A name in `COMMANDS`.
        preset: Of ali_dist.
        workers: Processes that train.
        records: Lines of metrics that are counted.
        folder: A new one, for the run.
        data: Prepared.
    """
    config = from_mapping(load_preset(preset))
    size, every = config.data.global_batch_size, PRESETS[preset]
    words = [f"--preset={preset}", f"--data.url={data}", f"--run.dir={folder}", "--run.name=run"]
    words += [f"--run.images={size * every * (records + _WARM)}", f"--report.log_every={size * every}"]
    words += ["--report.evaluation=none", "--report.gallery_every=0", "--report.checkpoint_every=0"]
    words += ["--scale.threads=1", "--scale.device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    command = [word.format(workers=workers) for word in COMMANDS[kind]]
    metrics, log = folder / "run" / "metrics.jsonl", folder / "log"
    folder.mkdir()
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command, *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        moments = list(_watch(kind, process, metrics, log, began))
    finally:
        for pid in [*below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    found = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    seconds = [size / record["images_per_second"] for record in found if record["event"] == "train"]
    early = next(moment for moment in moments if moment.records >= _WARM)
    late = [moment for moment in moments if moment.records < records + _WARM][-1]  # before the last things of a run
    cpu, beside = spent(early.threads, late.threads)
    return Run(
        seconds[_WARM:],
        cpu / (every * (late.records - early.records)),
        beside / cpu,
        (late.others - early.others) / (late.clock - early.clock),
        moments[0].clock - began - (every - 1) * seconds[0],
    )


def _watch(kind: str, process: subprocess.Popen[bytes], metrics: Path, log: Path, began: float) -> Iterator[Moment]:
    """The moments at which records appear, until the command ends.

    Raises:
        RuntimeError: It fails or takes too long.
    """
    seen = 0
    while process.poll() is None:
        if time.monotonic() - began > _LIMIT:
            raise RuntimeError(f"{kind} does not end:\n{log.read_text(errors='replace')[-8000:]}")
        records = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if records > seen:
            seen, clock = records, time.monotonic()
            yield Moment(clock, records, *cpu_seconds(process.pid, WORKER[kind]))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{kind} failed:\n{log.read_text(errors='replace')[-8000:]}")


def cpu_seconds(root: int, worker: str) -> tuple[Threads, float]:
    """CPU seconds so far of the workers' threads below a process, and of all else below it and itself."""
    threads: Threads = {}
    others = 0.0
    for pid in [root, *below(root)]:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if worker in words and "torch.distributed.run" not in words:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    threads[pid, int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
            else:
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                others += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return threads, others


def spent(early: Threads, late: Threads) -> tuple[float, float]:
    """CPU seconds between two moments, of all threads, and of those that are not their process's busiest."""
    each: dict[int, list[float]] = {}
    for (pid, thread), seconds in late.items():
        each.setdefault(pid, []).append(seconds - early.get((pid, thread), 0.0))
    total = sum(sum(of_process) for of_process in each.values())
    return total, total - sum(max(of_process) for of_process in each.values())


def compare(preset: str, workers: int, rounds: int, records: int) -> dict[str, Any]:
    """Rounds in which each command has one turn; who begins changes. The result is JSON-able."""
    runs: dict[str, list[Run]] = {kind: [] for kind in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        source = from_mapping(load_preset(preset)).data.source
        assert source is not None
        ensure_prepared(source, str(data))
        for number in range(rounds):
            for kind in sorted(COMMANDS, reverse=number % 2 == 0):
                runs[kind].append(train(kind, preset, workers, records, Path(folder) / f"{kind}-{number}", data))
                print(f"round {number + 1} of {rounds}: {kind}", file=sys.stderr, flush=True)
    return summarise(preset, runs) | {"workers": workers, "conditions": _conditions()}


def summarise(preset: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians over rounds, and ratios of the two commands in the same round."""
    clock = {kind: [median(run.updates) for run in of_kind] for kind, of_kind in runs.items()}
    cpu = {kind: [run.cpu for run in of_kind] for kind, of_kind in runs.items()}
    rows = [
        {
            "command": kind,
            "ms_per_update": 1e3 * median(clock[kind]),
            "ms_by_round": [1e3 * value for value in clock[kind]],
            "cpu_ms_per_update": 1e3 * median(cpu[kind]),
            "cpu_ms_by_round": [1e3 * value for value in cpu[kind]],
            "beside_percent": 100 * median(run.beside for run in of_kind),
            "others_percent": 100 * median(run.others for run in of_kind),
            "start_seconds": median(run.start for run in of_kind),
            "start_by_round": [run.start for run in of_kind],
        }
        for kind, of_kind in runs.items()
    ]
    return {"preset": preset, "rows": rows, "ratios": {"clock": _ratios(clock), "worker CPU": _ratios(cpu)}}


def _ratios(values: dict[str, list[float]]) -> list[float]:
    return [ray / alone for ray, alone in zip(values["ray"], values["torchrun"], strict=True)]


def _conditions() -> dict[str, Any]:
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


def table(result: dict[str, Any]) -> str:
    """The result as aligned plain text."""
    where = result["conditions"]
    lines = [
        f"Preset {result['preset']}, workers over gloo with one thread each: {result['workers']}; {where['date']}",
        f"{where['cpu']}, {where['cores']} cores; torch {where['torch']}, Ray {where['ray']}",
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
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.launch", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mixture-ring")
    parser.add_argument("--workers", type=int, default=2, help="processes that train (2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each command (3)")
    parser.add_argument("--records", type=int, default=8, help="stretches of about 2 seconds that are counted (8)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    result = compare(options.preset, options.workers, options.rounds, options.records)
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
