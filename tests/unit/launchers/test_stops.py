"""A request to stop is honoured within 5 seconds wherever it comes: exit code 75, and what was trained is saved."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from tests.helpers.processes import ROOT, checkpoint_names
from tests.helpers.runs import command_line_for, tiny_config

HONOURED_SECONDS = 5.0
FOREVER = 60.0


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


class Phase:
    """A place that takes forever; its functions are replaced in the process of a run.

    Args:
        target: What is replaced, as a dotted path.
        before: How many calls go through first.
        settings: Of a run that comes there.
    """

    def __init__(self, target: str, *, before: int = 0, **settings: Any) -> None:
        self.target = target
        self.before = before
        self.settings = settings


PHASES = {
    "preparing data": Phase("ali_dist.launchers.builtin_data.ensure_prepared", data__source="digits"),
    "set-up": Phase("ali_dist.training.loop.set_up_run"),
    "opening data": Phase("ali_dist.training.setup.TrainBatches"),
    "reading data": Phase("ali_dist.data.streaming.StreamSource._load_window", before=8, data__residency="stream"),
    "evaluating": Phase("ali_dist.training.reporting.RunReporter._measure", report__evaluation="auto"),
    "drawing": Phase("ali_dist.training.run_galleries.RunGalleries.draw"),
    "uploading pictures": Phase("ali_dist.training.reporting.RunReporter.publish_looks"),
    "writing the page": Phase("ali_dist.training.reporting.write_page"),
}
SAVED = {"reading data", "evaluating", "drawing", "uploading pictures", "writing the page"}


# The tests themselves may run where SIGHUP or SIGINT is ignored (under nohup, in the background of a shell).
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


def take_forever(reached: Event, before: int, original: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= before:
            return original(*args, **kwargs)
        reached.set()
        deadline = time.monotonic() + FOREVER
        while time.monotonic() < deadline:
            try:
                time.sleep(FOREVER)
            except KeyboardInterrupt:  # as a library may do that does not let go
                if "reluctant" in os.environ:
                    continue
                raise
        return None

    return replacement


def run_command(arguments: list[str], phase: Phase, reached: Event, log: str, environment: dict[str, str]) -> None:
    """The train command in a process of its own, which comes to `phase`."""
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    from ali_dist.train import main

    with pytest.MonkeyPatch.context() as patch:
        owner, _, name = phase.target.rpartition(".")
        module = owner if owner in sys.modules else owner.rpartition(".")[0]
        __import__(module)
        holder = sys.modules[module] if module == owner else getattr(sys.modules[module], owner.rpartition(".")[2])
        patch.setattr(holder, name, take_forever(reached, phase.before, getattr(holder, name)))
        os._exit(main(arguments))


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that need not import torch again."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["ali_dist.launchers.local", "ali_dist.train", "pytest", __name__])
    return forking


def stop_in(context: Any, config: Config, phase: Phase, number: int, folder: Path, **environment: str):
    """Send the signal when the run is in the phase; exit code, seconds until the end, and output."""
    reached = context.Event()
    log = folder / "log"
    process = context.Process(
        target=run_command, args=(command_line_for(config), phase, reached, str(log), environment), daemon=True
    )
    process.start()
    try:
        assert reached.wait(60), log.read_text()
        time.sleep(0.3)
        began = time.monotonic()
        os.kill(process.pid, number)
        process.join(20)
        return process.exitcode, time.monotonic() - began, log.read_text()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("name", "number"), [(name, NUMBERS[k % 4]) for k, name in enumerate(PHASES)], ids=list(PHASES)
)
def test_every_signal_is_honoured_in_every_phase_within_5_seconds(context, tmp_path, digits, name, number):
    phase = PHASES[name]
    config = tiny_config(
        tmp_path, **{"data__url": str(digits), "report__checkpoint_every": 0, "run__images": 480, **phase.settings}
    )
    code, seconds, output = stop_in(context, config, phase, number, tmp_path)
    assert code == 75, output
    assert seconds < HONOURED_SECONDS
    assert "run the same command to" in output
    assert "Traceback" not in output
    assert bool(checkpoint_names(config)) == (name in SAVED)


def test_a_library_that_does_not_let_go_is_not_waited_for(context, tmp_path, digits):
    config = tiny_config(tmp_path, data__url=str(digits))
    code, seconds, output = stop_in(context, config, PHASES["set-up"], signal.SIGTERM, tmp_path, reluctant="yes")
    assert (code, "Stopped on request" in output) == (75, True)
    assert seconds < HONOURED_SECONDS


def test_what_was_trained_before_a_slow_read_is_saved(context, tmp_path, digits):
    phase = PHASES["reading data"]
    config = tiny_config(tmp_path, data__url=str(digits), run__images=4800, **phase.settings)
    assert stop_in(context, config, phase, signal.SIGTERM, tmp_path)[0] == 75
    summary = json.loads((Path(config.run.dir) / "tiny" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert checkpoint_names(config)[-1] == f"step-{summary['step']:09d}"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_libraries_are_imported_ends_the_command_at_once(tmp_path, digits, number):
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': print('importing', flush=True); time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from ali_dist.train import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, *command_line_for(tiny_config(tmp_path, data__url=str(digits)))]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 75
        assert time.monotonic() - began < HONOURED_SECONDS


def test_a_hangup_that_is_ignored_at_the_start_stays_ignored():
    """As under nohup: the run goes on."""
    program = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + (
        "from ali_dist.launchers.signals import stop_on_signals, stop_at_once\n"
        "with stop_at_once('no'), stop_on_signals(lambda: print('asked')):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "True\n"
