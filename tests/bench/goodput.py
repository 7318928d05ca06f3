"""How much of its work a run keeps while faults strike: `python -m tests.bench.goodput [--seconds 300] [--every 20]`.

A small run on the digits streams its data from an S3 server on this machine, with a cache on the disk, and saves its
checkpoints there. Every 20 seconds something happens to it, in turn:

    kill     one worker, chosen by the seed, is ended by SIGKILL
    stop     the command is sent SIGTERM, as by a scheduler that takes its machine away
    outage   connections to the S3 server are reset, and refused for 5 seconds
    pause    every worker stands still for 3 seconds, as on a machine that swaps or is moved
    hang     one worker stands still for good: of two workers only

A command that ends is started again at once. The faults come in three parts. Before, between and after them the run is
left alone for a while, checkpoints included, which gives the speed without faults: one that is measured once is not the
speed of five minutes later, on a machine that others share. Goodput is what was trained and kept in the end, divided by
what that speed, before and after each part, would have come to in the same time, less that of the pauses, in which
nobody could train. The three ways of starting a run take their turns: one process, torchrun, and Ray Train.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ali_dist.cli import parse_comma_list, whole_number_type
from ali_dist.errors import InputError, exit_code
from tests.helpers.gateway import Gateway
from tests.helpers.processes import ROOT, descendants_of, kill_tree
from tests.helpers.swift import SwiftServer

WORKERS = {"process": "ali_dist.train", "torchrun": "-m ali_dist.train", "ray": "ray::RayTrainWorker"}
"""What the command line of a worker holds, by the way of starting it."""
FAULTS = {
    "process": ("kill", "outage", "stop", "pause"),
    "torchrun": ("kill", "outage", "stop", "hang"),
    "ray": ("kill", "outage", "stop", "hang"),
}
OUTAGE_SECONDS, PAUSE_SECONDS = 5.0, 3.0
_PARTS = 3
_LONGEST_START = 180.0
_USERS_MISTAKE = 2  # an exit code after which the same command would fail again
_RECORD = re.compile(r"\d\d:\d\d ([\d,]+) / [\d,]+ images")  # Ray begins a worker's lines with its name


@dataclass(frozen=True, slots=True)
class Progress:
    """A record of training as it was seen.

    Attributes:
        seconds: On the bench's clock.
        images: Trained so far.
    """

    seconds: float
    images: int


@dataclass
class Soak:
    """What one way of starting a run has come to.

    Attributes:
        speed: Images a second without faults.
        goodput: Share of that which was kept under faults, 0 to 1.
        standstills: Seconds for which nothing was trained after each fault, by its kind.
        starts: How often the command was started.
    """

    speed: float = 0.0
    goodput: float = 0.0
    standstills: dict[str, list[float]] = field(default_factory=dict)
    starts: int = 0


class TrainingUnderFaults:
    """A run whose command is started again whenever it ends.

    Args:
        launcher: A name in `WORKERS`.
        settings: Options of `ali_dist.train`.
        env: Environment variables beside the current ones.
        folder: For the log.
    """

    def __init__(self, launcher: str, settings: Sequence[str], env: dict[str, str], folder: Path) -> None:
        self.launcher = launcher
        self.log = folder / f"{launcher}.log"
        self.log.touch()
        self.starts = 0
        self.progress: list[Progress] = []
        self._command = [*_command_of(launcher), *settings]
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **env}
        self._ended = threading.Event()
        self._start()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._restart, self._read)]
        for thread in self._threads:
            thread.start()

    def _start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.log.parent,
                env=self._env,
                start_new_session=True,
            )

    def _restart(self) -> None:
        while not self._ended.wait(0.02):
            if self.process.poll() is not None and self.process.returncode != _USERS_MISTAKE:
                kill_tree(self.process)
                self._start()

    def _read(self) -> None:
        position = 0
        while not self._ended.wait(0.02):
            text = self.log.read_bytes()[position:]
            whole = text.rfind(b"\n") + 1
            position += whole
            for found in _RECORD.findall(text[:whole].decode(errors="replace")):
                self.progress.append(Progress(time.monotonic(), int(found.replace(",", ""))))

    def workers(self) -> list[int]:
        """Pids of those that train; empty between two starts."""
        wanted = WORKERS[self.launcher]
        pids = descendants_of(self.process.pid)
        return [pid for pid in pids if wanted in _read_command(pid) and "distributed.run" not in _read_command(pid)]

    def wait_for_training(self, count: int = 1, since: float = 0.0) -> float:
        """Wait for `count` records after the moment `since`; seconds on the bench's clock of the last of them.

        Raises:
            InputError: It took too long.
        """
        deadline = time.monotonic() + _LONGEST_START
        while True:
            seen = [each.seconds for each in list(self.progress) if each.seconds > since]
            if len(seen) >= count:
                return seen[count - 1]
            if time.monotonic() > deadline or self.process.returncode == _USERS_MISTAKE:
                raise InputError(f"Nothing is trained; the log ends: {self.read_end()}")
            time.sleep(0.05)

    def read_end(self) -> str:
        """The last of what it has said."""
        return self.log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """End it and all that it started."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        kill_tree(self.process)


