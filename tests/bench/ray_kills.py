"""A run on Ray whose workers are killed again and again: `python -m tests.bench.ray_kills [--kills 20] [--hang]`.

Two workers train on the digits. At moments that a seed chooses, one of them is ended by SIGKILL, or with --hang stopped
by SIGSTOP, so that the other waits for it until `scale.collective_timeout`, 10 s, is over. Ray starts both again, which
go on from the newest checkpoint. In the end the parameters must have the bits of two ranks to which nothing
happened, and the records of training must be theirs: then no batch was lost or repeated. Beside that it measures how
long each kill took until training went on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ali_dist.cli import whole_number_type
from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.errors import InputError, exit_code
from tests.distributed.test_ranks import train_rank
from tests.helpers.distributed import run_distributed
from tests.helpers.processes import TrainCommand, train_command
from tests.helpers.runs import load_weights, tiny_config

_BATCH = 24
_UPDATES_OF_A_RECORD, _UPDATES_OF_A_SAVE = 10, 50
_LONGEST_WAIT = 300.0
_TIMEOUT_SECONDS = 10


def kill_again_and_again(
    folder: Path, kills: int, updates: int, seed: int, sent: signal.Signals = signal.SIGKILL
) -> tuple[list[float], list[str]]:
    """Train two runs, one of whose workers get the signal `sent`.

    Returns:
        Seconds from each kill to the next record of training, and sentences on what did not come out as it should.

    Raises:
        InputError: The run ended or hung before there were so many kills.
    """
    ensure_prepared("digits", str(folder / "data"))
    killed, unbroken = (_configure(folder, name, updates) for name in ("killed", "unbroken"))
    draws = random.Random(seed)
    seconds = []
    with train_command(killed, folder / "log", {"RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}) as running:
        for number in range(kills):
            _wait_for_more(running, killed)
            time.sleep(draws.uniform(0.0, 6.0))
            workers = running.find_descendants("ray::RayTrainWorker")
            if running.process.poll() is not None or not workers:
                raise InputError(f"The run ended after {number} kills: raise --updates. {_end_of(running)}")
            os.kill(draws.choice(workers), sent)
            moment = time.monotonic()
            time.sleep(0.5)  # what was written before the kill is there by now
            _wait_for_more(running, killed)
            seconds.append(time.monotonic() - moment)
            _say(f"kill {number + 1} of {kills}: {seconds[-1]:.1f} s to training again")
        if code := running.wait(3600):
            raise InputError(f"The run ended with code {code}: {_end_of(running)}")
    run_distributed(train_rank, 2, 2, unbroken.to_mapping(), timeout=3600)
    return seconds, _compare(killed, unbroken, kills)


def _wait_for_more(running: TrainCommand, config: Config) -> None:
    """Wait until two more records of training are written.

    Where a run goes on from a checkpoint, it takes the records after it out of the file at once: they count as none.
    """
    before = _count_records(config)
    deadline = time.monotonic() + _LONGEST_WAIT
    while (now := _count_records(config)) < before + 2:
        before = min(before, now)
        if running.process.poll() is not None or time.monotonic() > deadline:
            raise InputError(f"The run trains no more: {_end_of(running)}")
        time.sleep(0.02)


def _end_of(running: TrainCommand) -> str:
    return running.read_output()[-2000:]


def _records(config: Config) -> list[int]:
    file = Path(config.run.dir) / config.run.name / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record["images"] for record in records if record["event"] == "train"]


def _count_records(config: Config) -> int:
    return len(_records(config))


def _compare(killed: Config, unbroken: Config, kills: int) -> list[str]:
    faults = []
    for file in ("model", "ema", "optimizer"):
        ours, theirs = load_weights(killed, file), load_weights(unbroken, file)
        for name, tensor in theirs.items():
            # Statistics of batch norm are averaged over ranks at checkpoints, which agrees up to rounding.
            same = torch.allclose if "running" in name else torch.equal
            if not same(ours[name], tensor):
                faults.append(f"{file}: {name} differs")
    if _records(killed) != _records(unbroken):
        faults.append("the records of training are at other numbers of images")
    summary = json.loads((Path(killed.run.dir) / killed.run.name / "summary.json").read_text())
    if summary["restarts"] != kills:
        faults.append(f"summary.json counts {summary['restarts']} restarts, not {kills}")
    return faults


def _configure(folder: Path, name: str, updates: int) -> Config:
    return tiny_config(
        folder,
        "digits",
        run__name=name,
        data__url=str(folder / "data"),
        run__images=_BATCH * updates,
        scale__workers="2",
        scale__max_failures=10_000,
        scale__collective_timeout=_TIMEOUT_SECONDS,
        report__evaluation="none",
        report__gallery_every=0,
        report__log_every=_BATCH * _UPDATES_OF_A_RECORD,
        report__checkpoint_every=_BATCH * _UPDATES_OF_A_SAVE,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_command(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="ali-ray-kills-") as folder:
        sent = signal.SIGSTOP if options.hang else signal.SIGKILL
        seconds, faults = kill_again_and_again(Path(folder), options.kills, options.updates, options.seed, sent)
    outcome = "; ".join(faults) if faults else "the bits and the records of an unbroken run"
    what = f"workers that hung, for {_TIMEOUT_SECONDS} s of waiting each," if options.hang else "kills"
    print(f"{len(seconds)} {what} under Ray: {outcome}.")
    print(f"To training again: {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s.")
    if faults:
        raise InputError("The run did not come out as it should; see above.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.ray_kills", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=whole_number_type(1), default=20, help="how many (20)")
    parser.add_argument("--hang", action="store_true", help="stop workers by SIGSTOP instead of killing them")
    parser.add_argument("--updates", type=whole_number_type(1), default=2_000, help="length of the run (2000)")
    parser.add_argument("--seed", type=whole_number_type(0), default=0, help="chooses workers and moments (0)")
    options = parser.parse_args(arguments)
    return exit_code("tests.bench.ray_kills", lambda: _run_command(options), "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
