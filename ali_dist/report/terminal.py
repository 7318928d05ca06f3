"""What a person sees while training runs.

On a terminal: three live lines (bar, rates and D, last evaluation) that stay at the bottom, with messages printed above
them. Anywhere else, and where rich is not installed: one `key=value` line per record. A stream that breaks (a closed
terminal, `| head`) is given up silently, because training must not end for that reason; everything shown here is also
in metrics.jsonl.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from ali_dist.evaluation.catalog import METRICS
from ali_dist.report.metric_rows import format_metric

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ali_dist.evaluation.monitor import Advance, StartBar

REFRESH_SECONDS = 0.125
"""Shortest time between two drawings of the live lines."""


class TrainingProgressDisplay:
    """Shows how a run is doing; a context manager, so that the terminal is left in order.

    Args:
        total_images: Length of the run, in images.
        stream: Where it is shown; None: on stderr.
        start_images: Images already seen, in a run that goes on.
    """

    def __init__(self, total_images: int, *, stream: TextIO | None = None, start_images: int = 0) -> None:
        target = _UnbreakableStream(sys.stderr if stream is None else stream)
        console = _make_console(target) if target.isatty() else None
        self._view: _LiveView | _LineView
        if console is None:
            self._view = _LineView(total_images, target)
        else:
            self._view = _LiveView(total_images, start_images, console)

    def update(self, images: int, record: Mapping[str, Any] | None = None) -> None:
        """Show that `images` have been seen; cheap enough to be called after every update of the model.

        Args:
            images: Images seen so far.
            record: A new line of metrics.jsonl, if there is one.
        """
        self._view.update(images, record)

    def message(self, text: str) -> None:
        """Show a sentence that stays."""
        self._view.message(text)

    def start_bar(self, name: str, total: int | None) -> Advance:
        """Show, beside the training, a part of an evaluation that takes long.

        Args:
            name: What is being done.
            total: Where it ends; None: unknown.

        Returns:
            A function to be called with each advance.
        """
        return self._view.start_bar(name, total)

    def close(self) -> None:
        """Leave the last state standing; may be called twice."""
        self._view.close()

    def __enter__(self) -> TrainingProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_console(stream: _UnbreakableStream) -> Console | None:
    """Make a rich console for a terminal; None if it cannot move its cursor (TERM=dumb), or rich is not there."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(file=cast("IO[str]", stream))  # it has all of one that rich uses
    return None if console.is_dumb_terminal else console


