"""What is being done in a run, since when, and how long training will still take, pauses left out."""

from __future__ import annotations

import time

IDLE_SECONDS = 5.0
"""Longest time without a word about what is being done."""


class RunClock:
    """Follows a run: images seen, the phase beside training, and the time that training itself took.

    Args:
        total_images: Length of the run, in images.

    Attributes:
        total_images: Length of the run, in images, at least 1.
        images: Images seen.
        has_begun: Whether set-up is over.
        phase: What is done in place of training, in a word or two; empty: training.
    """

    def __init__(self, total_images: int) -> None:
        self.total_images = max(1, total_images)
        self.images = 0
        self.has_begun = False
        self.phase = "starting"
        self._part = ""
        self._done = 0
        self._part_total: int | None = None
        self._started = self._updated = time.monotonic()
        self._is_counting = False  # whether all time since the last update was training
        self._trained_images = 0
        self._trained_seconds = 0.0
        self._spent: dict[str, float] = {}
        self._counted = self._started  # until when time is in `_spent`

    def begin_training(self, images: int) -> None:
        """Set-up is over, and training goes on from `images`; what is spent counts from here."""
        self.images = images
        self.has_begun = True
        self._spent.clear()
        self._counted = time.monotonic()

    def update(self, images: int) -> None:
        """Training has come to `images`; the time since the last update counts, unless a phase lay between."""
        now = time.monotonic()
        if self._is_counting and images > self.images:
            self._trained_images += images - self.images
            self._trained_seconds += now - self._updated
        self._count(now)
        self.images = images
        self.has_begun = True
        self._updated = now
        self._is_counting = True
        self.phase = self._part = ""

    def begin_phase(self, name: str) -> None:
        """Something else than training begins; empty: training goes on."""
        now = time.monotonic()
        self._count(now)
        self._is_counting = not name
        self.phase = name
        self.show_part("", 0, None)
        self._updated = now

    def show_part(self, name: str, done: int, total: int | None) -> None:
        """A part of the phase has come to `done`, and ends at `total` (None: unknown)."""
        self._part, self._done, self._part_total = name, done, total

    def _count(self, now: float) -> None:
        """The time until now went to the phase that ends, or to training."""
        self._spent[self.phase] = self._spent.get(self.phase, 0.0) + now - self._counted
        self._counted = now

    def spent(self) -> dict[str, float]:
        """Seconds since training began, by phase; the empty name is training itself."""
        self._count(time.monotonic())
        return {phase: seconds for phase, seconds in self._spent.items() if seconds}

    @property
    def part_share(self) -> float | None:
        """How much of the part is done, from 0 to 1; None where that is unknown."""
        return min(1.0, self._done / self._part_total) if self._part and self._part_total else None

    @property
    def elapsed(self) -> float:
        """Seconds since this start of the run."""
        return time.monotonic() - self._started

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last update of the networks, or since the phase began."""
        return time.monotonic() - self._updated

    @property
    def remaining(self) -> float | None:
        """Seconds of training left at the speed so far, without evaluations and other pauses; None: unknown yet."""
        if not self._trained_images:
            return None
        return max(0.0, self._trained_seconds / self._trained_images * (self.total_images - self.images))

    def phase_parts(self) -> list[str]:
        """The phase with its part, for how long it has gone on, and how far it is."""
        parts = [f"{self.phase}: {self._part}" if self._part else self.phase, format_elapsed(self.idle_seconds)]
        if self._part and self._done:
            parts.append(f"{self._done:,}" + (f" / {self._part_total:,}" if self._part_total else ""))
        return parts


def format_elapsed(seconds: float) -> str:
    """Minutes and seconds, as 3:07, and hours where there are any, as 1:02:03."""
    hours, rest = divmod(max(0, round(seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
