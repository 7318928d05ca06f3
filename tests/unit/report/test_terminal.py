"""Progress is readable where it is read, and never the reason a run dies."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from itertools import count

import pytest

from ali_dist.report.terminal import (
    TrainingProgressDisplay,
    evaluation_line,
    show_progress,
    show_progress_bars,
    training_line,
)

RECORD = {"event": "train", "step": 10, "d_loss": 1.23456789, "d_q": 0.61, "d_p": 0.38, "images_per_second": 812.4}


class FakeTerminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second passes with every look at the clock."""
    ticks = count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_in_a_log_each_record_is_one_line_of_pairs() -> None:
    """And an update without a record writes nothing."""
    stream = io.StringIO()
    with TrainingProgressDisplay(64_000, stream=stream) as shown:
        shown.update(64)
        shown.update(640, RECORD)
        shown.message("checkpoint saved")
    first, second = stream.getvalue().splitlines()
    pairs = dict(pair.split("=") for pair in first.split(" "))
    assert (pairs["images"], pairs["of"], pairs["event"], pairs["d_loss"]) == ("640", "64000", "train", "1.2346")
    assert second == "checkpoint saved"


@pytest.mark.usefixtures("clock")
def test_on_a_terminal_the_state_is_live_and_messages_stay() -> None:
    stream = FakeTerminal()
    with TrainingProgressDisplay(64_000, stream=stream) as shown:
        shown.update(32_000, RECORD)
        shown.message("saved [not/markup]")
        shown.update(64_000, {"event": "evaluation", "images": 64_000, "frechet": 21.3, "label_kept": 0.93})
    text = stream.getvalue()
    for part in ("32,000 / 64,000 images", "50%", "812 img/s", "saved [not/markup]", "Label kept 93.0 %", "100%"):
        assert part in text, part
    assert text.rstrip("\n").count("100%") >= 1
    assert text.endswith("\x1b[?25h")  # the cursor is given back


@pytest.mark.usefixtures("clock")
def test_time_left_is_measured_on_this_process_alone() -> None:
    """A run that goes on at 9,000 of 10,000 images has not done 9,000 in its first second."""
    stream = FakeTerminal()
    with TrainingProgressDisplay(10_000, stream=stream, start_images=9_000) as shown:
        shown.update(9_010, RECORD)
        eta = stream.getvalue().rpartition("ETA ")[2].split()[0]
    minutes, seconds = map(int, eta.split(":"))
    assert 60 * minutes + seconds >= 99  # 10 images in at least a second: 990 images take at least 99 s


@pytest.mark.usefixtures("clock")
def test_the_terminal_is_left_in_order_after_an_error() -> None:
    stream = FakeTerminal()
    with pytest.raises(RuntimeError), TrainingProgressDisplay(100, stream=stream) as shown:
        raise RuntimeError
    assert stream.getvalue().endswith("\x1b[?25h")
    shown.close()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = FakeTerminal()
    with TrainingProgressDisplay(100, stream=stream) as shown:
        shown.update(10, RECORD)
    assert stream.getvalue().startswith("images=10 of=100 ")
    assert "\x1b" not in stream.getvalue()


def test_a_broken_pipe_does_not_stop_training() -> None:
    """The reader is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with TrainingProgressDisplay(100, stream=stream) as shown:
        for images in range(100):
            shown.update(images, RECORD)
            shown.message("still here")
    with pytest.raises(BrokenPipeError):  # the pipe was really broken
        os.write(writer, b"x")
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("kind", [io.StringIO, FakeTerminal])
def test_a_stream_closed_in_between_does_not_stop_training(kind: type[io.StringIO]) -> None:
    stream = kind()
    with TrainingProgressDisplay(100, stream=stream) as shown:
        shown.update(1, RECORD)
        stream.close()
        shown.update(2, RECORD)
        shown.message("still here")


def test_a_log_in_another_encoding_loses_a_letter_not_the_run() -> None:
    raw = io.BytesIO()
    with TrainingProgressDisplay(100, stream=io.TextIOWrapper(raw, encoding="ascii")) as shown:
        shown.message("Fréchet")
        shown.message("done")
        assert raw.getvalue().decode() == "Fr?chet\ndone\n"


def test_without_stderr_and_without_rich_a_run_goes_on() -> None:
    """As under a daemon that closed its streams; rich is for terminals only."""
    code = (
        "import sys; sys.stderr = None; from ali_dist.report.terminal import TrainingProgressDisplay\n"
        "with TrainingProgressDisplay(10) as shown: shown.update(1, {'event': 'train'}); shown.message('hello')\n"
        "print('rich' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "False\n"


def test_lines_leave_out_what_a_record_lacks() -> None:
    assert training_line({}) == evaluation_line({"images": 5}) == ""
    assert training_line({"data_wait": 0.0312}) == "data wait 3.1 %"


def test_progress_bars_are_drawn_on_a_terminal_and_the_cursor_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeTerminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress_bars() as start_bar:
        for name, total in (("train", 40), ("test", None)):
            advance = start_bar(name, total)
            advance(30)
    text = stream.getvalue()
    for part in ("train", "30/40", "test", "30/?"):
        assert part in text, part
    assert text.count("\x1b[?25h") == 1


@pytest.mark.parametrize("kind", [io.StringIO, FakeTerminal])
def test_a_single_bar_is_the_same_display_and_nothing_on_a_pipe(
    monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO]
) -> None:
    stream = kind()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress("Encoding", 40) as advance:
        advance(40)
    assert ("Encoding" in stream.getvalue()) == stream.isatty()
    assert bool(stream.getvalue()) == stream.isatty()
