"""Check that a change which should change no numbers has changed none: `python -m tests.bench.identical --help`.

`record FOLDER` trains fixed small runs (digits, a mixture, few labels, conditions, the paper's CIFAR10 and SVHN
networks at small width; on 1, 2 and 3 ranks) through the command line of a checkout, and keeps their run folders.
`compare FOLDER FOLDER` demands equal losses and metrics, equal weights, averages and optimizer state bit for bit, and
equal pictures. `resume FOLDER` continues and uses, with this checkout, the runs that another one has recorded.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ali_dist.cli import parse_comma_list, whole_number_type

ROOT = Path(__file__).resolve().parents[2]
COMMON_SETTINGS = {
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
SMALL_PAPER_SETTINGS = {"model.width": "0.125", "report.evaluation": "none", "run.images": "192", "data.source": "none"}
CLOCK_KEYS = {"seconds", "images_per_second", "data_wait"}
"""Keys of a record whose values depend on the clock."""
PLACE_KEYS = {"config", "spent", "starts"}
"""Keys of a checkpoint that tell where, when and how fast it was trained."""


@dataclass(frozen=True, slots=True)
class FixedRun:
    """A run whose numbers are compared.

    Attributes:
        name: Name of its folders, without the number of ranks.
        preset: Its preset.
        settings: What is set beside `COMMON_SETTINGS`.
        data: Name of its data in `DATA_COMMANDS`.
    """

    name: str
    preset: str
    settings: dict[str, str]
    data: str


FIXED_RUNS = (
    FixedRun("digits", "digits", {"model.width": "0.5"}, "digits"),
    FixedRun("digits-semi", "digits-semi", {"model.width": "0.5"}, "digits"),
    FixedRun("digits-conditional", "digits-conditional", {"model.width": "0.25", "run.images": "240"}, "digits"),
    FixedRun("mixture", "mixture", {}, "mixture"),
    FixedRun("cifar10", "cifar10", SMALL_PAPER_SETTINGS, "shapes"),
    FixedRun("svhn", "svhn", {**SMALL_PAPER_SETTINGS, "data.split": "train"}, "shapes"),
)
DATA_COMMANDS = {
    "digits": ["digits"],
    "mixture": ["mixture", "--samples", "1000"],
    "shapes": ["shapes", "--samples", "300", "--size", "32"],
}


def run_module(code: Path, arguments: list[str], ranks: int = 1) -> None:
    """Run one of our modules with the code of a checkout, in one process or under torchrun."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "-m", *arguments]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def training_arguments(run: FixedRun, folder: Path, ranks: int) -> list[str]:
    """List the arguments that train `run` below `folder`."""
    places = {"run.dir": folder / "runs", "run.name": f"{run.name}-{ranks}", "data.url": folder / "data" / run.data}
    settings = COMMON_SETTINGS | run.settings | {key: str(value) for key, value in places.items()}
    return ["ali_dist.train", "--preset", run.preset, *(f"--{key}={value}" for key, value in settings.items())]


def record_runs(folder: Path, code: Path, runs: Sequence[FixedRun], rank_counts: Sequence[int]) -> None:
    """Train each of the fixed runs on each number of ranks."""
    for name in sorted({run.data for run in runs}):
        arguments = DATA_COMMANDS[name]
        run_module(code, ["ali_dist.prepare", *arguments[:1], str(folder / "data" / name), *arguments[1:]])
    for run in runs:
        for ranks in rank_counts:
            print(f"{run.name} on {ranks}", flush=True)
            run_module(code, training_arguments(run, folder, ranks), ranks)


def collect_facts(run: Path) -> Iterator[tuple[str, Any]]:
    """Collect everything in a run folder that must not change, by name; floats as they are written."""
    for number, line in enumerate((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        for key, value in json.loads(line).items():
            if key not in CLOCK_KEYS:
                yield f"metrics.jsonl:{number}:{key}", value
    for path in sorted([*run.glob("checkpoints/*/*.safetensors"), *run.glob("images/*.png")]):
        yield str(path.relative_to(run)), hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(run.glob("checkpoints/*/state.json")):
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            if key not in CLOCK_KEYS | PLACE_KEYS:
                yield f"{path.relative_to(run)}:{key}", value


def compare_runs(before: Path, after: Path) -> int:
    """Print every difference between two folders of recorded runs; returns their number."""
    compared = 0
    differing = 0
    runs = sorted((before / "runs").iterdir())
    for run in runs:
        facts_before = dict(collect_facts(run))
        facts_after = dict(collect_facts(after / "runs" / run.name))
        for name in sorted(facts_before.keys() | facts_after.keys()):
            compared += 1
            if facts_before.get(name) != facts_after.get(name):
                differing += 1
                print(f"{run.name}: {name} was {facts_before.get(name)!r} and is {facts_after.get(name)!r}")
    print(f"{compared} facts of {len(runs)} runs compared, {differing} differ.")
    return differing


def resume_runs(folder: Path, runs: Sequence[FixedRun]) -> None:
    """Continue each of the recorded runs for two more updates, and use it.

    Raises:
        SystemExit: A run was not continued from its checkpoint, or a command failed.
    """
    for run in runs:
        arguments = training_arguments(run, folder, 1)
        images = int((COMMON_SETTINGS | run.settings)["run.images"]) + 48
        run_module(ROOT, [*arguments, f"--run.images={images}"])
        run_folder = str(folder / "runs" / f"{run.name}-1")
        summary = json.loads(Path(run_folder, "summary.json").read_text(encoding="utf-8"))
        if summary["images"] != images or summary["restarts"] != 1:
            raise SystemExit(f"{run_folder} was not continued from its checkpoint: {summary}")
        drawing = ["--what", "samples", "--count", "4", "--out", f"{folder}/pictures"]
        run_module(ROOT, ["ali_dist.generate", run_folder, *drawing])
        run_module(ROOT, ["ali_dist.encode", run_folder, "--out", f"{folder}/features-{run.name}.npz"])
        print(f"{run.name}: continued, drew samples, encoded", flush=True)


def _parse_counts(text: str) -> list[int]:
    return [whole_number_type(1)(word) for word in parse_comma_list(text)]


def main() -> int:
    """Run the command; returns exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.identical",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("record", "compare", "resume"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout whose code trains (this one)")
    names = ",".join(run.name for run in FIXED_RUNS)
    parser.add_argument("--runs", type=parse_comma_list, default=names.split(","), help=f"of these ({names})")
    parser.add_argument("--ranks", type=_parse_counts, default=[1, 2, 3], help="numbers of ranks (1,2,3)")
    options = parser.parse_args()
    runs = [run for run in FIXED_RUNS if run.name in options.runs]
    if unknown := set(options.runs) - {run.name for run in runs}:
        parser.error(f"--runs has {', '.join(sorted(unknown))}: expected some of {names}.")
    folders = [folder.absolute() for folder in options.folders]
    if options.what == "compare":
        return int(compare_runs(*folders) > 0)
    if options.what == "record":
        record_runs(folders[0], options.code.absolute(), runs, options.ranks)
    else:
        resume_runs(folders[0], runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
