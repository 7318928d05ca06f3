"""How a run looks on a terminal: live lines at the bottom, which fit its width, and events that stay above them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ali_dist.report.run_clock import IDLE_SECONDS, RunClock, format_elapsed
from ali_dist.report.terminal_lines import evaluation_line, fit_parts, stamp, training_parts, wrap

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESH_SECONDS = 0.125
"""Shortest time between two drawings of the live lines."""
_LEAST_BAR, _MOST_BAR = 8, 40  # characters
_ECHO = 2  # characters that the terminal writes behind the last line on a Ctrl-C, and that must not begin a new one


class LiveView:
    """Bar, rates, and what is done beside training; drawn by whoever brings news, and by `beat` where nobody does.

    Args:
        clock: Where the run is.
        console: Where it is drawn.
    """

    def __init__(self, clock: RunClock, console: Console) -> None:
        from rich.live import Live

        self._clock = clock
        self._console = console
        self._draw_time = 0.0
        self._is_closed = False
        self._record: Mapping[str, Any] = {}
        # Warnings on stderr go above the live lines; stdout is left alone so that pdb's prompt works.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, get_renderable=self._render)
        self._live.start(refresh=True)

    def update(self, record: Mapping[str, Any] | None) -> None:
        """Draw that training has come further; an evaluation stays as an event."""
        if record is not None and record.get("event") == "evaluation":
            self.message(evaluation_line(record))
        elif record is not None:
            self._record = record
        self.refresh(at_once=record is not None)

    def message(self, text: str) -> None:
        """Write an event, which stays."""
        if text:
            self._print(stamp(text, self._console.width))

    def write(self, text: str) -> None:
        """Write a line without clock time; a command stays in one piece."""
        self._print(wrap(text, self._console.width))

    def refresh(self, *, at_once: bool = False) -> None:
        """Draw anew, if the last drawing is old enough."""
        if self._is_closed:
            return
        now = time.monotonic()
        if at_once or now - self._draw_time >= REFRESH_SECONDS:
            self._draw_time = now
            self._live.refresh()

    def beat(self) -> None:
        """Draw anew where a second has passed without news."""
        if time.monotonic() - self._draw_time >= 1.0:
            self.refresh(at_once=True)

    def close(self) -> None:
        """Leave the last state standing."""
        self._is_closed = True  # what follows is written below
        self._live.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        width = self._console.width - _ECHO
        clock = self._clock
        lines: list[RenderableType] = []
        if clock.has_begun:
            share = min(1.0, clock.images / clock.total_images)
            lines.append(_bar_line(share, _count_texts(clock, share), width))
            if self._record:
                lines.append(Text(fit_parts(training_parts(self._record), width), style="dim", no_wrap=True))
        if self._is_closed:
            return Group(*lines)
        if clock.phase:
            lines.append(_phase_line(clock, width))
        elif clock.idle_seconds >= IDLE_SECONDS:
            lines.append(Text(f"no update for {format_elapsed(clock.idle_seconds)}", style="dim", no_wrap=True))
        return Group(*lines)


def _bar_line(share: float, texts: list[str], width: int) -> RenderableType:
    """A bar with the first of the texts beside which there is room for it; the last one without, in a narrow one."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    text = next((text for text in texts if len(text) + 2 + _LEAST_BAR <= width), None)
    if text is None:
        return Text(texts[-1][:width], no_wrap=True)
    line = Table.grid(padding=(0, 2, 0, 0))
    bar_width = min(_MOST_BAR, width - len(text) - 2)
    line.add_row(ProgressBar(total=1.0, completed=share, width=bar_width), Text(text, no_wrap=True))
    return line


def _count_texts(clock: RunClock, share: float) -> list[str]:
    """What stands beside the bar of training, from long to short."""
    count = f"{clock.images:,} / {clock.total_images:,} images"
    percent = f"{share:.0%}"
    left = "ETA -:--" if clock.remaining is None else f"ETA {format_elapsed(clock.remaining)}"
    return [
        f"{count}  {percent}  {format_elapsed(clock.elapsed)} elapsed  {left}",
        f"{count}  {percent}  {left}",
        f"{clock.images:,}  {percent}  {left}",
        f"{percent}  {left}",
    ]


def _phase_line(clock: RunClock, width: int) -> RenderableType:
    """What is done beside training, with a bar of its own where its end is known."""
    from rich.text import Text

    text = fit_parts(clock.phase_parts(), width)
    if clock.part_share is None or len(text) + 2 + _LEAST_BAR > width:
        return Text(text, style="dim", no_wrap=True)
    return _bar_line(clock.part_share, [text], width)
