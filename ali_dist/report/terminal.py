"""What a person sees while a command runs.

On a terminal: live lines that stay at the bottom (a bar of the training, its rates, and what is done beside it), with
events printed above them. Anywhere else, and where rich is not installed: a short line with clock time for each record
and event. What takes long is shown by a thread, so that nothing is silent. A stream that breaks (a closed terminal,
`| head`) is given up silently, because training must not end for that reason; all numbers are also in metrics.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from ali_dist.report.heartbeat import Heartbeat
from ali_dist.report.line_view import LineView
from ali_dist.report.live_view import LiveView
from ali_dist.report.run_clock import RunClock
from ali_dist.report.terminal_lines import closing_lines
from ali_dist.report.unbreakable_stream import UnbreakableStream

if TYPE_CHECKING:
    from rich.console import Console

    from ali_dist.evaluation.monitor import Advance, StartBar


class TrainingProgressDisplay:
    """Shows how a run is doing; a context manager, so that the terminal is left in order.

    Args:
        total_images: Length of the run, in images.
        stream: Where it is shown; None: on stderr.
    """

    def __init__(self, total_images: int, *, stream: TextIO | None = None) -> None:
        target = UnbreakableStream(sys.stderr if stream is None else stream)
        console = _make_console(target) if target.isatty() else None
        self._clock = RunClock(total_images)
        self._view = LineView(self._clock, target) if console is None else LiveView(self._clock, console)
        self._heartbeat = Heartbeat(self._view.beat)
        self._is_closed = False

    def update(self, images: int, record: Mapping[str, Any] | None = None) -> None:
        """Show that `images` have been seen; cheap enough to be called after every update of the model.

        Args:
            images: Images seen so far.
            record: A new line of metrics.jsonl, if there is one.
        """
        if record is None:
            self._clock.update(images)
        else:
            self._clock.images = images  # a record may come in the middle of a phase
        self._view.update(record)

    def begin_training(self, images: int) -> None:
        """Show that training goes on from `images`; the data are opened, and the first update is made."""
        self._clock.begin_training(images)
        self.begin_phase("opening the data, first update")

    def begin_phase(self, name: str) -> None:
        """Show that training stands, and what is done in its place until the next phase or the next update.

        Args:
            name: What is being done; empty: training goes on.
        """
        self._clock.begin_phase(name)
        self._view.refresh()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show within the block what is done in place of training; afterwards, what was done before.

        Args:
            name: What is being done.
        """
        before = self._clock.phase
        self.begin_phase(name)
        try:
            yield
        finally:
            self.begin_phase(before)

    def spent(self) -> dict[str, float]:
        """Seconds since training began, by the name of the phase; the empty name is training itself."""
        return self._clock.spent()

    def message(self, text: str) -> None:
        """Show a sentence that stays, with clock time."""
        self._view.message(text)

    def start_bar(self, name: str, total: int | None) -> Advance:
        """Show, beside the training, a part of a phase that takes long.

        Args:
            name: What is being done.
            total: Where it ends; None: unknown.

        Returns:
            A function to be called with each advance.
        """
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._clock.show_part(name, done, total)
            self._view.refresh()

        advance(0)

        return advance

    def conclude(self, summary: Mapping[str, Any], run_url: str, *, draws: bool, explores: bool) -> None:
        """End the display with what a finished run leaves: see `closing_lines`."""
        self.close()
        for line in closing_lines(summary, run_url, draws=draws, explores=explores):
            self._view.write(line)

    def close(self) -> None:
        """Leave the last state standing; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            try:
                self._heartbeat.stop()
            finally:
                self._view.close()

    def __enter__(self) -> TrainingProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_console(stream: UnbreakableStream) -> Console | None:
    """Make a rich console for a terminal; None if it cannot move its cursor (TERM=dumb), or rich is not there."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(file=cast("IO[str]", stream))  # it has all of one that rich uses
    return None if console.is_dumb_terminal else console


@contextmanager
def show_progress_bars(phase: str = "working") -> Iterator[StartBar]:
    """Show progress bars on a terminal while the block runs; elsewhere a line now and then of what takes long.

    Args:
        phase: What the lines say is being done.

    Yields:
        A function that begins a bar, given the name of what is being done and where it ends (None: unknown). It
        returns a function to be called with each advance.
    """
    console = _make_console(UnbreakableStream(sys.stderr)) if sys.stderr is not None and sys.stderr.isatty() else None
    if console is None:
        with TrainingProgressDisplay(1) as lines, lines.phase(phase):
            yield lines.start_bar
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as display:

        def start_bar(name: str, total: int | None) -> Advance:
            task = display.add_task(name, total=total)
            return lambda advance: display.advance(task, advance)

        yield start_bar


@contextmanager
def show_progress(name: str, total: int | None) -> Iterator[Advance]:
    """Show a single bar on a terminal while the block runs; elsewhere a line now and then, if it takes long.

    Args:
        name: What is being done.
        total: Where the bar ends; None: unknown.

    Yields:
        A function to be called with each advance.
    """
    with show_progress_bars() as start_bar:
        yield start_bar(name, total)
