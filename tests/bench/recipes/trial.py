"""One run of one variant, in a process of its own: `python -m tests.bench.recipes.trial SPEC.json RESULT.json`.

It trains and measures as `python -m ali_dist.train` does, and whatever becomes of it is written to RESULT.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.data.shards.index import load_index
from ali_dist.errors import InputError, TrainingError
from ali_dist.launchers.local import run_local
from ali_dist.model.build import build_networks
from ali_dist.storage import open_store

FINISHED, DIVERGED, REFUSED, FAILED = "finished", "diverged", "refused", "failed"
PICTURES = ("samples", "reconstructions")
PICTURE_SIDE = 480  # pixels at most
Result = dict[str, Any]


def run_trial(settings: Mapping[str, Any], pictures: str) -> Result:
    """Train and measure a variant; whatever becomes of it is in the result.

    Args:
        settings: Everything that the config is made of, by dotted name.
        pictures: Path that the copies of its pictures begin with.
    """
    began = time.monotonic()
    try:
        outcome = _train(from_mapping(settings), pictures)
    except InputError as error:
        outcome = {"status": REFUSED, "reason": str(error)}
    except (TrainingError, FloatingPointError) as error:
        outcome = {"status": DIVERGED, "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        first_line = (str(error).strip() or "no message").splitlines()[0]
        outcome = {"status": FAILED, "reason": f"{type(error).__name__}: {first_line}"[:300]}
    return outcome | {"wall_seconds": round(time.monotonic() - began, 2)}


def _train(config: Config, pictures: str) -> Result:
    folder = Path(config.run.dir) / config.run.name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off, or had other settings
    summary = run_local(config)
    assert summary is not None
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line for line in lines if line["event"] == "train"][-1]
    _copy_pictures(folder / "images", pictures)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "status": FINISHED,
        "reason": "",
        "seconds": losses["seconds"],
        "evaluation_seconds": round(summary["seconds"] - losses["seconds"], 2),
        "images_per_second": summary["images_per_second"],
        "peak_mb": round(peak / 1e6),
        "parameters": _count_parameters(config),
        "losses": {key: value for key, value in losses.items() if key.endswith("_loss")},
        "last_record": losses,
        "metrics": summary["metrics"],
        **{key: summary[key] for key in ("precision", "device", "update", "weights")},
    }


def _copy_pictures(folder: Path, target: str) -> None:
    """Copy the newest grid of each kind, made small enough to look at many of them."""
    for kind in PICTURES:
        if grids := sorted(folder.glob(f"{kind}-*.png")):
            with Image.open(grids[-1]) as grid:
                grid.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
                grid.quantize(256).save(f"{target}-{kind}.png", optimize=True)


def _count_parameters(config: Config) -> dict[str, int]:
    spec = load_index(open_store(config.data.url).child(config.data.split)).spec
    networks = build_networks(config, spec, config.run.seed)[0]
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.named_children()}


def main(arguments: Sequence[str]) -> int:
    """Run the trial of a file."""
    source, target = map(Path, arguments)
    spec = json.loads(source.read_text(encoding="utf-8"))
    result = run_trial(spec["settings"], spec["pictures"])
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    os.replace(unfinished, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
