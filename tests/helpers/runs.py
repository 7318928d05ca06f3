"""Small real runs for tests: their configs, their contexts, and the weights that they leave."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from ali_dist.config import Config
from ali_dist.config.loading import flatten_mapping, from_mapping, load_preset, setting_infos
from ali_dist.data.shards.index import Index
from ali_dist.distributed import World
from ali_dist.launchers.local import LocalContext

TINY_SETTINGS = {
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


def tiny_config(folder: Path, preset: str = "digits", **changes: Any) -> Config:
    """Configure a run of 8 updates on small networks; names in `changes` have `__` where settings have a dot."""
    places = {"run.name": "tiny", "run.dir": str(folder / "runs"), "data.url": str(folder / "data")}
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    return from_mapping(load_preset(preset), TINY_SETTINGS, places, settings)


def index_without_shards(
    shape: tuple[int, ...], *, classes: tuple[str, ...] = (), attributes: tuple[str, ...] = ()
) -> Index:
    """Make an index of no samples: networks need only the shape, the names of the labels, and a mean.

    Args:
        shape: Shape of a stored sample.
        classes: Names of the classes, where the samples have some.
        attributes: Names of the attributes, where the samples have some.
    """
    per_channel = (0.5,) * shape[0]
    return Index(
        encoding="raw",
        dtype="uint8",
        shape=shape,
        shards=(),
        mean=per_channel,
        std=per_channel,
        pixel_mean=(0.5,) * math.prod(shape),
        classes=classes,
        attributes=attributes,
    )


def command_line_for(config: Config) -> list[str]:
    """List the options that make up `config`."""
    values = dict(flatten_mapping(config.to_mapping()))
    return [f"--{key}={'none' if values[key] is None else values[key]}" for key in setting_infos()]


class StoppingContext(LocalContext):
    """A rank of any world that is asked to stop before a given update."""

    def __init__(self, world: World | None = None, stop_before: int | None = None) -> None:
        super().__init__(world or World(), torch.device("cpu"))
        self._updates_left = stop_before

    def stop_requested(self) -> bool:
        if self._updates_left is None:
            return False
        self._updates_left -= 1
        return self._updates_left < 0


def find_newest_checkpoint(config: Config) -> Path:
    """Find the folder of the newest checkpoint of a local run."""
    return max((Path(config.run.dir) / config.run.name / "checkpoints").iterdir())


def rewrite_state(run_folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state.json of a run's newest checkpoint, and its manifest, so that it verifies."""
    newest = max((run_folder / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    change(state)
    _rewrite_file(newest, "state.json", json.dumps(state).encode())


def rewrite_tensors(run_folder: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change tensors of a run's newest checkpoint, and its manifest, so that it verifies."""
    newest = max((run_folder / "checkpoints").iterdir())
    tensors = load_file(newest / f"{file}.safetensors")
    change(tensors)
    _rewrite_file(newest, f"{file}.safetensors", save_tensors(tensors))


def _rewrite_file(checkpoint: Path, name: str, data: bytes) -> None:
    (checkpoint / name).write_bytes(data)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def load_weights(config: Config, file: str = "model") -> dict[str, Tensor]:
    """Load the tensors of a file of the newest checkpoint."""
    return load_file(find_newest_checkpoint(config) / f"{file}.safetensors")


def assert_bitwise_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Assert that two sets of tensors agree to the last bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} tensors differ, first {different[0]}"


def relative_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm, of all tensors as one vector.

    The largest entry would not do: where rounding turns the sign of one activation, a rectifier gives some weights
    another step.
    """
    assert first.keys() == second.keys()
    a, b = (torch.cat([tensors[name].double().flatten() for name in first]) for tensors in (first, second))
    return float((a - b).norm() / a.norm())
