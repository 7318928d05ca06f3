"""The memory and the time of an evaluation at full size: `python -m tests.bench.evaluation --samples 531131`.

Made-up images of SVHN's shape and sizes are written once (raw shards; about 2.3 GB for all of them), a run with SVHN's
networks is made without training, and `evaluate` measures it in a process of its own, whose peak memory is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.shards.index import INDEX_KEY, Shard
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import SampleFormat, write_index, write_shard
from ali_dist.storage.local import LocalStore
from ali_dist.training.loop import fit
from tests.helpers.runs import StoppingContext

CLASSES = tuple("0123456789")
SHAPE = (3, 32, 32)
PER_SHARD = 10_000
FULL = {"extra": 531_131, "train": 63_257, "valid": 10_000, "test": 26_032}
MOST_MEGABYTES = 2_048

_MEASURE = """
import pathlib, resource, sys
from ali_dist import evaluate
code = evaluate.main(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
sys.exit(code)
"""


def write_split(folder: Path, count: int, seed: int, per_shard: int = PER_SHARD) -> None:
    """Write a split of noise in which a bright pair of rows tells the class; one that is there stays."""
    store = LocalStore(folder)
    if store.stat(INDEX_KEY) is not None:
        return
    sample_format = SampleFormat(encoding="raw", shape=SHAPE, dtype="uint8")
    statistics = Statistics(SHAPE, "uint8")
    shards: list[Shard] = []
    rng = np.random.default_rng(seed)
    for start in range(0, count, per_shard):
        size = min(per_shard, count - start)
        x = rng.integers(0, 160, (size, *SHAPE), dtype=np.uint8)
        y = rng.integers(0, len(CLASSES), size)
        for label in range(len(CLASSES)):
            x[y == label, :, 3 * label : 3 * label + 2] += 80
        samples = [PreparedSample(image, int(label)) for image, label in zip(x, y, strict=True)]
        shard, counted = write_shard(store, len(shards), samples, sample_format)
        shards.append(shard)
        statistics.merge(counted)
    write_index(store, sample_format, shards, statistics, classes=CLASSES, extra={})


def make_run(folder: Path, width: float) -> Path:
    """Make a run of SVHN's networks after one update, with nothing measured."""
    settings = {
        "run.dir": str(folder / "runs"),
        "run.name": "made-up",
        "run.images": 100,
        "data.url": str(folder / "data"),
        "data.residency": "stream",
        "model.width": width,
        "model.output_bias_from_data": False,
        "report.evaluation": "none",
        "scale.workers": "0",
        "scale.device": "cpu",
    }
    config = from_mapping(load_preset("svhn"), settings)
    fit(config, StoppingContext())
    return Path(config.run.dir) / config.run.name


def measure(run: Path, out: Path, words: list[str]) -> tuple[float, int]:
    """Run `evaluate` in a process of its own, whose bars are seen; gives its seconds and its peak memory in MiB."""
    begun = time.monotonic()
    peak = out.with_suffix(".peak")
    command = [sys.executable, "-c", _MEASURE, str(peak), str(run), "--device", "cpu", "--json", str(out), *words]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun, int(peak.read_text())


def main() -> int:
    """Run the measurement; 1 if an evaluation took more than 2 GB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=FULL["extra"], help="images of the split extra")
    parser.add_argument("--folder", type=Path, default=Path("data/bench-evaluation"), help="where everything is put")
    parser.add_argument("--width", type=float, default=1.0, help="model.width of the run")
    parser.add_argument("--what", nargs="*", default=["metrics"], help="evaluations to measure")
    arguments = parser.parse_args()
    share = arguments.samples / FULL["extra"]
    for seed, (split, full) in enumerate(FULL.items()):
        begun = time.monotonic()
        write_split(arguments.folder / "data" / split, max(200, round(full * share)), seed)
        print(f"{split}: written in {time.monotonic() - begun:.0f} s", flush=True)
    run = make_run(arguments.folder, arguments.width)
    worst = 0
    for what in arguments.what:
        out = arguments.folder / f"{what}.json"
        seconds, megabytes = measure(run, out, ["--what", what])
        worst = max(worst, megabytes)
        print(
            f"{what}: {seconds:.0f} s, peak {megabytes:,} MiB",
            json.loads(out.read_text()).get("samples", ""),
            flush=True,
        )
    return int(worst > MOST_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