class _UnbreakableStream:
    """A text stream whose failures are swallowed: after the first one, nothing more is written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None under pythonw and some daemons

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                # Encoded and decoded, so that a Latin-1 log gets a question mark where it lacks a character.
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError):  # broken pipe; closed file
                self._stream = None
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is gone")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "ascii"


class _LineView:
    """Plain lines for logs."""

    def __init__(self, total_images: int, stream: _UnbreakableStream) -> None:
        self._total_images = total_images
        self._stream = stream

    def update(self, images: int, record: Mapping[str, Any] | None) -> None:
        if record is None:
            return
        items = {"images": images, "of": self._total_images, **record}
        self.message(" ".join(f"{key}={_format_plain(value)}" for key, value in items.items()))

    def message(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def start_bar(self, name: str, total: int | None) -> Advance:
        del name, total  # a log has no bars
        return lambda advance: None

    def close(self) -> None:
        self._stream.flush()


class _LiveView:
    """Three live lines, drawn at most 8 times a second from the caller's thread: it needs no thread of its own."""

    def __init__(self, total_images: int, start_images: int, console: Console) -> None:
        from rich.live import Live

        self._total_images = max(1, total_images)
        self._start_images = start_images
        self._images = start_images
        self._start_time = time.monotonic()
        self._draw_time = 0.0
        self._train: Mapping[str, Any] = {}
        self._evaluation: Mapping[str, Any] = {}
        self._activity = ""
        # Warnings on stderr go above the live lines; stdout is left alone so that pdb's prompt works.
        self._live = Live(self._render(), console=console, auto_refresh=False, redirect_stdout=False)
        self._live.start(refresh=True)

    def update(self, images: int, record: Mapping[str, Any] | None) -> None:
        self._images = images
        self._activity = ""
        if record is not None and record.get("event") == "evaluation":
            self._evaluation = record
        elif record is not None:
            self._train = record
        now = time.monotonic()
        if record is not None or now - self._draw_time >= REFRESH_SECONDS:
            self._draw_time = now
            self._live.update(self._render(), refresh=True)

    def message(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def start_bar(self, name: str, total: int | None) -> Advance:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._activity = f"evaluating: {name} {done:,}" + (f" / {total:,}" if total else "")
            now = time.monotonic()
            if now - self._draw_time >= REFRESH_SECONDS:
                self._draw_time = now
                self._live.update(self._render(), refresh=True)

        return advance

    def close(self) -> None:
        self._activity = ""
        self._live.update(self._render())
        self._live.stop()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 2, 0, 0))
        count = f"{self._images:,} / {self._total_images:,} images"
        share = f"{min(1.0, self._images / self._total_images):.0%}"
        bar.add_row(
            ProgressBar(total=self._total_images, completed=self._images, width=28),
            count,
            share,
            self._format_remaining_time(),
        )
        lines = [training_line(self._train), evaluation_line(self._evaluation), self._activity]
        return Group(bar, *(Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in lines if line))

    def _format_remaining_time(self) -> str:
        """The time left, at the average speed of this process."""
        seen = self._images - self._start_images
        if seen <= 0:
            return "ETA -:--"
        seconds = max(0, round((time.monotonic() - self._start_time) / seen * (self._total_images - self._images)))
        hours, rest = divmod(seconds, 3600)
        return f"ETA {hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"ETA {rest // 60}:{rest % 60:02d}"


def training_line(record: Mapping[str, Any]) -> str:
    """The terminal's line about a training record; values that the record lacks are left out."""
    parts = []
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:,.0f} img/s")
    if "data_wait" in record:
        parts.append(f"data wait {record['data_wait'] * 100:.1f} %")
    if "d_q" in record and "d_p" in record:
        parts.append(f"D(x, E(x)) {record['d_q']:.2f}  D(G(z), z) {record['d_p']:.2f}")
    if "d_loss" in record and "g_loss" in record:
        parts.append(f"loss D {record['d_loss']:.3f}  E,G {record['g_loss']:.3f}")
    return " · ".join(parts)


def evaluation_line(record: Mapping[str, Any]) -> str:
    """The terminal's line about the last evaluation."""
    parts = [
        f"{info.title} {format_metric(key, record[key])}"
        for key, info in METRICS.items()
        if info.is_live and key in record
    ]
    return f"at {record['images']:,} images: {' · '.join(parts)}" if parts else ""


def _format_plain(value: object) -> str:
    """A value without blanks, floats in 5 digits."""
    return f"{value:.5g}" if isinstance(value, float) else str(value).replace(" ", "_")


@contextmanager
def show_progress_bars() -> Iterator[StartBar]:
    """Show progress bars on a terminal that rich can draw on while the block runs, and nothing elsewhere.

    Yields:
        A function that begins a bar, given the name of what is being done and where it ends (None: unknown). It
        returns a function to be called with each advance.
    """
    if not sys.stderr.isatty():
        yield lambda name, total: lambda advance: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        yield lambda name, total: lambda advance: None
        return

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as display:

        def start_bar(name: str, total: int | None) -> Advance:
            task = display.add_task(name, total=total)
            return lambda advance: display.advance(task, advance)

        yield start_bar


@contextmanager
def show_progress(name: str, total: int | None) -> Iterator[Advance]:
    """Show a single bar on a terminal while the block runs, and nothing elsewhere.

    Args:
        name: What is being done.
        total: Where the bar ends; None: unknown.

    Yields:
        A function to be called with each advance.
    """
    with show_progress_bars() as start_bar:
        yield start_bar(name, total)
