"""Checkpoints: folders that exist only when their manifest verifies.

    checkpoints/step-000000500/
        model.safetensors      weights and buffers of the three networks
        ema.safetensors        averaged encoder and decoder, if there is an average
        optimizer.safetensors  Adam's moments and step counts, by parameter name
        state.json             position, config and identity of the data; see `CheckpointMetadata`
        manifest.json          size and sha256 of every other file; written last

A save copies tensors to host memory and returns; a thread writes them. At most one save is in flight. What is saved is
never written again: a kill at any moment leaves every checkpoint that was complete before, but for pruned ones.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.storage.base import MissingObject, Store

FORMAT_VERSION = 1
_FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_ALWAYS_THERE = {"model.safetensors", "state.json"}  # in every manifest
_LATER_FIELDS = ("data", "metrics_split")  # of `CheckpointMetadata`; older checkpoints of this format lack them


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


def _folder_name(step: int) -> str:
    return f"step-{step:09d}"


def copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that later updates do not touch."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


class CheckpointStore:
    """The checkpoints of one run folder, on a disk or in S3; used by rank 0.

    Args:
        store: The run folder.
        keep: How many of the newest checkpoints are kept.
        say: Takes messages for the user.
    """

    def __init__(self, store: Store, keep: int, say: Callable[[str], None]) -> None:
        self._store = store
        self._keep = keep
        self._say = say
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, metadata: CheckpointMetadata, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take a snapshot now and write it in the background. Waits for a save that is still in flight.

        A checkpoint of the same step that is complete stays as it is, metadata and all: its tensors are the same.

        Raises:
            StorageError: The previous save failed.
        """
        self.wait()
        snapshot = {file: copy_to_host(part) for file, part in tensors.items()}
        self._writer = threading.Thread(target=self._write, args=(metadata, snapshot), name="checkpoint", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Return when nothing is in flight.

        Raises:
            StorageError: The save failed.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error = self._error
            self._error = None
            raise error

    def close(self) -> None:
        """Let a save in flight come to its end, whatever else went wrong; never raises."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, metadata: CheckpointMetadata, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        try:
            if self._is_complete(metadata.step):
                return
            folder = f"{_FOLDER}/{_folder_name(metadata.step)}"
            files = {f"{file}.safetensors": save_tensors(part) for file, part in tensors.items()}
            files["state.json"] = json.dumps(asdict(metadata), indent=1).encode()
            manifest = {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            }
            self._store.delete([f"{folder}/{_MANIFEST}"])  # a torn folder of the same step must not look complete
            for name, data in files.items():
                self._store.put(f"{folder}/{name}", data)
            self._store.put(f"{folder}/{_MANIFEST}", json.dumps(manifest, indent=1).encode())
            self._prune(metadata.step)
        except BaseException as error:  # noqa: BLE001  (handed to the training thread by wait())
            self._error = error

    def _list_folders(self) -> dict[int, list[str]]:
        """The keys in every checkpoint folder, complete or not, by step."""
        keys_by_step: dict[int, list[str]] = {}
        for info in self._store.list(_FOLDER + "/"):
            name = info.key.split("/")[1]
            if name.startswith("step-") and name[5:].isdigit():
                keys_by_step.setdefault(int(name[5:]), []).append(info.key)
        return keys_by_step

    def _prune(self, saved: int) -> None:
        """Delete all but the newest complete checkpoints, each manifest first; a failed deletion is only reported.

        Args:
            saved: The step that has just been saved. Folders of later steps are none that a run could go on from, or
                it would have: they do not count.
        """
        folders = self._list_folders()
        complete = [s for s, keys in folders.items() if s <= saved and any(key.endswith(_MANIFEST) for key in keys)]
        for step in sorted(complete)[: -self._keep]:
            try:
                self._store.delete([key for key in folders[step] if key.endswith(_MANIFEST)])
                self._store.delete([key for key in folders[step] if not key.endswith(_MANIFEST)])
            except Exception as error:
                self._say(f"The old checkpoint {_folder_name(step)} could not be deleted: {error}")

    def read_newest(self, skip: Collection[str] = ()) -> Checkpoint | None:
        """The newest complete checkpoint; None if there is none. Incomplete ones are passed over and reported.

        Args:
            skip: Files of tensors that are neither read nor verified, such as "optimizer".
        """
        for step in sorted(self._list_folders(), reverse=True):
            try:
                return self._read(step, skip)
            except _TornCheckpoint as torn:
                self._say(
                    f"Checkpoint {_folder_name(step)} in {self._store.url} is not complete ({torn}); trying an older."
                )
        return None

    def read_step(self, step: int, skip: Collection[str] = ()) -> Checkpoint:
        """The checkpoint of one step.

        Args:
            step: Updates done at the time.
            skip: Files of tensors that are neither read nor verified.

        Raises:
            InputError: There is none, or it is not complete.
        """
        folders = self._list_folders()
        if step not in folders:
            names = ", ".join(map(_folder_name, sorted(folders))) or "none"
            raise InputError(f"There is no checkpoint {_folder_name(step)} in {self._store.url}; there are: {names}.")
        try:
            return self._read(step, skip)
        except _TornCheckpoint as torn:
            raise InputError(
                f"Checkpoint {_folder_name(step)} in {self._store.url} is not complete ({torn}): choose another one, "
                "or give the run folder for its newest."
            ) from torn

    def _is_complete(self, step: int) -> bool:
        """Whether the folder of a step is there and verifies; reads all of it, one file at a time."""
        try:
            for name, entry in self._read_manifest(step).items():
                self._read_file(step, name, entry)
        except _TornCheckpoint:
            return False
        return True

    def _read(self, step: int, skip: Collection[str] = ()) -> Checkpoint:
        manifest = self._read_manifest(step)
        files = {
            name: self._read_file(step, name, entry)
            for name, entry in manifest.items()
            if name.removesuffix(".safetensors") not in skip
        }
        tensors = {n.removesuffix(".safetensors"): load_tensors(b) for n, b in files.items() if n != "state.json"}
        return Checkpoint(_read_metadata(json.loads(files["state.json"])), tensors)

    def _read_manifest(self, step: int) -> dict[str, dict[str, Any]]:
        data = self._get(step, _MANIFEST)
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError) as damaged:
            raise _TornCheckpoint("its manifest is damaged") from damaged
        if not isinstance(manifest, dict) or not manifest.keys() >= _ALWAYS_THERE:
            raise _TornCheckpoint("its manifest is damaged")
        if not all(isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in manifest.values()):
            raise _TornCheckpoint("its manifest is damaged")
        return manifest

    def _read_file(self, step: int, name: str, entry: Mapping[str, Any]) -> bytes:
        data = self._get(step, name)
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _TornCheckpoint(f"{name} does not match its manifest")
        return data

    def _get(self, step: int, name: str) -> bytes:
        try:
            return self._store.get(f"{_FOLDER}/{_folder_name(step)}/{name}")
        except MissingObject as missing:
            raise _TornCheckpoint(str(missing)) from missing


class _TornCheckpoint(Exception):  # noqa: N818
    """A folder whose manifest is missing or does not verify."""


def _read_metadata(mapping: dict[str, Any]) -> CheckpointMetadata:
    version = mapping.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"The checkpoint has format {version}, but this version of ali_dist reads format {FORMAT_VERSION}: "
            "continue with the version that wrote it, or choose another run.name."
        )
    # Checkpoints written before a field was added lack it.
    return CheckpointMetadata(
        **{
            f.name: mapping[f.name]
            for f in fields(CheckpointMetadata)
            if f.name in mapping or f.name not in _LATER_FIELDS
        }
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state by "<parameter name>.<entry>", such as "encoder.stack.layers.0.0.weight.exp_avg".

    Args:
        optimizer: The optimizer of the parameters.
        parameters: Parameters by name.
    """
    tensors = {}
    for name, parameter in parameters.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{entry}"] = value
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the state that `optimizer_tensors` has read off another one; arguments as there."""
    entries = {key.rpartition(".")[2] for key in tensors}
    for name, parameter in parameters.items():
        state = {entry: tensors[f"{name}.{entry}"] for entry in entries if f"{name}.{entry}" in tensors}
        optimizer.state[parameter] = {entry: _laid_out_like(parameter, value) for entry, value in state.items()}


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of an entry on the parameter's device, and in its layout: fused Adam reads both as they lie in memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)  # the count of updates
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
