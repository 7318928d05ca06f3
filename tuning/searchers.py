"""Which settings come next, for Ray Tune: those that a plan fixes, or what Optuna suggests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from tuning.spaces import Dimension, Space
from tuning.trial_record import TrialRecord

NextRequest = Callable[[str], dict[str, Any] | None]


class QueueSearcher(Searcher):
    """Ray Tune's view of a queue of trials.

    Args:
        next_request: Gives the request of the next trial under Tune's id for it, or None at the end.
        metric: Key of the score in what trials report.
        mode: `max` or `min`.
    """

    def __init__(self, next_request: NextRequest, metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self._next_request = next_request

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's request."""
        request = self._next_request(trial_id)
        return Searcher.FINISHED if request is None else request

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the tracker of trials knows it all."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep is resumed from its own records, not from Tune's pickles."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, likewise."""


class Suggester(Protocol):
    """Learns from scores where better settings may be."""

    def ask(self, number: int) -> dict[str, Any]:
        """Suggest settings for trial `number`, by dotted name."""

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial that has ended."""


class OptunaSuggester:
    """Optuna's tree-structured Parzen estimator. What it knows follows from the records, so that it can be resumed.

    Args:
        space: What is searched.
        higher_is_better: Whether a higher score is the better one.
        seed: Seed of its suggestions.
        records: Trials that earlier drivers have begun.
    """

    def __init__(self, space: Space, *, higher_is_better: bool, seed: int, records: Sequence[TrialRecord]) -> None:
        import optuna  # it is an extra; `options.make_plan` has checked that it is installed

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._dimensions = space
        self._distributions = {dimension.name: _make_distribution(optuna, dimension) for dimension in space}
        sampler = optuna.samplers.TPESampler(seed=seed + len(records), multivariate=True, constant_liar=True)
        self._study = optuna.create_study(direction="maximize" if higher_is_better else "minimize", sampler=sampler)
        self._pending: dict[int, Any] = {}  # Optuna's trials that have not ended, by number
        for record in records:
            if record.has_ended:
                self.tell(record)
            elif self._is_inside(record):  # it goes on: what is suggested beside it should lie elsewhere
                self._study.enqueue_trial(record.settings)
                self._pending[record.number] = self._study.ask(self._distributions)

    def ask(self, number: int) -> dict[str, Any]:
        """Suggest settings for trial `number`, by dotted name."""
        trial = self._study.ask(self._distributions)
        self._pending[number] = trial
        return {d.name: d.round_value(trial.params[d.name]) for d in self._dimensions}

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial that has ended."""
        states = self._optuna.trial.TrialState
        is_complete = record.state == "finished" and record.score is not None
        if is_complete:
            state = states.COMPLETE
        elif record.state == "failed":
            state = states.FAIL
        else:  # a trial that was cut off ranks below all that came through, whatever its score was then
            state = states.PRUNED
        score = record.score if is_complete else None
        partial_scores = {} if is_complete or record.score is None else {record.images: record.score}
        pending = self._pending.pop(record.number, None)
        if pending is not None:
            for images, partial_score in partial_scores.items():
                pending.report(partial_score, images)
            self._study.tell(pending, score, state=state)
        elif self._is_inside(record):
            trial = self._optuna.trial.create_trial(
                params=record.settings,
                distributions=self._distributions,
                value=score,
                intermediate_values=partial_scores,
                state=state,
            )
            self._study.add_trial(trial)

    def _is_inside(self, record: TrialRecord) -> bool:
        """Whether the space could have given the trial's settings: the preset's own may lie outside."""
        return all(d.contains(record.settings[d.name]) for d in self._dimensions)


def _make_distribution(optuna: Any, dimension: Dimension) -> Any:
    kinds = optuna.distributions
    if dimension.kind == "choice":
        return kinds.CategoricalDistribution(dimension.values)
    low, high = dimension.values
    if dimension.kind == "int":
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(low, high, log=dimension.kind == "loguniform")
