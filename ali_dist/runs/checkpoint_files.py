"""What the files of a checkpoint hold: its metadata and tensors to bytes, and back with every doubt named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.runs.checkpoint_tensors import UnusableCheckpoint

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Of `CheckpointMetadata`; older checkpoints of this format lack them.
_LATER_FIELDS = ("data", "metrics_split", "rollbacks", "alarms", "spent", "starts")
_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("step", "images_seen", "epoch", "restarts", "world_size", "rollbacks"), int),
    **dict.fromkeys(("config", "precision", "metrics", "data", "alarms", "spent"), dict),
    **dict.fromkeys(("fingerprint", "metrics_split"), str),
    "seconds": (int, float),
    "starts": list,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMetadata:
    """What a checkpoint says beside tensors.

    Attributes:
        step: Updates done.
        images_seen: Real images used, over all ranks.
        epoch: Passes over the data begun, counted from 0.
        seconds: Training time so far, over all restarts.
        restarts: How often the run was gone on with.
        fingerprint: Fingerprint of the training data's index.
        world_size: Ranks at the time; any other number may continue.
        config: The config of the run, nested.
        precision: The loss scale, for fp16.
        metrics: Metrics of the last evaluation before the save. One that is due at the same moment comes after it, so
            that they are empty at the end of a run: metrics.jsonl and summary.json have them. In older checkpoints
            they are of the same moment.
        metrics_split: Name of the split that they are of; empty where an older checkpoint does not say it.
        data: What the networks depend on; see `DataSpec`.
        rollbacks: How often the run has gone back to an earlier checkpoint because of an alarm.
        alarms: What the watch for sick runs remembers; see `AlarmWatch.state`.
        spent: Seconds over all restarts, by what they went to; empty where an older checkpoint does not say it.
        starts: The starts that led to it, likewise; see `provenance.py`.
        format_version: Version of the whole folder.
    """

    step: int
    images_seen: int
    epoch: int
    seconds: float
    restarts: int
    fingerprint: str
    world_size: int
    config: dict[str, Any]
    precision: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_split: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    rollbacks: int = 0
    alarms: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint, read back and verified.

    Attributes:
        metadata: What it says beside tensors.
        tensors: Tensors by file (model, optimizer, ema), then by name.
    """

    metadata: CheckpointMetadata
    tensors: dict[str, dict[str, Tensor]]


def format_files(metadata: CheckpointMetadata, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    """The files of a checkpoint by name, the manifest last.

    Args:
        metadata: What it says beside tensors.
        tensors: Tensors on the CPU, by file (model, optimizer, ema), then by name.
    """
    files = {f"{file}.safetensors": save_tensors(dict(part)) for file, part in tensors.items()}
    files["state.json"] = json.dumps(asdict(metadata), indent=1).encode()
    manifest = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return files | {MANIFEST: json.dumps(manifest, indent=1).encode()}


def parse_object(name: str, data: bytes) -> dict[str, Any]:
    """Read a JSON object from a file of that name.

    Raises:
        UnusableCheckpoint: It is none.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as damaged:
        raise UnusableCheckpoint(f"{name} is damaged") from damaged
    if not isinstance(content, dict):
        raise UnusableCheckpoint(f"{name} is not an object")
    return content


def parse_tensors(name: str, data: bytes) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file of that name.

    Raises:
        UnusableCheckpoint: It cannot be read.
    """
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as damaged:
        raise UnusableCheckpoint(f"{name} cannot be read ({' '.join(str(damaged).split())})") from damaged


def read_metadata(mapping: dict[str, Any]) -> CheckpointMetadata:
    """Read the content of state.json.

    Raises:
        InputError: It is of another format.
        UnusableCheckpoint: A field is missing, or of another type.
    """
    version = mapping.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"The checkpoint has format {version}, but this version of ali_dist reads format {FORMAT_VERSION}: "
            "continue with the version that wrote it, or choose another run.name."
        )
    for f in fields(CheckpointMetadata):
        expected = _FIELD_TYPES.get(f.name, int)
        value = mapping.get(f.name)
        if f.name in mapping and (not isinstance(value, expected) or isinstance(value, bool)):
            raise UnusableCheckpoint(f"state.json has {f.name} {str(value)[:20]!r}")
        if f.name not in mapping and f.name not in _LATER_FIELDS:
            raise UnusableCheckpoint(f"state.json has no {f.name}")
    # Checkpoints written before a field was added lack it.
    return CheckpointMetadata(**{f.name: mapping[f.name] for f in fields(CheckpointMetadata) if f.name in mapping})
