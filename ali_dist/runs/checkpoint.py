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
import re
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ali_dist.errors import InputError, StorageError
from ali_dist.runs.checkpoint_tensors import UnusableCheckpoint
from ali_dist.runs.lease import Lease
from ali_dist.storage.base import MissingObject, Store

FORMAT_VERSION = 1
_FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_ALWAYS_THERE = {"model.safetensors", "state.json"}  # in every manifest
_FOLDER_NAME = re.compile(r"step-(\d{9,18})", re.ASCII)
_FILE_NAME = re.compile(r"state\.json|[a-z]+\.safetensors")
# Of `CheckpointMetadata`; older checkpoints of this format lack them.
_LATER_FIELDS = ("data", "metrics_split", "rollbacks", "alarms")
_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("step", "images_seen", "epoch", "restarts", "world_size", "rollbacks"), int),
    **dict.fromkeys(("config", "precision", "metrics", "data", "alarms"), dict),
    **dict.fromkeys(("fingerprint", "metrics_split"), str),
    "seconds": (int, float),
}


FileSizes = Mapping[str, int]
"""Sizes in bytes of the files in a checkpoint's folder, by name."""


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
        lease: The right to write the run; None for who only reads.
    """

    def __init__(self, store: Store, keep: int, say: Callable[[str], None], lease: Lease | None = None) -> None:
        self._store = store
        self._keep = keep
        self._say = say
        self._lease = lease
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._passed_over: set[int] = set()  # steps whose checkpoints are whole, perhaps, but of no use
        self.undeleted: set[int] = set()  # steps whose old checkpoints could not be deleted

    def save(
        self, metadata: CheckpointMetadata, tensors: Mapping[str, Mapping[str, Tensor]], *, spare: int | None = None
    ) -> None:
        """Take a snapshot now and write it in the background. Waits for a save that is still in flight.

        A checkpoint of the same step that is complete stays as it is, metadata and all: its tensors are the same.

        Args:
            metadata: What it says beside tensors.
            tensors: Tensors by file, then by name.
            spare: A step: of the checkpoints up to it, the newest is kept beside the newest of all. None: of none.

        Raises:
            StorageError: The previous save failed.
            TrainingError: Another process has taken the run over.
        """
        self.wait()
        snapshot = {file: copy_to_host(part) for file, part in tensors.items()}
        self._writer = threading.Thread(
            target=self._write, args=(metadata, snapshot, spare), name="checkpoint", daemon=True
        )
        self._writer.start()

    def is_idle(self) -> bool:
        """Whether nothing is in flight, and the last save has not failed."""
        return self._error is None and (self._writer is None or not self._writer.is_alive())

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
        if len(self.undeleted) > 1:  # the first one has been said
            self._say(f"{len(self.undeleted)} old checkpoints in {self._store.url} could not be deleted.")

    def _write(self, metadata: CheckpointMetadata, tensors: Mapping[str, dict[str, Tensor]], spare: int | None) -> None:
        try:
            if metadata.step not in self._passed_over and self._is_complete(metadata.step):
                return
            folder = f"{_FOLDER}/{_folder_name(metadata.step)}"
            files = {f"{file}.safetensors": save_tensors(part) for file, part in tensors.items()}
            files["state.json"] = json.dumps(asdict(metadata), indent=1).encode()
            manifest = {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            }
            self._take_manifest_away(metadata.step)
            for name, data in files.items():
                self._store.put(f"{folder}/{name}", data)
            if self._lease is not None:
                self._lease.check()
            self._store.put(f"{folder}/{_MANIFEST}", json.dumps(manifest, indent=1).encode())
            self._prune(metadata.step, spare)
        except BaseException as error:  # noqa: BLE001  (handed to the training thread by wait())
            self._error = error

    def _list_folders(self) -> dict[int, dict[str, int]]:
        """The files in every checkpoint folder, complete or not, by step."""
        files_by_step: dict[int, dict[str, int]] = {}
        for info in self._store.list(_FOLDER + "/"):
            _, folder, name = info.key.split("/", 2) if info.key.count("/") > 1 else ("", "", "")
            if match := _FOLDER_NAME.fullmatch(folder):
                files_by_step.setdefault(int(match[1]), {})[name] = info.size
        return files_by_step

    def has_until(self, step: int) -> bool:
        """Whether there is a checkpoint of that step or an earlier one, by the look of it."""
        return any(saved <= step and _MANIFEST in files for saved, files in self._list_folders().items())

    def discard_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, so that no start goes on from them; no save may be in flight.

        Raises:
            StorageError, InputError: One could neither be deleted nor made useless.
        """
        for later, files in self._list_folders().items():
            if later <= step:
                continue
            self._take_manifest_away(later)
            with suppress(InputError, StorageError):  # what is left is torn, and counts for nothing
                folder = f"{_FOLDER}/{_folder_name(later)}"
                self._store.delete([f"{folder}/{name}" for name in files])

    def _prune(self, saved: int, spare: int | None = None) -> None:
        """Delete all but the newest complete checkpoints, each manifest first.

        A run does not end because it may not delete: an old checkpoint that stays is as true as it was. The first
        failure is said, all are counted in `undeleted`, and the next start of the run tries again.

        Args:
            saved: The step that has just been saved. Folders of later steps are none that a run could go on from, or
                it would have: they do not count.
            spare: See `save`.
        """
        try:
            folders = self._list_folders()
        except Exception as error:
            self._say(f"Old checkpoints could not be listed, so none are deleted before the next one is saved: {error}")
            return
        complete = [s for s, files in folders.items() if s <= saved and _MANIFEST in files]
        spared = max((step for step in complete if spare is not None and step <= spare), default=None)
        for step in sorted(complete)[: -self._keep]:
            if step in self.undeleted or step == spared:
                continue
            try:
                self._store.delete([f"{_FOLDER}/{_folder_name(step)}/{_MANIFEST}"])
                others = [name for name in folders[step] if name != _MANIFEST]
                self._store.delete([f"{_FOLDER}/{_folder_name(step)}/{name}" for name in others])
            except Exception as error:
                if not self.undeleted:
                    self._say(
                        f"The old checkpoint {_folder_name(step)} could not be deleted; training goes on, and further "
                        f"ones that have to stay are counted: {error}"
                    )
                self.undeleted.add(step)

    def _take_manifest_away(self, step: int) -> None:
        """See to it that a torn folder of this step does not look complete while it is written again."""
        if _MANIFEST not in self._list_folders().get(step, {}):
            return
        key = f"{_FOLDER}/{_folder_name(step)}/{_MANIFEST}"
        try:
            self._store.delete([key])
        except (InputError, StorageError):  # it may be replaced where it may not be deleted, and `{}` counts as torn
            self._store.put(key, b"{}")

    def read_newest(
        self, skip: Collection[str] = (), check: Callable[[Checkpoint], None] = lambda checkpoint: None
    ) -> Checkpoint | None:
        """The newest checkpoint that can be used; None if none was ever complete. Others are passed over and named.

        Args:
            skip: Files of tensors that are neither read nor verified, such as "optimizer".
            check: Looks at a checkpoint that is whole, and raises UnusableCheckpoint if it will not do.

        Raises:
            InputError: There are checkpoints, and none of them can be used: going on without one would begin anew.
        """
        folders = self._list_folders()
        passed_over = []
        for step in sorted(folders, reverse=True):
            try:
                checkpoint = self._read(step, folders[step], skip)
                check(checkpoint)
                return checkpoint
            except UnusableCheckpoint as unusable:
                self._say(
                    f"Checkpoint {_folder_name(step)} in {self._store.url} cannot be used ({unusable}); trying an "
                    "older one."
                )
                self._passed_over.add(step)
                if _MANIFEST in folders[step]:
                    passed_over.append(f"{_folder_name(step)} ({unusable})")
        if passed_over:
            raise InputError(
                f"None of the checkpoints in {self._store.url} can be used: {'; '.join(passed_over)}. Restore one from "
                "a copy, or remove the folder checkpoints to begin anew."
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
            return self._read(step, folders[step], skip)
        except UnusableCheckpoint as unusable:
            raise InputError(
                f"Checkpoint {_folder_name(step)} in {self._store.url} cannot be used ({unusable}): choose another "
                "one, or give the run folder for its newest."
            ) from unusable

    def _is_complete(self, step: int) -> bool:
        """Whether the folder of a step is there and verifies; reads all of it, one file at a time."""
        files = self._list_folders().get(step, {})
        try:
            for name, entry in self._read_manifest(step, files).items():
                self._read_file(step, name, entry, files)
        except UnusableCheckpoint:
            return False
        return True

    def _read(self, step: int, listed: FileSizes, skip: Collection[str]) -> Checkpoint:
        manifest = self._read_manifest(step, listed)
        files = {
            name: self._read_file(step, name, entry, listed)
            for name, entry in manifest.items()
            if name.removesuffix(".safetensors") not in skip
        }
        metadata = _read_metadata(_parse_object("state.json", files.pop("state.json")))
        if metadata.step != step:
            raise UnusableCheckpoint(f"state.json is of update {metadata.step}")
        return Checkpoint(metadata, {n.removesuffix(".safetensors"): _parse_tensors(n, b) for n, b in files.items()})

    def _read_manifest(self, step: int, listed: FileSizes) -> dict[str, dict[str, Any]]:
        manifest = _parse_object(_MANIFEST, self._get(step, _MANIFEST, listed))
        if not manifest.keys() >= _ALWAYS_THERE:
            raise UnusableCheckpoint(f"{_MANIFEST} does not list {' and '.join(sorted(_ALWAYS_THERE))}")
        if not all(_FILE_NAME.fullmatch(name) for name in manifest):
            raise UnusableCheckpoint(f"{_MANIFEST} lists files of other names")
        if not all(isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in manifest.values()):
            raise UnusableCheckpoint(f"{_MANIFEST} lacks sizes or hashes")
        return manifest

    def _read_file(self, step: int, name: str, entry: Mapping[str, Any], listed: FileSizes) -> bytes:
        if listed.get(name, entry["bytes"]) != entry["bytes"]:  # nothing is read that may be endless
            raise UnusableCheckpoint(f"{name} does not match its manifest")
        data = self._get(step, name, listed)
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise UnusableCheckpoint(f"{name} does not match its manifest")
        return data

    def _get(self, step: int, name: str, listed: FileSizes) -> bytes:
        if name not in listed:  # what is no plain file is not listed either
            raise UnusableCheckpoint(f"there is no {name}")
        try:
            return self._store.get(f"{_FOLDER}/{_folder_name(step)}/{name}")
        except MissingObject as missing:
            raise UnusableCheckpoint(str(missing).rstrip(".")) from missing


def _parse_object(name: str, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as damaged:
        raise UnusableCheckpoint(f"{name} is damaged") from damaged
    if not isinstance(content, dict):
        raise UnusableCheckpoint(f"{name} is not an object")
    return content


def _parse_tensors(name: str, data: bytes) -> dict[str, Tensor]:
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as damaged:
        raise UnusableCheckpoint(f"{name} cannot be read ({' '.join(str(damaged).split())})") from damaged


def _read_metadata(mapping: dict[str, Any]) -> CheckpointMetadata:
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
