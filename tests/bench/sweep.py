"""A whole sweep, killed and resumed: `python -m tests.bench.sweep [--preset digits] [--trials 12] [--images 32000]`.

Runs `python -m tuning.sweep`, kills it with everything it started (kill -9) once a third of its trials have ended,
resumes it, and then trains best.yaml and the preset itself under the same budget with other seeds, to see whether the
result is more than luck. Says what each trial scored, how long it all took, and whether the preset stands. With `--dir`
of an earlier bench, it goes on where that one was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ali_dist.storage import open_store
from tests.helpers.processes import ROOT, kill_tree
from tuning.score import ScoreMetric
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, load_records

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# Ray's default is 15: whatever else the machine does would stretch what is measured here.
ENVIRONMENT |= {"RAY_worker_niceness": "0"}


def start_command(module: str, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command of ours, its output appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**os.environ, **ENVIRONMENT},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def wait_for_success(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a command that has to succeed.

    Raises:
        RuntimeError: It fails; the message has the end of its log.
    """
    if process.wait():
        raise RuntimeError(f"It ended with code {process.returncode}; {log} ends:\n{log.read_text()[-2000:]}")


def count_ended(folder: Path) -> int:
    """How many trials of the sweep have ended."""
    return sum(record.has_ended for record in load_records(open_store(str(folder))))


def run_sweep(options: argparse.Namespace, folder: Path) -> float:
    """Run the sweep, with a kill in the middle if it has not been run before.

    Returns:
        How many seconds this part took.
    """
    start = time.monotonic()
    log = options.dir / "sweep.log"
    words = [f"--preset={options.preset}", f"--trials={options.trials}", f"--run.images={options.images}"]
    words += [f"--run.dir={options.dir}", "--run.name=sweep", f"--search={options.search}"]
    has_begun = (folder / "sweep.json").exists()
    process = start_command("tuning.sweep", [*words, "--resume"] if has_begun else words, log)
    if not has_begun:
        while process.poll() is None and count_ended(folder) < options.trials // 3:
            time.sleep(0.2)
        if process.poll() is None:
            kill_tree(process)
            seconds = time.monotonic() - start
            print(f"Killed after {seconds:.0f} s with {count_ended(folder)} trials ended; resuming.", flush=True)
            process = start_command("tuning.sweep", [*words, "--resume"], log)
    wait_for_success(process, log)
    return time.monotonic() - start


def repeat_with_seeds(
    options: argparse.Namespace, folder: Path, metric: ScoreMetric
) -> list[tuple[int, float | None, float | None]]:
    """For each seed: the scores of the preset and of best.yaml, trained side by side on a core each."""
    rows = []
    for seed in options.seeds:
        presets = {"preset": options.preset, "best": str(folder / "best.yaml")}
        waits: list[Callable[[], None]] = []
        for name, preset in presets.items():
            words = [f"--preset={preset}", f"--run.images={options.images}", f"--run.seed={seed}"]
            words += [f"--run.dir={options.dir}", f"--run.name={name}-{seed}"]
            words += ["--scale.workers=0", "--scale.threads=1"]
            log = options.dir / f"{name}-{seed}.log"
            process = start_command("ali_dist.train", words, log)
            waits.append(lambda process=process, log=log: wait_for_success(process, log))  # type: ignore[misc]
        for wait in waits:
            wait()
        summaries = [json.loads((options.dir / f"{name}-{seed}" / "summary.json").read_text()) for name in presets]
        of_preset, of_best = (metric.score(summary["metrics"]) for summary in summaries)
        rows.append((seed, of_preset, of_best))
    return rows


def format_score(score: float | None) -> str:
    """A score, or that there is none."""
    return "none" if score is None else f"{score:.4f}"


def format_trials(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """A table with a line for each trial."""
    title = plan.score_metric.title
    lines = ["", f"| trial | state | images | {title} | seconds | settings |", "|---|---|---|---|---|---|"]
    for record in records:
        settings = " ".join(f"{name.partition('.')[2]}={value}" for name, value in record.settings.items())
        cells = [
            str(record.number),
            record.state,
            f"{record.images:,}",
            format_score(record.score),
            f"{record.seconds:.0f}",
            settings,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Parse what is to be run, and make the folder for it."""
    description = "A whole sweep, killed in the middle and resumed, and whether its result holds with other seeds."
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sweep", description=description)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--images", type=int, default=32_000, help="of each trial")
    parser.add_argument("--search", choices=("random", "optuna"), default="random")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2])
    parser.add_argument("--dir", type=Path, default=Path("runs/bench-sweep"))
    options = parser.parse_args()
    options.dir = options.dir.absolute()
    options.dir.mkdir(parents=True, exist_ok=True)
    return options


def main() -> int:
    """Run the bench and return its exit code."""
    options = parse_arguments()
    start = time.monotonic()
    folder = options.dir / "sweep"
    seconds = run_sweep(options, folder)
    plan = SweepPlan.from_json(json.loads((folder / "sweep.json").read_text()), "sweep.json")
    metric = plan.score_metric
    print(format_trials(plan, load_records(open_store(str(folder)))), flush=True)
    print(f"\nThe sweep took {seconds:.0f} s. " + (options.dir / "sweep.log").read_text().splitlines()[-3])
    rows = repeat_with_seeds(options, folder, metric)
    print(f"\n| seed | {metric.title} of the preset | of best.yaml |\n|---|---|---|")
    for seed, of_preset, of_best in rows:
        print(f"| {seed} | {format_score(of_preset)} | {format_score(of_best)} |")
    seeds_ahead = sum(metric.is_better(of_best or 0.0, of_preset or 0.0) for _, of_preset, of_best in rows)
    mean_gain = statistics.mean((of_best or 0.0) - (of_preset or 0.0) for _, of_preset, of_best in rows)
    print(f"\nbest.yaml is ahead with {seeds_ahead} of {len(rows)} other seeds, by {mean_gain:+.4f} on average.")
    print(f"All of it took {time.monotonic() - start:.0f} s; {folder}/sweep.html shows it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
