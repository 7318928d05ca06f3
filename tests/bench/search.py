"""Does Optuna find more than random search? `python -m tests.bench.search [--seeds 5] [--trials 16]`.

Both search the space of `--preset` (mixture-ring, with networks half as wide) at equal budgets, one trial after the
other, for several seeds of the search. Every trial is a whole training run, without Ray and without early stopping, so
that the searches alone are compared. Both begin with the preset's own settings, as a sweep does, but the score of these
does not count as one that a search has found. Trials that are in `--dir` already are not trained again.
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
from typing import Any, Literal

import torch

from ali_dist.config.loading import from_mapping, read_preset
from ali_dist.distributed import World
from ali_dist.errors import InputError, TrainingError
from ali_dist.launchers.builtin_data import prepare_builtin_data
from ali_dist.storage import open_store
from ali_dist.training.context import UnhurriedContext
from ali_dist.training.loop import fit
from tuning.options import SweepOptions, make_plan
from tuning.searchers import OptunaSuggester
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, load_records, save_record

SearchName = Literal["random", "optuna"]
SEARCHES: tuple[SearchName, ...] = ("random", "optuna")
BestScores = list[float]
"""The preset's own score; then, after each trial, the best score so far."""


class RecordingContext(UnhurriedContext):
    """The surroundings of a local run that gives each evaluation to a record; see `ali_dist.training.context`."""

    def __init__(self, plan: SweepPlan, record: TrialRecord) -> None:
        self.world = World()
        self.device = torch.device("cpu")
        self._metric = plan.score_metric
        self._record = record

    def stop_requested(self) -> bool:
        """Never."""
        return False

    def report(self, metrics: dict[str, float]) -> None:
        """Add an evaluation and its score to the record."""
        score = self._metric.score(metrics)
        self._record.add_evaluation(metrics if score is None else {**metrics, "score": score})


def make_sweep_plan(search: SearchName, seed: int, options: argparse.Namespace) -> SweepPlan:
    """The plan of one sweep; it evaluates only at the end, because nothing is stopped early here."""
    sweep_options = SweepOptions(
        preset=options.preset, search=search, sweep_seed=seed, trials=options.trials + 1, metric=options.metric
    )
    settings = {"run.images": options.images, "run.dir": options.dir / "runs", "run.name": f"{search}-{seed}"}
    settings |= {"data.url": options.dir / "data", "report.evaluate_every": options.images, "scale.threads": 1}
    settings |= {"data.source": read_preset(options.preset).source or "none"}
    settings |= {"model.width": 0.5, "report.evaluation_samples": 1000}
    return make_plan(sweep_options, {name: str(value) for name, value in settings.items()})


def run_sweep(search: SearchName, seed: int, options: argparse.Namespace) -> tuple[SearchName, int, BestScores]:
    """Run all trials of one sweep."""
    torch.set_num_threads(1)
    plan = make_sweep_plan(search, seed, options)
    store = open_store(plan.folder)
    earlier_records = {record.number: record for record in load_records(store)}
    suggester = None
    if search == "optuna":
        suggester = OptunaSuggester(plan.dimensions, higher_is_better=True, seed=seed, records=[])
    best: BestScores = []
    for number in range(plan.trials):
        settings = plan.settings_for_trial(number)
        if settings is None:
            assert suggester is not None, "only Optuna leaves settings open"
            settings = suggester.ask(number)
        record = earlier_records.get(number)
        if record is None or record.settings != settings:
            record = run_trial(plan, number, settings)
            save_record(store, record)
        if suggester is not None:
            suggester.tell(record)
        score = record.score or 0.0
        best.append(score if number < 2 else max(score, best[-1]))
    return search, seed, best


def silence_output() -> None:
    """Let this process write no progress of its runs."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)


def run_trial(plan: SweepPlan, number: int, settings: dict[str, Any]) -> TrialRecord:
    """Train one trial."""
    record = TrialRecord(number=number, settings=settings)
    config = plan.config_for_trial(number, settings, {"scale.workers": "0", "scale.device": "cpu"})
    start = time.monotonic()
    try:
        fit(config, RecordingContext(plan, record))
        record.state = "finished"
    except (TrainingError, FloatingPointError) as error:
        record.state = "pruned"
        record.reason = str(error)
    record.seconds = time.monotonic() - start
    return record


def format_table(best: dict[tuple[SearchName, int], BestScores], trials: int) -> str:
    """The best scores after a quarter, half and all of the trials."""
    seeds = sorted({seed for _, seed in best})
    rows = ["| trials | " + " | ".join(SEARCHES) + " | Optuna ahead | random ahead |", "|---|---|---|---|---|"]
    for after in sorted({max(1, trials // 4), max(1, trials // 2), trials}):
        columns = {search: [best[search, seed][after] for seed in seeds] for search in SEARCHES}
        pairs = list(zip(columns["random"], columns["optuna"], strict=True))
        cells = [f"{statistics.mean(c):.3f} ± {statistics.pstdev(c):.3f}" for c in columns.values()]
        cells.append(f"{sum(o > r for r, o in pairs)} of {len(seeds)}")
        cells.append(f"{sum(r > o for r, o in pairs)} of {len(seeds)}")
        rows.append(f"| {after} | {' | '.join(cells)} |")
    return "\n".join(rows)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse what is to be compared."""
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
    options = parser.parse_args(words)
    options.dir = options.dir.absolute()
    return options


def main() -> int:
    """Run the bench and return its exit code."""
    options = parse_arguments()
    start = time.monotonic()
    try:
        prepare_builtin_data(from_mapping(make_sweep_plan("random", 0, options).base))
        make_sweep_plan("optuna", 0, options)
    except InputError as error:
        print(f"tests.bench.search: {error}", file=sys.stderr)
        return 2
    sweeps = [(search, seed, options) for seed in range(options.seeds) for search in SEARCHES]
    best: dict[tuple[SearchName, int], BestScores] = {}
    with multiprocessing.get_context("spawn").Pool(options.processes, silence_output) as pool:
        for result in [pool.apply_async(run_sweep, sweep) for sweep in sweeps]:
            search, seed, scores = result.get()
            best[search, seed] = scores
            line = f"{search}, seed {seed}: best of {options.trials} {scores[-1]:.3f}, the preset {scores[0]:.3f}"
            print(line, flush=True)
    print(
        f"\nBest {options.metric} of {options.preset}, {options.images:,} images a trial, {options.seeds} seeds, "
        f"{time.monotonic() - start:.0f} s:"
    )
    print(f"\n{format_table(best, options.trials)}")
    if options.json:
        figures = [{"search": search, "seed": seed, "best": scores} for (search, seed), scores in best.items()]
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
