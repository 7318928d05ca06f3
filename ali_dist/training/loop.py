"""The training loop: take a global batch, update, count images, and do what is due. Nothing else.

Every rank runs it in step; rank 0 also writes. It knows nothing of what launched it: see `context.py`. What it works
with is built once, in order, by `setup.py`.
"""

from __future__ import annotations

import functools
import math
import time
from contextlib import ExitStack, nullcontext
from typing import NoReturn

import torch

from ali_dist.config import Config
from ali_dist.distributed import any_rank, awaited_by_ranks, failing_together, largest_of_ranks, waiting_for_ranks
from ali_dist.errors import NotFiniteError, Stopped, TrainingError
from ali_dist.runs.trackers import Record
from ali_dist.training import schedules
from ali_dist.training.alarm_response import respond_to_alarms
from ali_dist.training.alarms import Alarm, alarm_of_divergence
from ali_dist.training.context import Context
from ali_dist.training.host_allocator import freed_memory_kept, return_unused_memory
from ali_dist.training.memory import advise_on_memory
from ali_dist.training.reporting import EvaluationOutcome
from ali_dist.training.saving import average_statistics, conclude, note_failure, save_checkpoint
from ali_dist.training.setup import TrainingRun, set_up_run
from ali_dist.training.step import LossWeights, StepResult, TrainBatch, loss_weights_at

STOP_POLL = 10
"""Most updates between two votes of several ranks on stopping."""
_VOTE_SECONDS = 1.0  # between two votes where updates take so long that fewer of them fit
_COMPILING_PATIENCE = 10.0  # the first update compiles the networks: minutes


def fit(config: Config, context: Context) -> Record | None:
    """Train from the newest checkpoint of the run, or from the start, to `run.images`. Collective.

    Returns:
        The summary that rank 0 wrote (None on other ranks).

    Raises:
        InputError: Config, data and checkpoint do not go together.
        TrainingError: A loss or weight is not finite, or an alarm stops the run.
        Stopped: The context asked to stop; a checkpoint has been saved.
    """
    with ExitStack() as stack:
        with context.before_training():
            run = set_up_run(config, context, stack)
        stack.push(functools.partial(note_failure, run))
        if run.progress.step >= run.total_steps:
            with context.all_saved(run.checkpoints.is_idle):
                return conclude_finished_run(run)
        if run.device.type == "cpu":
            stack.enter_context(freed_memory_kept())
        with context.before_training():
            run.start_training(stack)
        look_again(run)
        if run.progress.step == 0 and config.run.on_alarm != "warn":
            save_checkpoint(run)  # for an alarm to go back to

        while run.progress.step < run.total_steps:
            # Save, if a machine is about to leave. Stop, if any rank was asked to; the same command goes on from here.
            hear_requests(run)

            # Next global batch: which samples and which noise follow from (seed, step) alone.
            batch = read_batch(run)

            # Rates and weights of this moment follow from the images seen, the only clock.
            images = run.progress.images
            rate = schedules.learning_rate_factor(config.optim, run.global_batch_size, images, config.run.images)
            penalty = schedules.penalty_factor(config.objective.penalty_final, images, config.run.images)
            run.state.set_learning_rates(lr_g=config.optim.lr_g * rate, lr_d=config.optim.lr_d * rate)
            run.state.set_epsilon(schedules.adam_epsilon(config.optim, run.progress.step + 1))
            weights = loss_weights_at(config.objective, run.progress.step, penalty)

            # ---- one update of Algorithm 1 -------------------------------------------------------------------------
            run.state.step.start_update(run.progress.step)
            result = update_networks(run, batch, weights)
            run.progress.advance(run.global_batch_size)
            run.state.update_average(
                schedules.ema_decay(config.optim.ema_half_life, run.global_batch_size, run.progress.images)
            )
            # --------------------------------------------------------------------------------------------------------

            run.meter.add(result)
            if run.reporter is not None:
                run.reporter.count_images(run.progress.images)

            # Now and then, by images seen: record, save, draw, evaluate. The clock of training stands meanwhile.
            due = schedules.due_actions(
                config.report,
                images_before=images,
                images_now=run.progress.images,
                is_last=run.progress.step == run.total_steps,
            )
            if due.record:
                is_due = run.progress.watch.is_due(run.progress.step, is_saved=due.save)
                alarms = record_losses(run, batch if is_due else None, goes_on=True)
                if alarms and respond_to_alarms(run, alarms):
                    continue  # from an earlier checkpoint
            if due.save:
                # Before the looks, so that what fails or is killed there loses no training.
                if not save_if_finite(run):
                    continue  # from an earlier checkpoint
            elif due.draw or due.evaluate:
                average_statistics(run)
            look(run, draws=due.draw, evaluates=due.evaluate, is_saved=due.save)
            if due.record:
                run.meter.start(run.progress.images, run.batches.wait_seconds)

        return conclude(run, "finished")


