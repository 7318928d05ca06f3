"""Search hyper-parameters: `python -m tuning.sweep [--preset NAME|FILE.yaml] [options] [--section.key value ...]`.

Every trial is a whole training run in its own folder below the sweep's, `runs/sweep-NAME/trials/NNN`. The answer is
best.yaml (a preset for `python -m ali_dist.train --preset .../best.yaml`), results.csv and sweep.html.

  --preset NAME|FILE     where trials start from (digits)
  --space NAME|FILE      what is searched: a YAML file, or a space that ships (that of the preset or its data)
  --trials N             how many trials (12; a grid: all of it); the first one is the preset itself
  --metric M             what they are compared by (coverage for mixtures, fidelity for labelled images; see below)
  --search S             random, grid, or optuna (random)
  --scheduler S          asha: stop those early that are behind, on images seen; none (asha)
  --sweep-seed N         of the choice of settings (0)
  --workers-per-trial W  Ray Train workers of each trial; 1: it trains in one process (1)
  --gpus-per-trial G     GPUs of each trial, up to 1 or whole; 0: CPU (1 where the cluster has GPUs)
  --time-budget T        end after 90s, 30m or 2h; what runs then is saved for --resume
  --resume               go on with a sweep of this name; ended trials are not run again
  --dry-run              show the plan, and run nothing
  --section.key VALUE    a setting for all trials, as in python -m ali_dist.train; run.name names the sweep

Exit codes: 0 done, 2 wrong input, 1 failure, 75 stopped with --resume to go on, 130 ended by a second Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from ali_dist.config.loading import from_mapping, preset_names
from ali_dist.errors import InputError, Stopped, TrainingError, exit_code
from ali_dist.storage.base import Store
from tuning.html import write_sweep_page, write_trial_page
from tuning.options import make_plan, parse_arguments, seconds_option, share_option, whole_number_option
from tuning.results import describe_result, write_results
from tuning.score import SCORE_METRICS, default_score_metric
from tuning.spaces import space_names
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import ENDED, TrialRecord, best_record, load_records, trial_name

if TYPE_CHECKING:
    from ali_dist.config import Config
    from ali_dist.runs.datasets import RunData
    from tuning.searchers import Suggester
    from tuning.trial_tracker import TrialTracker

_PLAN, _PROBE = "sweep.json", "sweep.probe"


def help_text() -> str:
    """Usage, and what the options may name."""
    metrics = [
        f"  {m.name:<22} {' and '.join(m.parts)}, {'higher' if m.higher else 'lower'} is better"
        for m in SCORE_METRICS.values()
    ]
    names = [
        f"Presets: {', '.join(preset_names())}.",
        f"Search spaces: {', '.join(space_names())}.",
        "Metrics:",
        *metrics,
    ]
    return "\n".join([(__doc__ or "").strip(), "", *names])


def run_command(arguments: list[str]) -> None:
    """Do what the command line says.

    Raises:
        InputError: It cannot be done as asked.
        Stopped: It was asked to end before all trials had; --resume goes on.
        TrainingError: No trial could be trained.
    """
    options, overrides = parse_arguments(arguments)
    plan, budget = make_plan(options, overrides), seconds_option(options)
    gpus, workers = share_option(options, "gpus-per-trial"), whole_number_option(options, "workers-per-trial", None)
    if gpus is not None and workers is not None:
        raise InputError("--gpus-per-trial and --workers-per-trial are two ways to say it: give one of them.")
    if "dry-run" in options:
        print(plan.described())
        return
    from tuning.ray_tune import tune_session
    from tuning.resources import check_lanes, resources_for_trial, trials_at_once
    from tuning.runner import run_sweep

    plan, store, records = open_sweep(plan, resume="resume" in options)
    adviser, config = make_suggester(plan, records), from_mapping(plan.base)
    with tune_session() as nodes:
        need = resources_for_trial(
            nodes,
            gpus_per_trial=gpus,
            workers_per_trial=workers,
            cpus_per_worker=config.scale.cpus_per_worker,
            device=config.scale.device,
        )
        check_lanes(need.workers, config.data.num_lanes())
        left = plan.trials - sum(record.state in ENDED for record in records)
        at_once = trials_at_once(nodes, need, max(1, left))
        store.put(_PLAN, (json.dumps(plan.to_mapping(), indent=1) + "\n").encode())
        book, asked = run_sweep(plan, store, records, need=need, at_once=at_once, adviser=adviser, seconds=budget)
    _write_conclusion(plan, book, store, asked=asked)


def open_sweep(plan: SweepPlan, *, resume: bool) -> tuple[SweepPlan, Store, list[TrialRecord]]:
    """The plan with its metric, its folder, and what earlier drivers left there.

    Raises:
        InputError, StorageError: The folder cannot be used, or holds another sweep, or the data cannot be searched on.
    """
    from ali_dist.launchers.local import prepare_builtin_data
    from ali_dist.runs.datasets import open_run_data, open_run_store

    config = from_mapping(plan.base)
    store = open_run_store(config)
    earlier = load_plan(store)
    if earlier is not None and not resume:
        raise InputError(f"There is a sweep in {store.url} already: add --resume, or choose another --run.name.")
    if earlier is None and resume:
        raise InputError(f"There is no sweep to resume in {store.url}: leave --resume out, or give its --run.name.")
    check_writable(store)
    prepare_builtin_data(config)
    begun_by = earlier.metric if earlier is not None else ""  # which may be what was the data's metric then
    plan = dataclasses.replace(plan, metric=plan.metric or begun_by or metric_for_data(config, open_run_data(config)))
    if earlier is not None:
        earlier.check_same(plan)
    return plan, store, load_records(store)


def check_writable(store: Store) -> None:
    """Find out now, and not after Ray has started, whether results can be left there.

    Raises:
        InputError, StorageError: They cannot.
    """
    store.put(_PROBE, b"")
    store.delete([_PROBE])


def load_plan(store: Store) -> SweepPlan | None:
    """The plan of the sweep in a folder; None if there is none."""
    if store.stat(_PLAN) is None:
        return None
    where = f"{store.url}/{_PLAN}"
    try:
        return SweepPlan.from_json(json.loads(store.get(_PLAN)), where)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} cannot be read ({error}): choose another --run.name.") from error


def metric_for_data(config: Config, inputs: RunData) -> str:
    """The default metric of the data.

    Raises:
        InputError: There is no held-out split to measure it on.
    """
    if inputs.holdout is None:
        raise InputError(
            f"{config.data.url} has no split {config.data.holdout!r}, but a sweep compares evaluations on held-out "
            "data: prepare the data with one, or name it with --data.holdout."
        )
    index = inputs.train.index
    return default_score_metric(
        mixture="mixture" in index.extra, classes=bool(index.classes), supervised=config.objective.supervised > 0
    )


def make_suggester(plan: SweepPlan, records: list[TrialRecord]) -> Suggester | None:
    """Where the settings of trials come from, if the plan does not fix them all."""
    if plan.search != "optuna":
        return None
    from tuning.searchers import OptunaSuggester

    return OptunaSuggester(plan.dimensions(), higher=plan.judge().higher, seed=plan.seed, records=records)


def _write_conclusion(plan: SweepPlan, book: TrialTracker, store: Store, *, asked: bool) -> None:
    """Leave the results, and say what they are."""
    records = book.records()
    for record in records:  # an earlier driver may have been killed between a trial's end and its page
        if record.state in ENDED and store.stat(f"trials/{trial_name(record.number)}/report.html") is None:
            write_trial_page(store, record)
    write_results(plan, records, store)
    write_sweep_page(plan, records, store)
    left = len(book.waiting())
    if asked and left:
        raise Stopped(f"Stopped on request with {left} of {plan.trials} trials to go: add --resume to go on.")
    if all(record.state == "failed" for record in records):
        raise TrainingError(f"Every trial failed; the first: {records[0].reason}")
    print(describe_result(plan, records))
    if left:
        print(f"The time is over with {left} of {plan.trials} trials to go: add --resume to go on.")
    if best_record(records, higher=plan.judge().higher) is not None:
        print(f"python -m ali_dist.train --preset {plan.folder}/best.yaml")
    print(f"Everything else: {plan.folder}/sweep.html")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    interrupted = "Interrupted; --resume goes on from the newest checkpoints."
    return exit_code("tuning.sweep", lambda: run_command(arguments), interrupted)


if __name__ == "__main__":
    sys.exit(main())
