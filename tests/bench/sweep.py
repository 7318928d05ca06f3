"""A whole sweep, killed and resumed: `python -m tests.bench.sweep [--preset digits] [--trials 12] [--images 32000]`.

Runs `python -m tuning.sweep`, kills it with everything it started (kill -9) once a third of its trials have ended,
resumes it, and then trains best.yaml and the preset itself under the same budget with other seeds, to see whether what
was found is more than luck. Says what each trial scored, how long it all took, and whether the preset stands. With
`--dir` of an earlier bench, it goes on where that one was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ali_dist.storage import open_store
from tests.helpers.processes import ROOT, descendants_of
from tuning.score import ScoreMetric
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import ENDED, TrialRecord, load_records

ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
ENV |= {"RAY_worker_niceness": "0"}  # Ray's is 15: whatever else the machine does would stretch what is measured here


def start(module: str, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A command of ours, its output appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**os.environ, **ENV},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a command that has to succeed."""
    if process.wait():
        raise RuntimeError(f"It ended with code {process.returncode}; {log} ends:\n{log.read_text()[-2000:]}")


def ended(folder: Path) -> int:
    """Trials of the sweep that have ended."""
    return sum(record.state in ENDED for record in load_records(open_store(str(folder))))


def sweep(asked: argparse.Namespace, folder: Path) -> float:
    """The sweep with a kill in the middle, if it has not been run before; seconds of this part."""
    began, log = time.monotonic(), asked.dir / "sweep.log"
    words = [f"--preset={asked.preset}", f"--trials={asked.trials}", f"--run.images={asked.images}"]
    words += [f"--run.dir={asked.dir}", "--run.name=sweep", f"--search={asked.search}"]
    begun = (folder / "sweep.json").exists()
    process = start("tuning.sweep", [*words, "--resume"] if begun else words, log)
    if not begun:
        while process.poll() is None and ended(folder) < asked.trials // 3:
            time.sleep(0.2)
        if process.poll() is None:
            for pid in [*descendants_of(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            print(
                f"Killed after {time.monotonic() - began:.0f} s with {ended(folder)} trials ended; resuming.",
                flush=True,
            )
            process = start("tuning.sweep", [*words, "--resume"], log)
    finish(process, log)
    return time.monotonic() - began


def repeats(
    asked: argparse.Namespace, folder: Path, metric: ScoreMetric
) -> list[tuple[int, float | None, float | None]]:
    """For each seed: the scores of the preset and of best.yaml, trained side by side on a core each."""
    rows = []
    for seed in asked.seeds:
        runs = {"preset": asked.preset, "best": str(folder / "best.yaml")}
        waiting: list[Callable[[], None]] = []
        for name, preset in runs.items():
            words = [
                f"--preset={preset}",
                f"--run.images={asked.images}",
                f"--run.seed={seed}",
                f"--run.dir={asked.dir}",
            ]
            words += [f"--run.name={name}-{seed}", "--scale.workers=0", "--scale.threads=1"]
            log = asked.dir / f"{name}-{seed}.log"
            process = start("ali_dist.train", words, log)
            waiting.append(lambda process=process, log=log: finish(process, log))  # type: ignore[misc]
        for wait in waiting:
            wait()
        found = [json.loads((asked.dir / f"{name}-{seed}" / "summary.json").read_text())["metrics"] for name in runs]
        rows.append((seed, metric.score(found[0]), metric.score(found[1])))
    return rows


def shown(score: float | None) -> str:
    """A score, or that there is none."""
    return "none" if score is None else f"{score:.4f}"


def described(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """A line for each trial."""
    lines = ["", f"| trial | state | images | {plan.judge().title} | seconds | settings |", "|---|---|---|---|---|---|"]
    for record in records:
        settings = " ".join(f"{name.partition('.')[2]}={value}" for name, value in record.settings.items())
        cells = [
            str(record.number),
            record.state,
            f"{record.images:,}",
            shown(record.score),
            f"{record.seconds:.0f}",
            settings,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What to run."""
    about = "A whole sweep, killed in the middle and resumed, and whether what it finds holds with other seeds."
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sweep", description=about)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--images", type=int, default=32_000, help="of each trial")
    parser.add_argument("--search", choices=("random", "optuna"), default="random")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2])
    parser.add_argument("--dir", type=Path, default=Path("runs/bench-sweep"))
    asked = parser.parse_args()
    asked.dir = asked.dir.absolute()
    asked.dir.mkdir(parents=True, exist_ok=True)
    return asked


def main() -> int:
    """The bench; returns its exit code."""
    asked, began = arguments(), time.monotonic()
    folder = asked.dir / "sweep"
    seconds = sweep(asked, folder)
    plan = SweepPlan.from_json(json.loads((folder / "sweep.json").read_text()), "sweep.json")
    print(described(plan, load_records(open_store(str(folder)))), flush=True)
    print(f"\nThe sweep took {seconds:.0f} s. " + (asked.dir / "sweep.log").read_text().splitlines()[-3])
    rows = repeats(asked, folder, plan.judge())
    print(f"\n| seed | {plan.judge().title} of the preset | of best.yaml |\n|---|---|---|")
    for seed, mine, best in rows:
        print(f"| {seed} | {shown(mine)} | {shown(best)} |")
    gains = [plan.judge().better(best or 0.0, mine or 0.0) for _, mine, best in rows]
    mean = statistics.mean((best or 0.0) - (mine or 0.0) for _, mine, best in rows)
    print(f"\nbest.yaml is ahead with {sum(gains)} of {len(rows)} other seeds, by {mean:+.4f} on average.")
    print(f"All of it took {time.monotonic() - began:.0f} s; {folder}/sweep.html shows it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
