"""What a run does about its alarms (`run.on_alarm`): say them, go back to before the trouble, or stop."""

from __future__ import annotations

from ali_dist.distributed import any_rank, failing_together
from ali_dist.errors import TrainingError
from ali_dist.training.alarms import Alarm
from ali_dist.training.resume import resume_run
from ali_dist.training.saving import conclude, settle_checkpoints
from ali_dist.training.setup import TrainingRun

MOST_ROLLBACKS = 3
"""Of a run: what other noise does not mend three times is no matter of luck."""


def respond_to_alarms(run: TrainingRun, alarms: list[Alarm]) -> bool:
    """Say and record alarms, and do what `run.on_alarm` asks for. Collective.

    Args:
        run: The run.
        alarms: Those that are raised at this moment, at least one.

    Returns:
        Whether the run has gone back to an earlier checkpoint.

    Raises:
        TrainingError: They stop the run.
    """
    if run.reporter is not None:
        for alarm in alarms:
            run.reporter.record_alarm(alarm, run.position())
    if run.config.run.on_alarm == "warn":
        return False
    can_go_back = _discard_what_came_after(run)
    if run.config.run.on_alarm == "rollback" and can_go_back and run.progress.rollbacks < MOST_ROLLBACKS:
        _roll_back(run, alarms[0])
        return True
    _stop(run, alarms[0], can_go_back=can_go_back)
    return False


def _discard_what_came_after(run: TrainingRun) -> bool:
    """Delete the checkpoints of the time of trouble, if there is one of before; whether there is. Collective.

    Raises:
        StorageError, InputError: A checkpoint could not be written or deleted.
    """
    clear_step = run.progress.watch.clear_step
    settle_checkpoints(run, run.checkpoints.wait)
    there_is_one = False
    with failing_together(run.device, run.world, "a vote on checkpoints"):
        if run.reporter is not None:
            there_is_one = run.checkpoints.has_until(clear_step)
            if there_is_one:
                run.checkpoints.discard_after(clear_step)
    return any_rank(there_is_one, run.device, run.world)


def _roll_back(run: TrainingRun, alarm: Alarm) -> None:
    """Go on from the newest checkpoint, with other noise. Collective."""
    before = run.progress
    say = run.reporter.say if run.reporter is not None else _say_nothing
    run.progress = resume_run(run.config, run.checkpoints, run.state, run.data.train.index.fingerprint, run.world, say)
    run.progress.seconds = before.seconds  # the clock of this start runs on
    run.progress.spent = before.spent
    run.progress.starts = before.starts
    run.progress.restarts = before.restarts
    run.progress.rollbacks = before.rollbacks + 1
    run.last_vote = run.progress.step  # votes on stopping go by updates, of which there are fewer again
    if run.reporter is not None:
        run.reporter.record_rollback(alarm, before.images, run.position(), run.progress, most=MOST_ROLLBACKS)
    run.close_batches()
    run.open_batches()


def _stop(run: TrainingRun, alarm: Alarm, *, can_go_back: bool) -> None:
    """Conclude the run without saving it. Collective.

    Raises:
        TrainingError: Always.
    """
    conclude(run, "stopped")
    saved = "the newest checkpoint is from before the trouble" if can_go_back else "nothing was saved since"
    after = f" after {run.progress.rollbacks} rollbacks" if run.progress.rollbacks else ""
    raise TrainingError(
        f"Alarm {alarm.name} has stopped the run after {run.progress.images:,} images{after}: {alarm.meaning}; "
        f"{saved}. {alarm.advice}"
    )


def _say_nothing(text: str) -> None:
    """What ranks other than 0 do with messages for the user."""
    del text
