"""Search hyper-parameters: `python -m tuning.sweep --help` says how."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from ali_dist.config.loading import from_mapping
from ali_dist.config.wording import format_count
from ali_dist.errors import InputError, Stopped, StorageError, TrainingError, exit_code
from ali_dist.launchers.resources import check_lanes
from ali_dist.process_end import run_to_the_end
from ali_dist.storage.base import Store
from tuning.html import write_sweep_page, write_trial_page
from tuning.options import make_parser as make_parser
from tuning.options import make_plan, parse_arguments
from tuning.resources import check_trial_options, count_trials_at_once, resources_for_trial
from tuning.results import describe_result, write_results
from tuning.score import default_score_metric
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, find_best_record, load_records, trial_name

if TYPE_CHECKING:
    from ali_dist.config import Config
    from ali_dist.runs.datasets import RunData
    from tuning.searchers import Suggester
    from tuning.trial_tracker import TrialTracker

_PLAN_FILE = "sweep.json"
_PROBE_FILE = "sweep.probe"


def run_command(arguments: list[str]) -> None:
    """Do what the command line says.

    Raises:
        InputError: It cannot be done as asked.
        Stopped: It was asked to end before all trials had; --resume goes on.
        TrainingError: No trial could be trained.
    """
    options, settings = parse_arguments(arguments)
    plan = make_plan(options, settings)
    check_trial_options(options.gpus_per_trial, options.workers_per_trial)
    if options.dry_run:
        print(plan.describe())
        return
    from tuning.ray_tune import tune_session
    from tuning.runner import run_sweep

    plan, store, records = open_sweep(plan, resume=options.resume)
    suggester = make_suggester(plan, records)
    config = from_mapping(plan.base)
    with tune_session() as nodes:
        resources = resources_for_trial(
            nodes,
            gpus_per_trial=options.gpus_per_trial,
            workers_per_trial=options.workers_per_trial,
            cpus_per_worker=config.scale.cpus_per_worker,
            device=config.scale.device,
        )
        check_lanes(config, resources.workers, "--workers-per-trial or --gpus-per-trial")
        trials_left = plan.trials - sum(record.has_ended for record in records)
        trials_at_once = count_trials_at_once(nodes, resources, max(1, trials_left))
        store.put(_PLAN_FILE, (json.dumps(plan.to_mapping(), indent=1) + "\n").encode())
        tracker, stop_requested = run_sweep(
            plan,
            store,
            records,
            resources=resources,
            trials_at_once=trials_at_once,
            suggester=suggester,
            seconds=options.time_budget,
        )
    _conclude_sweep(plan, tracker, store, stop_requested=stop_requested)


def open_sweep(plan: SweepPlan, *, resume: bool) -> tuple[SweepPlan, Store, list[TrialRecord]]:
    """Open the sweep's folder.

    Returns:
        The plan with its metric, the folder, and the records that earlier drivers left there.

    Raises:
        InputError, StorageError: The folder cannot be used, or holds another sweep, or the data cannot be searched on.
    """
    from ali_dist.launchers.builtin_data import prepare_builtin_data
    from ali_dist.model.build import describe_resize
    from ali_dist.runs.datasets import open_run_data, open_run_store

    config = from_mapping(plan.base)
    store = open_run_store(config)
    earlier_plan = load_plan(store)
    if earlier_plan is not None and not resume:
        raise InputError(f"There is a sweep in {store.url} already: add --resume, or choose another --run.name.")
    if earlier_plan is None and resume:
        raise InputError(f"There is no sweep to resume in {store.url}: leave --resume out, or give its --run.name.")
    check_writable(store)
    prepare_builtin_data(config)
    # A sweep goes on by the metric it was begun by, even if another one is now the default of its data.
    earlier_metric = earlier_plan.metric if earlier_plan is not None else ""
    data = open_run_data(config)
    metric = plan.metric or earlier_metric or default_metric_of_data(config, data)
    plan = dataclasses.replace(plan, metric=metric, fingerprint=data.train.index.fingerprint)
    if earlier_plan is not None:
        earlier_plan.check_resumable_as(plan)
    if resize := describe_resize(config, data.train.index.spec):
        sys.stderr.write(f"{resize}\n")
    return plan, store, load_records(store)


def check_writable(store: Store) -> None:
    """Find out now, and not after Ray has started, whether results can be left in a folder.

    Raises:
        InputError, StorageError: They cannot.
    """
    store.put(_PROBE_FILE, b"")
    with contextlib.suppress(InputError, StorageError):  # an empty file may stay where nothing may be deleted
        store.delete([_PROBE_FILE])


def load_plan(store: Store) -> SweepPlan | None:
    """The plan of the sweep in a folder; None if there is no sweep.

    Raises:
        InputError: The plan cannot be read.
    """
    if store.stat(_PLAN_FILE) is None:
        return None
    place = f"{store.url}/{_PLAN_FILE}"
    try:
        return SweepPlan.from_json(json.loads(store.get(_PLAN_FILE)), place)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} cannot be read ({error}): choose another --run.name.") from error


def default_metric_of_data(config: Config, data: RunData) -> str:
    """The metric that suits the data.

    Raises:
        InputError: There is no held-out split to measure it on.
    """
    if data.holdout is None:
        raise InputError(
            f"{config.data.url} has no split {config.data.holdout!r}, but a sweep compares evaluations on held-out "
            "data: prepare the data with one, or name it with --data.holdout."
        )
    index = data.train.index
    return default_score_metric(
        mixture="mixture" in index.extra, classes=bool(index.classes), supervised=config.objective.supervised > 0
    )


def make_suggester(plan: SweepPlan, records: list[TrialRecord]) -> Suggester | None:
    """Where the settings of trials come from, if the plan does not fix them all; None if it does."""
    if plan.search != "optuna":
        return None
    from tuning.searchers import OptunaSuggester

    higher_is_better = plan.score_metric.higher_is_better
    return OptunaSuggester(plan.dimensions, higher_is_better=higher_is_better, seed=plan.seed, records=records)


def _conclude_sweep(plan: SweepPlan, tracker: TrialTracker, store: Store, *, stop_requested: bool) -> None:
    """Leave the results, and say what they are.

    Raises:
        Stopped: The sweep was asked to stop, and there are trials left to run.
        TrainingError: Every trial failed.
    """
    records = tracker.copy_records()
    for record in records:  # an earlier driver may have been killed between a trial's end and its page
        if record.has_ended and store.stat(f"trials/{trial_name(record.number)}/report.html") is None:
            write_trial_page(store, record)
    write_results(plan, records, store)
    write_sweep_page(plan, records, store)
    trials_left = len(tracker.list_waiting())
    left = f"with {trials_left} of {format_count(plan.trials, 'trial')} to go: add --resume to go on."
    if stop_requested and trials_left:
        raise Stopped(f"Stopped on request {left}")
    if all(record.state == "failed" for record in records):
        raise TrainingError(f"Every trial failed; the first: {records[0].reason}")
    print(describe_result(plan, records))
    if trials_left:
        print(f"The time is over {left}")
    if find_best_record(records, higher_is_better=plan.score_metric.higher_is_better) is not None:
        print(plan.best_command)
    print(f"Everything else: {plan.folder}/sweep.html")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    interrupted = "Interrupted; --resume goes on from the newest checkpoints."
    return exit_code("tuning.sweep", lambda: run_command(words), interrupted)


if __name__ == "__main__":
    run_to_the_end(main)