def update_networks(run: TrainingRun, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """One update. Collective.

    Raises:
        TrainingError: The GPU's memory does not hold it.
    """
    step = run.progress.step
    is_compiling = run.config.scale.compile and run.is_first_update
    run.is_first_update = False
    try:
        with waiting_for_ranks(f"update {step + 1:,}", _COMPILING_PATIENCE if is_compiling else 1.0):
            result = run.state.update(batch, weights)
            run.state.adapt_augmentation(result.d_sign, len(batch.x), step)
            return result
    except torch.OutOfMemoryError as error:
        raise TrainingError(advise_on_memory(run.config, run.state.ali, run.world)) from error


def read_batch(run: TrainingRun) -> TrainBatch:
    """The next batch.

    Several ranks cannot stop while one of them waits for data: the others wait for its gradients by then.

    Raises:
        Stopped: A single rank was asked to stop while it waited for data; a checkpoint has been saved.
    """
    with awaited_by_ranks("reading data"):
        if run.world.size == 1 and not run.batches.wait_for_next(run.context.stop_requested):
            save_and_stop(run)
        return run.batches.next_batch(run.progress.step)


def hear_requests(run: TrainingRun) -> None:
    """Stop with all saved, if any rank was asked to; save, if a machine is said to leave. Collective.

    Several ranks vote after every `STOP_POLL` updates, or where these take longer, about every second. The slowest
    rank's clock decides when all of them vote next, so that they agree.

    Raises:
        Stopped: Any rank was asked to stop; a checkpoint has been saved.
        OutageError, StorageError, InputError, TrainingError: Saving has failed for good.
    """
    ends = run.context.stop_requested() or run.checkpoints.has_failed()  # the latter is raised by the save
    requests = [float(ends), float(run.context.count_leaving_machines())]
    if run.world.size > 1:
        updates = run.progress.step - run.last_vote
        if updates < run.updates_to_vote:
            return
        requests = _vote(run, requests, updates)
    must_end, leaving = requests
    if must_end:
        save_and_stop(run)
    if leaving > run.leaving_machines:
        run.leaving_machines = int(leaving)
        if run.reporter is not None:
            run.reporter.say(f"A machine is about to leave: saving a checkpoint at {run.progress.images:,} images.")
        save_if_finite(run)  # in the background; when the machine is gone, all ranks go on from it


def save_if_finite(run: TrainingRun) -> bool:
    """Save a checkpoint, or roll the run back if it has diverged and may be rolled back. Collective.

    A weight may be NaN before any loss is.

    Returns:
        Whether it was saved.

    Raises:
        NotFiniteError: It has diverged, and may not be rolled back.
        TrainingError: It has diverged, and rolling it back does not mend that.
        OutageError, StorageError, InputError: It could not be saved.
    """
    try:
        save_checkpoint(run)
    except NotFiniteError:
        if run.config.run.on_alarm != "rollback":
            raise
        meaning = "a weight, an average, a statistic or a moment of Adam is not finite"
        respond_to_alarms(run, [alarm_of_divergence(run.progress.step, "training state", meaning)])
        return False
    return True


def _vote(run: TrainingRun, requests: list[float], updates: int) -> list[float]:
    """The largest of all ranks' requests; sets when to vote next, some `updates` after the last time."""
    now = time.monotonic()
    votes = [*requests, now - run.last_vote_at]
    *requests, seconds = largest_of_ranks(votes, run.device, run.world, "a vote on stopping")
    run.last_vote, run.last_vote_at = run.progress.step, now
    if updates:
        run.updates_to_vote = max(1, min(STOP_POLL, int(_VOTE_SECONDS * updates / max(seconds, 1e-6))))
    return requests


def record_losses(run: TrainingRun, batch: TrainBatch | None = None, *, goes_on: bool = False) -> list[Alarm]:
    """Write a record of the training since the last one, if it is finite, and look for trouble. Collective.

    Args:
        run: The run.
        batch: This rank's part of the last global batch, to look at the networks with; None: they are not looked at.
        goes_on: Whether training goes on after this, so that it may be rolled back, too.

    Returns:
        Alarms that are to be raised now, the same on every rank.

    Raises:
        TrainingError: A loss is not finite, and the run may not be rolled back.
    """
    sums = None if batch is None else run.probe.sums(batch)
    with waiting_for_ranks("the sum of losses"):
        losses = run.meter.take(run.progress.images, run.batches.wait_seconds, sums)
    if not math.isfinite(losses["d_loss"] + losses["g_loss"]):
        if goes_on and run.config.run.on_alarm == "rollback":
            return [alarm_of_divergence(run.progress.step)]
        raise TrainingError(
            f"Training diverged before image {run.progress.images:,} (d_loss {losses['d_loss']:.3g}, g_loss "
            f"{losses['g_loss']:.3g}); earlier checkpoints are kept: lower optim.lr_d and optim.lr_g, or raise "
            "objective.r1 and objective.r2, under another --run.name."
        )
    measures = {} if sums is None else run.probe.measures(sums)
    if run.reporter is not None:
        run.reporter.log_record({"event": "train", **run.position(), **losses, **run.state.rates()})
        if measures:
            run.reporter.log_measures({"event": "watch", **run.position(), **measures})
    run.meter.start(run.progress.images, run.batches.wait_seconds)  # a stop before the next update has none to record
    return run.progress.watch.look(measures, run.progress.step) if measures else []


def look(run: TrainingRun, *, draws: bool, evaluates: bool, is_saved: bool) -> None:
    """Draw and measure the networks, whose statistics are those of all ranks. Collective.

    Args:
        run: The run.
        draws: Whether pictures are due.
        evaluates: Whether an evaluation is due.
        is_saved: Whether a checkpoint of this moment is written, or being written.

    Raises:
        Stopped: The evaluation was asked to stop; a checkpoint has been saved.
    """
    with run.context.all_saved(run.checkpoints.is_idle) if is_saved else nullcontext():
        if draws and run.reporter is not None:
            run.reporter.draw_galleries(run.position())
        is_evaluated = not evaluates or evaluate(run)
        if is_evaluated and (draws or evaluates) and run.reporter is not None:
            run.reporter.publish_looks(run.outcome("running"), goes_on=run.progress.step < run.total_steps)
    if (draws or evaluates) and run.device.type == "cpu":
        return_unused_memory()
    if not is_evaluated:
        save_and_stop(run)  # an evaluation takes long: it looks at the same request to stop


def look_again(run: TrainingRun) -> None:
    """Look at the networks of the checkpoint, if the start that saved it was ended before it had. Collective.

    If it had, its metrics are passed on again: it may have been ended before whoever manages the run heard of them.

    Raises:
        Stopped: The evaluation was asked to stop again.
    """
    if run.progress.step == 0:
        return
    images = run.progress.images
    due = schedules.due_actions(
        run.config.report, images_before=images - run.global_batch_size, images_now=images, is_last=False
    )
    if not due.evaluate:
        return
    is_missing = run.reporter is not None and not run.reporter.has_evaluated(images)
    if any_rank(is_missing, run.device, run.world, "a vote on an evaluation"):
        look(run, draws=due.draw, evaluates=True, is_saved=True)
        run.meter.start(images, run.batches.wait_seconds)
    else:
        pass_on_metrics(run)


def pass_on_metrics(run: TrainingRun) -> None:
    """Report what was measured at this moment by an earlier start, if it was. Every rank must call."""
    metrics = run.reporter.recall_choice(run.progress.images) if run.reporter is not None else {}
    run.context.report({"images": float(run.progress.images), **metrics})


def evaluate(run: TrainingRun) -> bool:
    """Measure the networks on rank 0, and pass the metrics on; False if that was asked to stop. Collective."""
    outcome = EvaluationOutcome()
    is_last = run.progress.step >= run.total_steps
    with failing_together(run.device, run.world, "an evaluation"):
        if run.reporter is not None:
            outcome = run.reporter.evaluate(run.position(), is_last=is_last)
    if is_last and (outcome.is_stopped or outcome.is_failed):  # metrics of an earlier moment are not those of the end
        run.progress.metrics = {}
        run.progress.metrics_split = ""
    if any_rank(outcome.is_stopped, run.device, run.world, "an evaluation"):
        return False
    if outcome.metrics:
        run.progress.metrics = outcome.metrics
        run.progress.metrics_split = outcome.split
    run.context.report({"images": float(run.progress.images), **outcome.to_choose_by})
    return True


def save_and_stop(run: TrainingRun) -> NoReturn:
    """Record, save and conclude an unfinished run. Collective.

    Raises:
        OutageError, StorageError, InputError: It could not be saved.
        Stopped: Otherwise.
    """
    if run.progress.images > run.meter.images:
        record_losses(run)
    save_checkpoint(run)
    conclude(run, "stopped")
    raise Stopped(
        f"Stopped on request after {run.progress.images:,} of {run.config.run.images:,} images with a checkpoint "
        "saved; run the same command to go on."
    )


def _describe_end(run: TrainingRun, *, was_finished: bool) -> str:
    """Say why nothing is left to train: the run had come to its end, or has been given an earlier one."""
    name, images, planned = run.config.run.name, run.progress.images, run.progress.planned_images
    state = f"is finished ({images:,} images)"
    if not was_finished and images <= planned - run.global_batch_size:
        shorter = f"run.images is now {run.config.run.images:,}"
        state = f"was stopped after {images:,} of {planned:,} images, and ends here, because {shorter}"
    return f"Run {name!r} {state}: raise --run.images to go on, or choose another --run.name."


def conclude_finished_run(run: TrainingRun) -> Record | None:
    """Nothing is left to train; a run without a summary gets it, with the looks that it may lack. Collective.

    Raises:
        Stopped: The evaluation was asked to stop again.
    """
    with failing_together(run.device, run.world, "the reading of the run's summary"):
        summary = run.reporter.read_finished_summary() if run.reporter is not None else None
    if run.reporter is not None:
        run.reporter.say(_describe_end(run, was_finished=summary is not None))
    is_concluded = any_rank(summary is not None, run.device, run.world)
    if not is_concluded and run.reporter is not None:
        run.reporter.draw_galleries(run.position())
    if is_concluded or run.progress.metrics:  # a checkpoint of before has metrics of the same moment
        pass_on_metrics(run)
    elif not evaluate(run):
        raise Stopped(
            f"Stopped on request while run {run.config.run.name!r} was evaluated, with all its training saved; run "
            "the same command to evaluate it."
        )
    if run.reporter is None:
        return None
    if summary is not None:
        run.reporter.conclude(summary)
    return summary or run.reporter.write_summary(run.outcome("finished"), [])
