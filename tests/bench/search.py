"""Does Optuna find more than random search? `python -m tests.bench.search [--seeds 5] [--trials 16]`.

Both search the space of `--preset` (mixture-ring, with networks half as wide) at equal budgets, one trial after the
other, for several seeds of the search. Every trial is a whole training run, without Ray and without early stopping, so
that the searches alone are compared. Both begin with the preset's own settings, as a sweep does, but what these reach
does not count as found. Trials that are in `--dir` already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ali_dist.config.loading import from_mapping
from ali_dist.distributed import World
from ali_dist.errors import InputError, TrainingError
from ali_dist.launchers.local import prepare_builtin_data
from ali_dist.storage import open_store
from ali_dist.training.loop import fit
from tuning.options import make_plan
from tuning.searchers import OptunaSuggester
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, load_records, save_record

SEARCHES = ("random", "optuna")
Best = list[float]  # the preset's own score; then, after each trial, the best score found so far


class Listener:
    """A local context (see `ali_dist.training.context`) that gives each evaluation to a record."""

    def __init__(self, plan: SweepPlan, record: TrialRecord) -> None:
        self.world, self.device = World(), torch.device("cpu")
        self._metric, self._record = plan.judge(), record

    def stop_requested(self) -> bool:
        return False

    def report(self, metrics: dict[str, float]) -> None:
        score = self._metric.score(metrics)
        self._record.add(metrics if score is None else {**metrics, "score": score})


def plan_of(search: str, seed: int, asked: argparse.Namespace) -> SweepPlan:
    """One sweep; evaluations only at the end, because nothing is stopped early here."""
    options = {"preset": asked.preset, "search": search, "sweep-seed": str(seed), "trials": str(asked.trials + 1)}
    options["metric"] = asked.metric
    settings = {"run.images": asked.images, "run.dir": asked.dir / "runs", "run.name": f"{search}-{seed}"}
    settings |= {"data.url": asked.dir / "data", "report.evaluate_every": asked.images, "scale.threads": 1}
    settings |= {"model.width": 0.5, "report.evaluation_samples": 1000}
    return make_plan(options, {name: str(value) for name, value in settings.items()})


def run_sweep(search: str, seed: int, asked: argparse.Namespace) -> tuple[str, int, Best]:
    """All trials of one sweep; the preset's own score, and the best found after each further trial."""
    torch.set_num_threads(1)
    plan = plan_of(search, seed, asked)
    store = open_store(plan.folder)
    known = {record.number: record for record in load_records(store)}
    adviser = None
    if search == "optuna":
        adviser = OptunaSuggester(plan.dimensions(), higher=True, seed=seed, records=[])
    best: Best = []
    for number in range(plan.trials):
        settings = plan.settings(number)
        if settings is None:
            assert adviser is not None, "only Optuna leaves settings open"
            settings = adviser.ask(number)
        record = known.get(number)
        if record is None or record.settings != settings:
            record = train(plan, number, settings)
            save_record(store, record)
        if adviser is not None:
            adviser.tell(record)
        score = record.score or 0.0
        best.append(score if number < 2 else max(score, best[-1]))
    return search, seed, best


def silence() -> None:
    """Runs of a bench write no progress."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)


def train(plan: SweepPlan, number: int, settings: dict[str, Any]) -> TrialRecord:
    """One trial."""
    record = TrialRecord(number=number, settings=settings)
    began = time.monotonic()
    try:
        fit(plan.config(number, settings, {"scale.workers": "0", "scale.device": "cpu"}), Listener(plan, record))
        record.state = "finished"
    except (TrainingError, FloatingPointError) as error:
        record.state, record.reason = "pruned", str(error)
    record.seconds = time.monotonic() - began
    return record


def table(found: dict[tuple[str, int], Best], trials: int) -> str:
    """Best scores after a quarter, half and all of the trials."""
    seeds = sorted({seed for _, seed in found})
    rows = ["| trials | " + " | ".join(SEARCHES) + " | Optuna ahead | random ahead |", "|---|---|---|---|---|"]
    for after in sorted({max(1, trials // 4), max(1, trials // 2), trials}):
        columns = {search: [found[search, seed][after] for seed in seeds] for search in SEARCHES}
        pairs = list(zip(columns["random"], columns["optuna"], strict=True))
        cells = [f"{statistics.mean(c):.3f} ± {statistics.pstdev(c):.3f}" for c in columns.values()]
        ahead = [sum(o > r for r, o in pairs), sum(r > o for r, o in pairs)]
        rows.append(f"| {after} | {' | '.join(cells)} | {' | '.join(f'{n} of {len(seeds)}' for n in ahead)} |")
    return "\n".join(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What to compare."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.search", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--preset", default="mixture-ring")
    parser.add_argument("--metric", default="coverage", help="higher must be better")
    parser.add_argument("--seeds", type=int, default=5, help="sweeps of each search")
    parser.add_argument("--trials", type=int, default=16, help="of each sweep, beside the preset's own")
    parser.add_argument("--images", type=int, default=96_000, help="of each trial")
    parser.add_argument("--processes", type=int, default=2, help="sweeps at the same time")
    parser.add_argument("--dir", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    asked = parser.parse_args(words)
    asked.dir = asked.dir.absolute()
    return asked


def main() -> int:
    """The bench; returns its exit code."""
    asked, began = arguments(), time.monotonic()
    try:
        prepare_builtin_data(from_mapping(plan_of("random", 0, asked).base))
        plan_of("optuna", 0, asked)
    except InputError as error:
        print(f"tests.bench.search: {error}", file=sys.stderr)
        return 2
    work = [(search, seed, asked) for seed in range(asked.seeds) for search in SEARCHES]
    found: dict[tuple[str, int], Best] = {}
    with multiprocessing.get_context("spawn").Pool(asked.processes, silence) as pool:
        for result in [pool.apply_async(run_sweep, job) for job in work]:
            search, seed, best = result.get()
            found[search, seed] = best
            print(f"{search}, seed {seed}: best of {asked.trials} {best[-1]:.3f}, the preset {best[0]:.3f}", flush=True)
    spent = time.monotonic() - began
    print(
        f"\nBest {asked.metric} of {asked.preset}, {asked.images:,} images a trial, {asked.seeds} seeds, {spent:.0f} s:"
    )
    print(f"\n{table(found, asked.trials)}")
    if asked.json:
        figures = [{"search": search, "seed": seed, "best": best} for (search, seed), best in found.items()]
        asked.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