def _command_of(launcher: str) -> list[str]:
    if launcher == "torchrun":
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1000"]
        return [sys.executable, *words, "-m", "ali_dist.train"]
    workers = ["--scale.workers=2"] if launcher == "ray" else []
    return [sys.executable, "-m", "ali_dist.train", "--scale.max_failures=1000", *workers]


def _read_command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def strike(kind: str, running: TrainingUnderFaults, gateway: Gateway, draws: random.Random) -> None:
    """Let one fault happen; comes back when it is over, where it ends by itself."""
    workers = running.workers()
    if kind == "outage":
        gateway.close()
        time.sleep(OUTAGE_SECONDS)
        gateway.open()
    elif kind == "stop":
        running.process.send_signal(signal.SIGTERM)
    elif kind == "pause":
        _signal_all(workers, signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        _signal_all(workers, signal.SIGCONT)
    elif workers:
        _signal_all([draws.choice(workers)], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def soak(running: TrainingUnderFaults, gateway: Gateway, options: argparse.Namespace) -> Soak:
    """Let faults strike in parts, and measure the speed without faults before and after each.

    Args:
        running: Just started.
        gateway: The way to its data and checkpoints.
        options: Of the command: for how long, how often, and what chooses the workers.
    """
    draws = random.Random(options.seed)
    faults = itertools.cycle(FAULTS[running.launcher])
    result = Soak()
    speeds = [_undisturbed_speed(running, options.quiet)]
    kept = possible = 0.0
    for _ in range(_PARTS):
        began, before = time.monotonic(), running.progress[-1].images
        struck = _strike_again_and_again(running, gateway, faults, draws, options)
        ended = time.monotonic()
        progress = list(running.progress)
        speeds.append(_undisturbed_speed(running, options.quiet))
        paused = PAUSE_SECONDS * sum(kind == "pause" for kind, _ in struck)
        kept += [each.images for each in progress if each.seconds <= ended][-1] - before
        possible += statistics.mean(speeds[-2:]) * (ended - began - paused)
        for (kind, at), until in zip(struck, [*(at for _, at in struck[1:]), ended], strict=True):
            result.standstills.setdefault(kind, []).append(_longest_standstill(progress, at, until))
    result.speed = statistics.mean(speeds)
    result.goodput = kept / possible
    result.starts = running.starts
    return result


def _strike_again_and_again(
    running: TrainingUnderFaults,
    gateway: Gateway,
    faults: Iterator[str],
    draws: random.Random,
    options: argparse.Namespace,
) -> list[tuple[str, float]]:
    """One part: a fault now, and one every so many seconds.

    Returns:
        Of each fault, its kind and when it was, on the bench's clock. As long as between two is left to the last one.
    """
    struck: list[tuple[str, float]] = []
    began = time.monotonic()
    for number in range(max(1, round(options.seconds / options.every / _PARTS))):
        time.sleep(max(0.0, began + number * options.every - time.monotonic()))
        kind = next(faults)
        struck.append((kind, time.monotonic()))
        _say(f"{running.launcher}: {kind}")
        strike(kind, running, gateway, draws)
    time.sleep(max(0.0, began + len(struck) * options.every - time.monotonic()))
    return struck


def _undisturbed_speed(running: TrainingUnderFaults, seconds: float) -> float:
    """Images a second in the next `seconds` of training, checkpoints included."""
    first = running.wait_for_training(2, since=time.monotonic())
    time.sleep(seconds)
    quiet = [each for each in list(running.progress) if each.seconds >= first]
    return (quiet[-1].images - quiet[0].images) / (quiet[-1].seconds - quiet[0].seconds)


def _longest_standstill(progress: Sequence[Progress], fault: float, until: float) -> float:
    """Seconds of the longest gap between records that follows a fault."""
    moments = [fault, *(each.seconds for each in progress if fault < each.seconds <= until), until]
    return max(late - early for early, late in zip(moments, moments[1:], strict=False))


def measure(launcher: str, folder: Path, options: argparse.Namespace) -> Soak:
    """Soak a run that is started in one way, with a new S3 server."""
    with SwiftServer(folder / f"swift-{launcher}") as server, Gateway(server.port) as gateway:
        bucket = server.make_bucket("ali")
        data = f"s3://{bucket}/digits"
        env = {**server.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gateway.port}"}
        os.environ.update(env)
        prepare = [sys.executable, "-m", "ali_dist.prepare", "digits", data]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        settings = [
            "--preset=digits",
            f"--data.url={data}",
            "--data.residency=stream",
            f"--data.cache_dir={folder / 'cache'}",
            f"--run.dir=s3://{bucket}/runs",
            f"--run.name={launcher}",
            "--run.images=100000000",
            "--model.width=0.5",
            "--scale.threads=1",
            "--scale.device=cpu",
            "--scale.collective_timeout=5",
            "--report.evaluation=none",
            "--report.gallery_every=0",
            f"--report.log_every={64 * 2}",
            f"--report.checkpoint_every={64 * options.checkpoint_every}",
        ]
        running = TrainingUnderFaults(launcher, settings, {**env, "RAY_AUTH_MODE": "disabled"}, folder)
        try:
            return soak(running, gateway, options)
        finally:
            running.end()


def format_soaks(soaks: dict[str, Soak]) -> str:
    """Format as a Markdown table."""
    kinds = list(dict.fromkeys(kind for each in soaks.values() for kind in each.standstills))
    lines = ["| started by | images/s without faults | goodput | starts | " + " | ".join(kinds) + " |"]
    lines.append("|---" * (4 + len(kinds)) + "|")
    for launcher, each in soaks.items():
        cells = [
            f"{statistics.median(each.standstills[kind]):.1f} s (at most {max(each.standstills[kind]):.1f})"
            if kind in each.standstills
            else "-"
            for kind in kinds
        ]
        numbers = [launcher, f"{each.speed:,.0f}", f"{each.goodput:.1%}", str(each.starts)]
        lines.append(f"| {' | '.join([*numbers, *cells])} |")
    return "\n".join([*lines, "", "By kind of fault: for how long nothing was trained, median and longest."])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_command(options: argparse.Namespace) -> None:
    unknown = set(options.launchers) - WORKERS.keys()
    if unknown:
        raise InputError(f"--launchers has {', '.join(sorted(unknown))}: expected some of {', '.join(WORKERS)}.")
    soaks = {}
    with tempfile.TemporaryDirectory(prefix="ali-goodput-") as folder:
        for name in options.launchers:
            soaks[name] = measure(name, Path(folder), options)
            _say(format_soaks({name: soaks[name]}))  # the next one may fail
    print(format_soaks(soaks))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.goodput", description=(__doc__ or "").partition("\n")[0]
    )
    number: Callable[[str], int] = whole_number_type(1)
    parser.add_argument("--seconds", type=number, default=300, help="how long faults strike, in all (300)")
    parser.add_argument("--every", type=number, default=20, help="seconds from one fault to the next (20)")
    parser.add_argument("--quiet", type=number, default=40, help="seconds without faults around each part (40)")
    parser.add_argument("--checkpoint-every", type=number, default=24, help="updates from one save to the next (24)")
    parser.add_argument("--launchers", type=parse_comma_list, default=list(WORKERS), help="process,torchrun,ray (all)")
    parser.add_argument("--seed", type=whole_number_type(0), default=0, help="chooses the workers (0)")
    options = parser.parse_args(arguments)
    return exit_code("tests.bench.goodput", lambda: _run_command(options), "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
