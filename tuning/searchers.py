"""Which settings come next, for Ray Tune: those that a plan fixes, or what Optuna proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from tuning.spaces import Dimension, Space
from tuning.trial_record import ENDED, TrialRecord

Suggest = Callable[[str], dict[str, Any] | None]


class QueueSearcher(Searcher):
    """Ray Tune's view of a queue of trials.

    Args:
        suggest: Gives the request of the next trial under Tune's id for it, or None at the end.
        metric: Key of the score in what trials report.
        mode: `max` or `min`.
    """

    def __init__(self, suggest: Suggest, metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self._suggest = suggest

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's request."""
        request = self._suggest(trial_id)
        return Searcher.FINISHED if request is None else request

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the book of trials has it all."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its own records, not from Tune's pickles."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class Suggester(Protocol):
    """Learns from scores where better settings may be."""

    def ask(self, number: int) -> dict[str, Any]:
        """Settings for trial `number`."""

    def tell(self, record: TrialRecord) -> None:
        """A trial has ended."""


class OptunaSuggester:
    """Optuna's tree-structured Parzen estimator. What it knows follows from the records, so that it can be resumed.

    Args:
        space: What is searched.
        higher: Whether a higher score is better.
        seed: Of its proposals.
        records: Trials that earlier drivers have begun.
    """

    def __init__(self, space: Space, *, higher: bool, seed: int, records: Sequence[TrialRecord]) -> None:
        import optuna  # an extra; `options.make_plan` has seen that it is there

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._dimensions = space
        self._space = {dimension.name: _make_distribution(optuna, dimension) for dimension in space}
        sampler = optuna.samplers.TPESampler(seed=seed + len(records), multivariate=True, constant_liar=True)
        self._study = optuna.create_study(direction="maximize" if higher else "minimize", sampler=sampler)
        self._asked: dict[int, Any] = {}
        for record in records:
            if record.state in ENDED:
                self.tell(record)
            elif self._inside(record):  # it goes on: what is proposed beside it should lie elsewhere
                self._study.enqueue_trial(record.settings)
                self._asked[record.number] = self._study.ask(self._space)

    def ask(self, number: int) -> dict[str, Any]:
        trial = self._study.ask(self._space)
        self._asked[number] = trial
        return {d.name: d.rounded(trial.params[d.name]) for d in self._dimensions}

    def tell(self, record: TrialRecord) -> None:
        states = self._optuna.trial.TrialState
        whole = record.state == "finished" and record.score is not None
        # One that was cut off ranks below all that came through, whatever its score was then.
        state = states.COMPLETE if whole else states.FAIL if record.state == "failed" else states.PRUNED
        partial = {} if whole or record.score is None else {record.images: record.score}
        asked = self._asked.pop(record.number, None)
        if asked is not None:
            for images, score in partial.items():
                asked.report(score, images)
            self._study.tell(asked, record.score if whole else None, state=state)
        elif self._inside(record):
            made = self._optuna.trial.create_trial(
                params=record.settings,
                distributions=self._space,
                value=record.score if whole else None,
                intermediate_values=partial,
                state=state,
            )
            self._study.add_trial(made)

    def _inside(self, record: TrialRecord) -> bool:
        """Whether the space could have given its settings: the preset's own may lie outside."""
        return all(d.contains(record.settings[d.name]) for d in self._dimensions)


def _make_distribution(optuna: Any, dimension: Dimension) -> Any:
    kinds = optuna.distributions
    if dimension.kind == "choice":
        return kinds.CategoricalDistribution(dimension.values)
    low, high = dimension.values
    if dimension.kind == "int":
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(low, high, log=dimension.kind == "loguniform")
