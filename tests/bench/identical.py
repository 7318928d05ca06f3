"""Whether a change that should change no numbers has changed none: `python -m tests.bench.identical --help`.

`record FOLDER` trains fixed small runs (digits, a mixture, few labels, conditions, the paper's CIFAR10 and SVHN
networks at small width; on 1, 2 and 3 ranks) through the command line of a checkout, and keeps their run folders.
`compare FOLDER FOLDER` demands equal losses and metrics, equal weights, averages and optimizer state bit for bit, and
equal pictures. `resume FOLDER` lets this checkout go on with, and use, the runs that another one recorded.

    git worktree add ../before COMMIT
    python -m tests.bench.identical record /tmp/before --code ../before
    python -m tests.bench.identical record /tmp/after
    python -m tests.bench.identical compare /tmp/before /tmp/after
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMON = {
    "run.images": "480",
    "data.global_batch_size": "24",
    "data.lanes": "6",
    "scale.device": "cpu",
    "scale.threads": "1",
    "scale.workers": "0",
    "report.log_every": "48",
    "report.checkpoint_every": "240",
    "report.evaluation_samples": "200",
}
SMALL_PAPER = {"model.width": "0.125", "report.evaluation": "none", "run.images": "192", "data.source": "none"}
CLOCK = {"seconds", "images_per_second", "data_wait"}
"""Keys of a record that follow the clock."""


@dataclass(frozen=True, slots=True)
class FixedRun:
    """A run whose numbers are compared: its preset, what is set beside `COMMON`, and the data it is given."""

    name: str
    preset: str
    settings: dict[str, str]
    data: str


RUNS = (
    FixedRun("digits", "digits", {"model.width": "0.5"}, "digits"),
    FixedRun("digits-semi", "digits-semi", {"model.width": "0.5"}, "digits"),
    FixedRun("digits-conditional", "digits-conditional", {"model.width": "0.25", "run.images": "240"}, "digits"),
    FixedRun("mixture", "mixture", {}, "mixture"),
    FixedRun("cifar10", "cifar10", SMALL_PAPER, "shapes"),
    FixedRun("svhn", "svhn", {**SMALL_PAPER, "data.split": "train"}, "shapes"),
)
DATA = {
    "digits": ["digits"],
    "mixture": ["mixture", "--samples", "1000"],
    "shapes": ["shapes", "--samples", "300", "--size", "32"],
}
RANKS = (1, 2, 3)


def run_in(code: Path, arguments: list[str], ranks: int = 1) -> None:
    """Run one of our modules with the code of a checkout, on one process or under torchrun."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "-m", *arguments]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def training_arguments(run: FixedRun, folder: Path, ranks: int) -> list[str]:
    """The command line that trains `run` below `folder`."""
    places = {"run.dir": folder / "runs", "run.name": f"{run.name}-{ranks}", "data.url": folder / "data" / run.data}
    settings = COMMON | run.settings | {key: str(value) for key, value in places.items()}
    return ["ali_dist.train", "--preset", run.preset, *(f"--{key}={value}" for key, value in settings.items())]


def record(folder: Path, code: Path) -> None:
    """Train every fixed run on every number of ranks."""
    for name, arguments in DATA.items():
        run_in(code, ["ali_dist.prepare", *arguments[:1], str(folder / "data" / name), *arguments[1:]])
    for run in RUNS:
        for ranks in RANKS:
            print(f"{run.name} on {ranks}", flush=True)
            run_in(code, training_arguments(run, folder, ranks), ranks)


def facts_of(run: Path) -> Iterator[tuple[str, Any]]:
    """Everything of a run folder that must not change, by name; floats as they are written."""
    for number, line in enumerate((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        for key, value in json.loads(line).items():
            if key not in CLOCK:
                yield f"metrics.jsonl:{number}:{key}", value
    for path in sorted([*run.glob("checkpoints/*/*.safetensors"), *run.glob("images/*.png")]):
        yield str(path.relative_to(run)), hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(run.glob("checkpoints/*/state.json")):
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            if key not in CLOCK | {"config"}:
                yield f"{path.relative_to(run)}:{key}", value


def compare(before: Path, after: Path) -> int:
    """Print every difference; how many there are."""
    found = compared = 0
    for run in sorted((before / "runs").iterdir()):
        mine, theirs = dict(facts_of(run)), dict(facts_of(after / "runs" / run.name))
        for name in sorted(mine.keys() | theirs.keys()):
            compared += 1
            if mine.get(name) != theirs.get(name):
                found += 1
                print(f"{run.name}: {name} was {mine.get(name)!r} and is {theirs.get(name)!r}")
    print(f"{compared} facts of {len(list((before / 'runs').iterdir()))} runs compared, {found} differ.")
    return found


def resume(folder: Path) -> None:
    """Go on with each recorded run for two more updates, and use it."""
    for run in RUNS:
        arguments = training_arguments(run, folder, 1)
        images = int((COMMON | run.settings)["run.images"]) + 48
        run_in(ROOT, [*arguments, f"--run.images={images}"])
        place = str(folder / "runs" / f"{run.name}-1")
        summary = json.loads(Path(place, "summary.json").read_text(encoding="utf-8"))
        if summary["images"] != images or summary["restarts"] != 1:
            raise SystemExit(f"{place} did not go on from its checkpoint: {summary}")
        run_in(ROOT, ["ali_dist.generate", place, "--what", "samples", "--count", "4", "--out", f"{folder}/pictures"])
        run_in(ROOT, ["ali_dist.encode", place, "--out", f"{folder}/features-{run.name}.npz"])
        print(f"{run.name}: went on, drew samples, encoded", flush=True)


def main() -> int:
    """The command; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.identical",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("record", "compare", "resume"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout whose code trains (this one)")
    options = parser.parse_args()
    folders = [folder.absolute() for folder in options.folders]
    if options.what == "compare":
        return int(compare(*folders) > 0)
    if options.what == "record":
        record(folders[0], options.code.absolute())
    else:
        resume(folders[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
