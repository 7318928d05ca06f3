"""What a source of training batches gives, however it reads."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class DataBatch(NamedTuple):
    """This rank's part of one global batch, on the rank's device.

    Attributes:
        x: Samples as they are stored, uint8 or float32 [n, *shape].
        y: Class numbers int64 [n], attribute vectors float32 [n, A], or None.
        ids: The ids [n] of the samples that are really in `x`, counted through the index.
    """

    x: Tensor
    y: Tensor | None
    ids: NDArray[np.int64]


class BatchSource(Protocol):
    """Endless batches of one rank, from a given step on: epoch after epoch, one batch for each step.

    Attributes:
        residency: Where samples live: `device`, `ram` or `stream`.
        wait_seconds: Seconds that `next` has taken so far, in which the consumer could do nothing else.
        substituted: One sentence for each bad sample that was replaced in a batch that `next` has returned.
    """

    residency: str
    wait_seconds: float
    substituted: list[str]

    def __iter__(self) -> Self: ...

    def __next__(self) -> DataBatch: ...

    def wait_for_next(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until `next` would return at once; False if `should_stop` became true before. Nothing is consumed."""

    def close(self) -> None:
        """Stop threads and release memory; the source gives no more batches. Closing twice is fine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
