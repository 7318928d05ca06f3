"""Progress is readable where it is read, and never the reason a run dies."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from itertools import count
from types import FunctionType

import pytest

from ali_dist.report.heartbeat import Heartbeat
from ali_dist.report.line_view import LineView
from ali_dist.report.run_clock import RunClock
from ali_dist.report.terminal import TrainingProgressDisplay, show_progress, show_progress_bars
from ali_dist.report.terminal_lines import closing_lines, evaluation_line, fit_parts, training_parts, wrap
from ali_dist.report.unbreakable_stream import UnbreakableStream

RECORD = {"event": "train", "step": 10, "d_loss": 1.23456789, "d_q": 0.61, "d_p": 0.38, "images_per_second": 812.4}


class Log(io.StringIO):
    encoding = "utf-8"


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


def test_in_a_log_each_record_and_event_is_one_line_with_clock_time() -> None:
    """An update without a record writes nothing; pairs of keys and values are for the file."""
    stream = Log()
    with TrainingProgressDisplay(64_000, stream=stream) as shown:
        shown.update(64)
        shown.update(640, RECORD)
        shown.message("checkpoint at 640 images")
        shown.update(640, {"event": "evaluation", "images": 640, "frechet": 21.3})
        shown.update(640, {"event": "evaluation", "images": 640})
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d \S", line) for line in lines)
    first, *others = [line[6:] for line in lines]
    assert first.startswith("640 / 64,000 images · ")
    assert first.endswith(" · 812 img/s · D(x, E(x)) 0.61  D(G(z), z) 0.38")
    assert others == ["checkpoint at 640 images", "evaluation at 640 images: Fréchet distance 21.3"]


@pytest.mark.usefixtures("clock")
def test_on_a_terminal_the_state_is_live_and_messages_stay() -> None:
    stream = FakeTerminal()
    with TrainingProgressDisplay(64_000, stream=stream) as shown:
        shown.update(32_000)
        shown.update(32_000, RECORD)
        shown.message("saved [not/markup]")
        shown.update(64_000)
        shown.update(64_000, {"event": "evaluation", "images": 64_000, "frechet": 21.3, "label_kept": 0.93})
    text = stream.getvalue()
    for part in (
        "32,000 / 64,000 images",
        "elapsed",
        "50%",
        "812 img/s",
        "saved [not/markup]",
        "Label kept 93.0 %",
        "100%",
    ):
        assert part in text, part
    assert text.rstrip("\n").count("100%") >= 1
    assert text.endswith("\x1b[?25h")  # the cursor is given back


@pytest.mark.usefixtures("clock")
def test_time_left_is_measured_on_this_process_alone() -> None:
    """A run that goes on at 9,000 of 10,000 images has not done 9,000 in its first second."""
    stream = FakeTerminal()
    with TrainingProgressDisplay(10_000, stream=stream) as shown:
        shown.begin_training(9_000)
        shown.update(9_005)
        shown.update(9_010)
        shown.update(9_010, RECORD)
        eta = stream.getvalue().rpartition("ETA ")[2].split()[0]
    minutes, seconds = map(int, eta.split(":"))
    assert 60 * minutes + seconds >= 198  # 5 images in at least a second: 990 images take at least 198 s


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
    assert "10 / 100 images" in stream.getvalue()
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
        assert [line[6:] for line in raw.getvalue().decode().splitlines()] == ["Fr?chet", "done"]


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
    assert training_parts({}) == []
    assert evaluation_line({"images": 5}) == ""
    assert training_parts({"data_wait": 0.0312}) == ["data wait 3.1 %"]


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


class Seconds:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    hand = Seconds()
    monkeypatch.setattr(time, "monotonic", hand)
    return hand


def test_the_time_left_leaves_out_pauses_and_the_first_update(seconds: Seconds) -> None:
    clock = RunClock(1_000)
    clock.begin_training(0)
    clock.begin_phase("first update")
    seconds.now += 300  # compiling
    clock.update(100)
    assert clock.remaining is None
    for images in (200, 300):
        seconds.now += 10
        clock.update(images)
        clock.begin_phase("evaluating")
        seconds.now += 1_000
        clock.begin_phase("")
    assert clock.remaining == pytest.approx(70)
    assert clock.elapsed == pytest.approx(2_320)


def test_what_is_spent_is_all_of_the_time_since_training_began(seconds: Seconds) -> None:
    clock = RunClock(1_000)
    seconds.now += 50  # set-up
    clock.begin_training(0)
    for phase, pause in (("first update", 30), ("saving", 2), ("uploading", 3), ("saving", 4)):
        clock.begin_phase(phase)
        seconds.now += pause
    for images in (100, 200):
        clock.update(images)
        seconds.now += 10
    assert clock.spent() == {"first update": 30, "saving": 6, "uploading": 3, "": 20}
    seconds.now += 5
    assert sum(clock.spent().values()) == 64


def test_after_a_rollback_the_time_left_is_that_of_the_images_left(seconds: Seconds) -> None:
    clock = RunClock(1_000)
    for images in (100, 200, 150):
        clock.update(images)
        seconds.now += 10
    assert clock.remaining == pytest.approx(85)


def test_a_log_says_what_takes_long_after_5_seconds_and_then_every_30(seconds: Seconds) -> None:
    stream = Log()
    clock = RunClock(1_000)
    view = LineView(clock, UnbreakableStream(stream))
    clock.begin_training(0)
    clock.update(100)
    clock.begin_phase("evaluating")
    clock.show_part("Training the classifier", 40, 120)
    for _ in range(70):
        seconds.now += 1
        view.beat()
    lines = [line[6:] for line in stream.getvalue().splitlines()]
    assert lines == [f"evaluating: Training the classifier · {after} · 40 / 120" for after in ("0:05", "0:35", "1:05")]


def test_a_log_of_many_short_phases_is_not_longer_for_them(seconds: Seconds) -> None:
    stream = Log()
    clock = RunClock(1_000)
    view = LineView(clock, UnbreakableStream(stream))
    for images in range(1, 21):
        clock.update(images)
        clock.begin_phase("saving")
        seconds.now += 1
        view.beat()
        clock.begin_phase("")
    assert stream.getvalue() == ""


def test_a_log_says_that_training_stands_still(seconds: Seconds) -> None:
    stream = Log()
    clock = RunClock(1_000)
    view = LineView(clock, UnbreakableStream(stream))
    clock.update(100)
    seconds.now += 31
    view.beat()
    assert stream.getvalue()[6:] == "100 / 1,000 images · no update for 0:31\n"


def test_a_terminal_shows_a_phase_that_says_nothing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread draws, though whoever works has no news: here, that more seconds have passed."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = FakeTerminal()
    with TrainingProgressDisplay(100, stream=stream) as shown, shown.phase("drawing"):
        deadline = time.monotonic() + 10
        while not (drawn := re.search(r"drawing · 0:0[1-9]", stream.getvalue())) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert drawn is not None


def test_a_heartbeat_ends_when_it_is_stopped() -> None:
    beats: list[int] = []
    heart = Heartbeat(lambda: beats.append(1), seconds=0.001)
    deadline = time.monotonic() + 10
    while not beats and time.monotonic() < deadline:
        time.sleep(0.001)
    heart.stop()
    heard = len(beats)
    time.sleep(0.01)
    assert len(beats) == heard > 0


def test_a_debugger_is_left_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn while the main thread stands in pdb."""
    beats: list[int] = []
    heard: list[int] = []

    def wait_at_prompt() -> None:
        heart = Heartbeat(lambda: beats.append(1), seconds=0.001)
        time.sleep(0.03)
        heart.stop()
        heard.append(len(beats))

    wait_in_pdb = FunctionType(
        wait_at_prompt.__code__, {**globals(), "__name__": "pdb"}, "w", None, wait_at_prompt.__closure__
    )
    wait_in_pdb()
    wait_at_prompt()
    assert heard[0] == 0 < heard[1]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("width", [40, 56, 80, 120, 200])
