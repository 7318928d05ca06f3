"""How an evaluation tells what it is doing while it runs, asks whether it must stop, and keeps what it has to say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ali_dist.evaluation.interfaces import BidirectionalModel

Advance = Callable[[int], None]
"""Called with each advance, in the units of its bar."""
StartBar = Callable[[str, int | None], Advance]
"""Begins a progress bar, given what is being done and where it ends (None: unknown)."""

Result = TypeVar("Result")

POLL_SECONDS = 0.2


class EvaluationStopped(Exception):  # noqa: N818  (it is no error)
    """An evaluation was asked to stop, and has no result."""


class EvaluationMonitor:
    """What a long evaluation reports to, and asks between batches and between fits.

    Args:
        start_bar: Shows progress; None: nobody looks.
        should_stop: Whether the evaluation must stop; cheap, since it is asked after every batch. None: never.
    """

    def __init__(self, start_bar: StartBar | None = None, should_stop: Callable[[], bool] | None = None) -> None:
        self._start_bar = start_bar
        self._should_stop = should_stop
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Keep a sentence that stands beside the metrics, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def start(self, name: str, total: int | None) -> Advance:
        """Begin a part of the evaluation.

        Args:
            name: What is being done.
            total: Where it ends; None: unknown.

        Returns:
            A function to be called with each advance; it raises `EvaluationStopped` where the evaluation must stop.
        """
        self.check()
        show = None if self._start_bar is None else self._start_bar(name, total)

        def advance(count: int) -> None:
            self.check()
            if show is not None:
                show(count)

        return advance

    def check(self) -> None:
        """Ask whether the evaluation must stop.

        Raises:
            EvaluationStopped: It must.
        """
        if self._should_stop is not None and self._should_stop():
            raise EvaluationStopped("The evaluation was asked to stop.")

    def wait_for(self, function: Callable[[], Result]) -> Result:
        """Call a function of a library that cannot be interrupted, in a thread, and stop waiting when asked to.

        Raises:
            EvaluationStopped: The evaluation must stop; the thread is left to end by itself, and its result is lost.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001  (raised again in the thread that waits)
                errors.append(error)

        thread = threading.Thread(target=call, name="ali-fit", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            self.check()
        if errors:
            raise errors[0]
        return results[0]


class WatchedModel:
    """A model that tells after every call how many samples it was given; otherwise the model itself.

    Args:
        model: The model.
        advance: Called with the number of samples; may raise to end the evaluation.
    """

    def __init__(self, model: BidirectionalModel, advance: Advance) -> None:
        self._model = model
        self._advance = advance

    @property
    def latent_size(self) -> int:
        return self._model.latent_size

    @property
    def condition_size(self) -> int:
        return self._model.condition_size

    @property
    def num_classes(self) -> int:
        return self._model.num_classes

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self._advance(len(x))
        return self._model.encode(x) if c is None else self._model.encode(x, c)

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        self._advance(len(x))
        return self._model.features(x) if c is None else self._model.features(x, c)

    def classify(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        self._advance(len(x))
        return self._model.classify(x) if c is None else self._model.classify(x, c)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        self._advance(len(z))
        return self._model.decode(z) if c is None else self._model.decode(z, c)

    def untrained(self, seed: int) -> BidirectionalModel:
        return WatchedModel(self._model.untrained(seed), self._advance)
