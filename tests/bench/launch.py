"""What Ray costs beside torchrun: `python -m tests.bench.launch [--preset mixture-ring] [options]`.

Two workers over gloo on this machine's CPU, started by `torchrun` and by Ray Train, run the same loop on the same data:
one update of real training, with records written and everything that Ray keeps running beside it. The two take turns.
Two figures come out: the time of an update once training is warm, and the seconds from the command to the first update.
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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ali_dist.data.sources import ensure_prepared
from ali_dist.settings import from_mapping, load_preset
from tests.helpers.processes import ROOT, below

COMMANDS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ali_dist.train"],
    "ray": ["-m", "ali_dist.train", "--scale.workers=2"],
}
PRESETS = {"mixture-ring": 200, "digits": 20}  # updates from one record to the next: about 2 seconds
_WARM = 2  # records of a run that are not counted
_LIMIT = 600.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run: seconds of an update in each warm record, and from the command to the first update."""

    updates: list[float]
    start: float


def train(kind: str, preset: str, records: int, folder: Path, data: Path) -> Run:
    """Run one command to its end.

    Args:
        kind: A name in `COMMANDS`.
        preset: Of ali_dist.
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
    metrics, log = folder / "run" / "metrics.jsonl", folder / "log"
    folder.mkdir()
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[kind], *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None or time.monotonic() - began > _LIMIT:
                raise RuntimeError(f"{kind} does not train:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        first = time.monotonic() - began
        if process.wait(_LIMIT):
            raise RuntimeError(f"{kind} failed:\n{log.read_text(errors='replace')[-2000:]}")
    finally:
        for pid in [*below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    found = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    seconds = [size / record["images_per_second"] for record in found if record["event"] == "train"]
    return Run(seconds[_WARM:], first - (every - 1) * seconds[0])


def compare(preset: str, rounds: int, records: int) -> dict[str, Any]:
    """Rounds in which each command has one turn; who begins changes. The result is JSON-able."""
    runs: dict[str, list[Run]] = {kind: [] for kind in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        source = from_mapping(load_preset(preset)).data.source
        assert source is not None
        ensure_prepared(source, str(data))
        for number in range(rounds):
            for kind in sorted(COMMANDS, reverse=number % 2 == 0):
                runs[kind].append(train(kind, preset, records, Path(folder) / f"{kind}-{number}", data))
                print(f"round {number + 1} of {rounds}: {kind}", file=sys.stderr, flush=True)
    return summarise(preset, runs) | {"conditions": _conditions()}


def summarise(preset: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians over rounds of each run's median, and the ratio of the two in the same round."""
    updates = {kind: [median(run.updates) for run in of_kind] for kind, of_kind in runs.items()}
    ratios = [ray / alone for ray, alone in zip(updates["ray"], updates["torchrun"], strict=True)]
    return {
        "preset": preset,
        "rows": [
            {
                "command": kind,
                "ms_per_update": 1e3 * median(updates[kind]),
                "ms_by_round": [1e3 * value for value in updates[kind]],
                "start_seconds": median(run.start for run in of_kind),
                "start_by_round": [run.start for run in of_kind],
            }
            for kind, of_kind in runs.items()
        ],
        "ratio": median(ratios),
        "ratio_by_round": ratios,
    }


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
    where, ratios = result["conditions"], result["ratio_by_round"]
    lines = [
        f"Preset {result['preset']}, 2 workers over gloo with one thread each; {where['date']}",
        f"{where['cpu']}, {where['cores']} cores; torch {where['torch']}, Ray {where['ray']}",
        "",
        f"{'command':<10}{'ms/update':>11}{'min':>8}{'max':>8}{'first update after s':>22}",
    ]
    for row in result["rows"]:
        by_round = row["ms_by_round"]
        lines.append(
            f"{row['command']:<10}{row['ms_per_update']:>11.3f}{min(by_round):>8.3f}{max(by_round):>8.3f}"
            f"{row['start_seconds']:>22.1f}"
        )
    spread = f"{min(ratios):.4f} to {max(ratios):.4f}"
    return "\n".join([*lines, "", f"Ray's update over torchrun's in the same round: {result['ratio']:.4f} ({spread})."])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.launch", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mixture-ring")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each command (3)")
    parser.add_argument("--records", type=int, default=8, help="stretches of about 2 seconds that are counted (8)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    result = compare(options.preset, options.rounds, options.records)
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
