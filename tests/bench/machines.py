"""What a run on several machines goes through, and how long it takes to train again: `python -m tests.bench.machines`.

A head that coordinates and four machines that train are network namespaces of their own, with real SSH servers;
`python -m cluster` launches them and submits a run of two workers. In turn, while it trains,

    worker   one worker is ended by SIGKILL
    link     a worker's machine is cut off from the network for 8 seconds
    notice   a machine is said to leave (Ray's drain, as a spot instance's agent does it): time to the saved checkpoint
    driver   the driver on the head is ended by SIGKILL, and the same command is submitted again
    host     the power of a worker's machine goes off, and stays off

In the end the parameters must have the bits of a run of two workers to which nothing happened, which is trained here
meanwhile. This needs root on Linux and the tools of tests/helpers/hosts.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ali_dist.cli import parse_comma_list, whole_number_type
from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.errors import InputError, exit_code
from tests.distributed.test_ranks import train_rank
from tests.helpers.distributed import run_distributed
from tests.helpers.hosts import SHARED, Hosts, Machine, why_not
from tests.helpers.laptop import Laptop
from tests.helpers.runs import command_line_for, load_weights, tiny_config

WORKER = "ray::RayTrainWorker"
EVENTS = ("worker", "link", "notice", "driver", "host")
LINK_SECONDS = 8.0
BATCH = 24
_LONGEST_WAIT = 240.0
_BETWEEN_EVENTS = 5.0
_INTERRUPTION = 2.0  # seconds without a record; there are several in a second
_SECONDS_TO_NOTICE = 40.0  # after which a fault that interrupted nothing is over


@dataclass
class Findings:
    """What was seen.

    Attributes:
        seconds: By event: to the next record of training, or to the saved checkpoint for `notice`.
        summary: The run's summary.json.
        faults: Sentences on what did not come out as it should.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class RunOnMachines:
    """A run that was submitted to the cluster, seen through the folder that all machines share.

    Args:
        hosts: The machines, which run.
        laptop: Where it is submitted.
        config: What is trained; its folders are as the machines see them.
    """

    def __init__(self, hosts: Hosts, laptop: Laptop, config: Config) -> None:
        self.hosts = hosts
        self._laptop = laptop
        self._words = ["python", "-m", "ali_dist.train", *command_line_for(config)]
        self._folder = hosts.shared / "runs" / config.run.name
        self._log_file = hosts.folder / "submit.log"
        self.records: list[float] = []
        """When records of training were seen, on the clock of `time.monotonic`."""
        self.submit()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self) -> None:
        """Submit the command, and follow its output into a file."""
        with self._log_file.open("ab") as log:
            self._following = subprocess.Popen(
                self._laptop.words("submit", "mine.yaml", "--follow", "--", *self._words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _watch(self) -> None:
        images = 0
        while True:
            # Fewer images than before are what a run begins with that goes on from a checkpoint: none is trained yet.
            if (newest := self.trained_images()) > images:
                self.records.append(time.monotonic())
            images = newest
            time.sleep(0.02)

    def trained_images(self) -> int:
        """Images of the newest record of training; 0 where there is none."""
        file = self._folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        for line in reversed(lines):
            if line.endswith("}") and (record := json.loads(line))["event"] == "train":
                return int(record["images"])
        return 0

    def checkpoints(self) -> set[str]:
        """Names of those that are complete."""
        return {file.parent.name for file in self._folder.glob("checkpoints/*/manifest.json")}

    def summary(self) -> dict[str, Any]:
        """What summary.json says."""
        content: dict[str, Any] = json.loads((self._folder / "summary.json").read_text())
        return content

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds.

        Raises:
            InputError: It did not for long, or the run ended before.
        """
        deadline = time.monotonic() + _LONGEST_WAIT
        while not condition():
            if time.monotonic() > deadline or self._following.poll() is not None:
                raise InputError(f"{what} did not come; the log ends: {self._log_file.read_text()[-3000:]}")
            time.sleep(0.02)

    def wait_for_return(self, fault: float) -> float:
        """Wait until training goes on after a fault; seconds from the fault on, 0 where it was not interrupted.

        Raises:
            InputError: It did not go on.
        """
        while True:
            if (seconds := self._return_seconds(fault)) > 0:
                return seconds
            recent = self.records and time.monotonic() - self.records[-1] < _INTERRUPTION
            if recent and time.monotonic() - fault > _SECONDS_TO_NOTICE:
                return 0.0
            if time.monotonic() - fault > _LONGEST_WAIT or self._following.poll() is not None:
                raise InputError(f"Training did not go on; the log ends: {self._log_file.read_text()[-3000:]}")
            time.sleep(0.05)

    def _return_seconds(self, fault: float) -> float:
        moments = [fault, *(record for record in list(self.records) if record > fault)]
        ends = [late for early, late in zip(moments, moments[1:], strict=False) if late - early > _INTERRUPTION]
        return ends[-1] - fault if ends else 0.0

    def wait_for_end(self) -> int:
        """Exit code of the newest submission."""
        return self._following.wait(_LONGEST_WAIT * 3)

    def machine_with_worker(self) -> tuple[Machine, int]:
        """A machine that trains, and the process id of its worker there."""
        for machine in reversed(self.hosts.machines):
            if machine.is_running() and (pids := machine.processes(WORKER)):
                return machine, pids[0]
        raise InputError("No machine has a worker.")


def strike(event: str, run: RunOnMachines) -> float:
    """Let one thing happen; gives the moment from which seconds are counted."""
    machine, worker = run.machine_with_worker()
    moment = time.monotonic()
    if event == "worker":
        machine.run("kill", "-9", str(worker))
    elif event == "link":
        machine.set_link("down")
        time.sleep(LINK_SECONDS)
        machine.set_link("up")
    elif event == "driver":
        head = run.hosts.machines[0]
        for pid in head.processes("python -m ali_dist.train"):
            head.attempt("kill", "-9", str(pid))
        run.wait_for_end()
        run.submit()
    elif event == "host":
        machine.kill()
    return moment


def save_at_notice(run: RunOnMachines) -> float:
    """Give notice that a worker's machine leaves in ten minutes; seconds until there is a new checkpoint."""
    machine, _ = run.machine_with_worker()
    before = run.checkpoints()
    words = machine.raylet_options()
    command = [f"{sys.prefix}/bin/ray", "drain-node", "--address", words["gcs-address"], "--node-id", words["node_id"]]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    moment = time.monotonic()
    machine.run(*command, "--deadline-remaining-seconds=600", env={"RAY_AUTH_MODE": "token"})
    run.wait("a checkpoint after the notice", lambda: bool(run.checkpoints() - before))
    return time.monotonic() - moment


def measure(folder: Path, events: Sequence[str], updates: int) -> Findings:
    """Launch, train through all events, and compare with an unbroken run."""
    findings = Findings()
    with Hosts(folder, 5) as hosts:
        laptop = Laptop(hosts, head_works=False)
        ensure_prepared("mixture-ring", str(hosts.shared / "ring"), samples=2_000)
        laptop.done("up", "mine.yaml")
        try:
            run = RunOnMachines(hosts, laptop, _configure(Path(SHARED), "struck", updates))
            run.wait("training", lambda: len(run.records) > 2)
            for event in events:
                time.sleep(_BETWEEN_EVENTS)
                _say(f"{event} at {run.trained_images():,} images")
                if event == "notice":
                    findings.seconds[event] = save_at_notice(run)
                else:
                    findings.seconds[event] = run.wait_for_return(strike(event, run))
                _say(f"{event}: {findings.seconds[event]:.1f} s")
            if code := run.wait_for_end():
                findings.faults.append(f"the run ended with code {code}")
            findings.summary = run.summary()
        finally:
            laptop.run("down", "mine.yaml")
        struck = _configure(hosts.shared, "struck", updates)
        unbroken = _configure(hosts.shared, "unbroken", updates)
        run_distributed(train_rank, 2, 2, unbroken.to_mapping(), timeout=3600)
        ours, theirs = load_weights(struck), load_weights(unbroken)
        findings.faults += [f"{name} differs" for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]
    return findings


def _configure(folder: Path, name: str, updates: int) -> Config:
    return tiny_config(
        folder,
        "mixture-ring",
        run__name=name,
        data__url=str(folder / "ring"),
        run__images=BATCH * updates,
        scale__workers="2",
        scale__max_failures=100,
        scale__collective_timeout=20.0,
        report__log_every=BATCH * 50,
        report__checkpoint_every=BATCH * 500,
    )


def format_findings(findings: Findings) -> str:
    """Format as a Markdown table, with the run's own account below."""
    lines = ["| event | seconds to training again |", "|---|---|"]
    lines += [f"| {event} | {seconds:.1f} |" for event, seconds in findings.seconds.items()]
    told = {key: findings.summary.get(key) for key in ("status", "images", "world_size", "restarts")}
    account = ", ".join(f"{key} {value}" for key, value in told.items())
    outcome = findings.faults or ["The parameters have the bits of an unbroken run."]
    return "\n".join([*lines, "", f"summary.json: {account}.", *outcome])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_command(options: argparse.Namespace) -> None:
    if reason := why_not():
        raise InputError(f"There can be no machines here: {reason}.")
    if unknown := set(options.events) - set(EVENTS):
        raise InputError(f"--events has {', '.join(sorted(unknown))}: expected some of {', '.join(EVENTS)}.")
    with tempfile.TemporaryDirectory(prefix="ali-machines-") as folder:
        findings = measure(Path(folder), options.events, options.updates)
    print(format_findings(findings))
    if findings.faults:
        raise InputError("The run did not come out as it should; see above.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.machines", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=parse_comma_list, default=EVENTS, help=f"in this order ({','.join(EVENTS)})")
    parser.add_argument("--updates", type=whole_number_type(1), default=20_000, help="length of the run (20000)")
    options = parser.parse_args(arguments)
    return exit_code("tests.bench.machines", lambda: _run_command(options), "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
