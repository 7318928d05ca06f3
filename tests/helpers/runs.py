"""Small real runs for tests: a config on disk, its ledger of sample ids, and its final weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.distributed import World
from ali_dist.launchers.local import LocalContext

TINY = {
    "run.images": 192,
    "data.global_batch_size": 24,
    "data.lanes": 6,
    "model.width": 0.25,
    "model.latent_size": 4,
    "report.evaluation": "none",
    "report.log_every": 48,
    "report.checkpoint_every": 96,
    "scale.workers": "0",
    "scale.device": "cpu",
}


def tiny(folder: Path, preset: str = "digits", **changes: Any) -> Config:
    """A run of 8 updates on small networks; names in `changes` use `__` for the dot."""
    places = {"run.name": "tiny", "run.dir": str(folder / "runs"), "data.url": str(folder / "data")}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return from_mapping(load_preset(preset), TINY, places, named)


def arguments(config: Config) -> list[str]:
    """The command line that gives `config`."""
    from ali_dist.config.loading import flatten_mapping, setting_infos

    values = dict(flatten_mapping(config.to_mapping()))
    return [f"--{key}={'none' if values[key] is None else values[key]}" for key in setting_infos()]


class StoppingContext(LocalContext):
    """Asks for a stop before a given update; a rank of any world."""

    def __init__(self, world: World | None = None, stop_before: int | None = None) -> None:
        super().__init__(world or World(), torch.device("cpu"))
        self._left = stop_before

    def stop_requested(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0


def newest_checkpoint(config: Config) -> Path:
    """Folder of the newest checkpoint of a local run."""
    return max((Path(config.run.dir) / config.run.name / "checkpoints").iterdir())


def weights(config: Config, file: str = "model") -> dict[str, Tensor]:
    """Tensors of the newest checkpoint."""
    return load_file(newest_checkpoint(config) / f"{file}.safetensors")


def assert_same(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, f"{len(different)} of {len(mine)} tensors differ, first {different[0]}"


def relative_difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors as one vector.

    Not the largest entry: where rounding turns one activation's sign, a rectifier gives some weights another step.
    """
    assert mine.keys() == theirs.keys()
    a, b = (torch.cat([part[name].double().flatten() for name in mine]) for part in (mine, theirs))
    return float((a - b).norm() / a.norm())
