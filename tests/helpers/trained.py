"""Tiny trained runs, plain and conditional, for tests of what is done with them afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ali_dist.config import Config
from ali_dist.training.loop import fit
from tests.helpers.arrays import write_arrays
from tests.helpers.runs import StoppingContext, tiny_config

CLASSES = ("zero", "one", "two", "three")
ATTRIBUTES = ("Smiling", "Male", "Hat")
SIDE = 8
COUNTS = {"train": 96, "test": 40}


def labelled_images(folder: Path, labels: str) -> Path:
    """Write splits train and test of random 8x8 images, 40 to a shard, with 4 classes, 3 attributes or no labels."""
    for split, count in COUNTS.items():
        rng = np.random.default_rng(count)
        x = rng.integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)
        y: Any = None
        names: dict[str, Any] = {}
        if labels == "classes":
            y, names = np.arange(count) % len(CLASSES), {"classes": CLASSES}
        elif labels == "attributes":
            y, names = rng.integers(0, 2, (count, len(ATTRIBUTES))).astype(np.float32), {"attributes": ATTRIBUTES}
        write_arrays(folder / split, x, y, **names)
    return folder


def trained(folder: Path, data: Path, name: str = "tiny", **changes: Any) -> Config:
    """Train a run of 8 updates on `data`; gives its config."""
    places = {"run__name": name, "data__url": str(data), "data__source": "none"}
    config = tiny_config(folder, **{**places, **changes})
    fit(config, StoppingContext())
    return config


def run_folder(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name