def test_no_line_is_broken_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Lines hold what fits; only paths and commands, which are to be copied, may be longer."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = FakeTerminal()
    record = {**RECORD, "g_loss": 2.5, "data_wait": 0.01}
    with TrainingProgressDisplay(100_000_000, stream=stream) as shown:
        shown.begin_training(0)
        for images in (12_000_000, 13_000_000):
            shown.update(images)
        shown.update(13_000_000, record)
        with shown.phase("evaluating"):
            shown.start_bar("Training the classifier of real images", 1_000)(130)
        shown.message("The data have no split 'valid': evaluations before the end use a tenth of the others.")
        shown.conclude(SUMMARY, "runs/a run", draws=True, explores=True)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line for part in text.split("\n") for line in part.split("\r")]
    whole = [line for line in lines if "python -m" not in line]
    assert max(len(line.rstrip()) for line in whole) <= width
    live = [line for line in lines if "ETA" in line or "evaluating" in line]
    assert max(len(line) for line in live) <= width - len("^C"), "its echo would break the last line, which stays"
    assert all(part in text for part in ("13%", "ETA", "evaluating", "812 img/s"))
    assert "  python -m ali_dist.generate 'runs/a run'" in lines


SUMMARY = {
    "run": "demo",
    "images": 64_000,
    "seconds": 754.2,
    "metrics": {
        "frechet": 21.34,
        "frechet_reference": 5.2,
        "swd": 3.0,
        "reconstruction_mse": 0.0221,
        "reconstruction_mse_reference": 0.0739,
        "label_kept": 0.93,
    },
}


def test_a_run_ends_with_time_numbers_references_report_and_commands() -> None:
    assert closing_lines(SUMMARY, "s3://bucket/runs/demo", draws=False, explores=False) == [
        "Done: run 'demo', 64,000 images in 12:34.",
        "  Fréchet distance: 21.34; reference 5.2 (real holdout images)",
        "  Reconstruction error: 0.0221; reference 0.0739 (answering the mean image)",
        "  Label kept: 93.0 %",
        "Report: s3://bucket/runs/demo/report.html",
        "Next:",
        "  python -m ali_dist.evaluate s3://bucket/runs/demo",
        "  python -m ali_dist.export s3://bucket/runs/demo exported --format torch",
    ]


def test_a_run_that_was_not_measured_ends_without_numbers() -> None:
    lines = closing_lines({**SUMMARY, "metrics": {}}, "runs/demo", draws=True, explores=False)
    assert lines[1] == "Report: runs/demo/report.html"
    assert not any("explore" in line for line in lines)


def test_a_run_of_pictures_ends_with_the_way_to_explore_it() -> None:
    lines = closing_lines(SUMMARY, "runs/demo", draws=True, explores=True)
    assert [line.split()[2] for line in lines[lines.index("Next:") + 1 :]] == [
        "ali_dist.generate",
        "ali_dist.explore",
        "ali_dist.export",
    ]


def test_what_does_not_fit_is_left_out_whole() -> None:
    assert fit_parts(["812 img/s", "loss 1.23", "data wait 1 %"], 22) == "812 img/s · loss 1.23"
    assert fit_parts(["evaluating: something"], 10) == "evaluatin…"
    assert wrap("a path /some/very-long-path/of/a/run ends", 12).splitlines()[1] == "    /some/very-long-path/of/a/run"


def test_a_command_that_takes_long_says_so_on_a_pipe(monkeypatch: pytest.MonkeyPatch, seconds: Seconds) -> None:
    stream = Log()
    monkeypatch.setattr(sys, "stderr", stream)
    real_beat = LineView.beat
    views: list[LineView] = []
    monkeypatch.setattr(LineView, "beat", lambda self: None)  # of the thread
    monkeypatch.setattr(LineView, "refresh", lambda self: views.append(self))
    with show_progress("Encoding", 40) as advance:
        advance(30)
        seconds.now += 6
        real_beat(views[0])
    with show_progress_bars("preparing the data") as start_bar:
        start_bar("train", 40)(10)
        seconds.now += 6
        real_beat(views[-1])
    assert [line[6:] for line in stream.getvalue().splitlines()] == [
        "working: Encoding · 0:06 · 30 / 40",
        "preparing the data: train · 0:06 · 10 / 40",
    ]
