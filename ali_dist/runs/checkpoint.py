"""Checkpoints: folders that exist only when their manifest verifies.

    checkpoints/step-000000500/
        model.safetensors      weights and buffers of the three networks
        ema.safetensors        averaged encoder and decoder, if there is an average
        optimizer.safetensors  Adam's moments and step counts, by parameter name
        state.json             position, config and identity of the data; see `CheckpointMetadata`
        manifest.json          size and sha256 of every other file; written last

A save copies tensors to host memory and returns; a thread writes them (`background_saver.py`). At most one save is in
flight. What is saved is never written again: a kill at any moment leaves every checkpoint that was complete before, but
for pruned ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ali_dist.errors import InputError, StorageError
from ali_dist.runs.background_saver import BackgroundSaver
from ali_dist.runs.checkpoint_files import (
    MANIFEST,
    Checkpoint,
    CheckpointMetadata,
    format_files,
    parse_object,
    parse_tensors,
    read_metadata,
)
from ali_dist.runs.checkpoint_tensors import UnusableCheckpoint
from ali_dist.runs.lease import Lease
from ali_dist.storage.base import MissingObject, Store

_FOLDER = "checkpoints"
_ALWAYS_THERE = {"model.safetensors", "state.json"}  # in every manifest
_FOLDER_NAME = re.compile(r"step-(\d{9,18})", re.ASCII)
_FILE_NAME = re.compile(r"state\.json|[a-z]+\.safetensors")

FileSizes = Mapping[str, int]
"""Sizes in bytes of the files in a checkpoint's folder, by name."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What `CheckpointStore.save` was given, with the tensors in host memory."""

    metadata: CheckpointMetadata
    tensors: Mapping[str, dict[str, Tensor]]
    spare: int | None
    first: Callable[[], None] | None
    then: Callable[[], None] | None

    @property
    def folder(self) -> str:
        return f"{_FOLDER}/{_folder_name(self.metadata.step)}"

    def to_files(self) -> dict[str, bytes]:
        """The files by name, the manifest last."""
        return format_files(self.metadata, self.tensors)


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
        outage_seconds: How long nothing may be saved before a run ends; 0: the first failure ends it.
    """

    def __init__(
        self,
        store: Store,
        keep: int,
        say: Callable[[str], None],
        lease: Lease | None = None,
        *,
        outage_seconds: float = 0.0,
    ) -> None:
        self._store = store
        self._keep = keep
        self._say = say
        self._lease = lease
        self._saver: BackgroundSaver[_Snapshot] = BackgroundSaver(
            url=store.url,
            write=self._write,
            write_files=_write_files,
            name_of=lambda snapshot: f"the checkpoint at {snapshot.metadata.images_seen:,} images",
            outage_seconds=outage_seconds,
            say=say,
        )
        self._passed_over: set[int] = set()  # steps whose checkpoints are whole, perhaps, but of no use
        self._torn: set[int] = set()  # steps of which a failed try may have left a part
        self.undeleted: set[int] = set()  # steps whose old checkpoints could not be deleted
        # Of the saver:
        self.is_idle = self._saver.is_idle
        self.has_failed = self._saver.has_failed
        self.take_failures = self._saver.take_failures
        self.wait_for_turn = self._saver.wait_for_turn
        self.wait = self._saver.wait

    def save(
        self,
        metadata: CheckpointMetadata,
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        spare: int | None = None,
        first: Callable[[], None] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Take a snapshot now and write it in the background.

        The caller waits for its turn first (`wait_for_turn`); a save that is tried again during an outage is replaced.
        That an earlier save has failed is raised by the waits, after which the ranks vote, and not here, where rank 0
        is alone.

        A checkpoint of the same step that is complete stays as it is, metadata and all: its tensors are the same.

        Args:
            metadata: What it says beside tensors.
            tensors: Tensors by file, then by name.
            spare: A step: of the checkpoints up to it, the newest is kept beside the newest of all. None: of none.
            first: Called by the thread that writes, before the checkpoint is complete.
            then: Called by it when the checkpoint is complete.
        """
        snapshot = {file: copy_to_host(part) for file, part in tensors.items()}
        self._saver.submit(_Snapshot(metadata, snapshot, spare, first, then))

    def close(self) -> None:
        """Let a save in flight come to its end, whatever else went wrong; never raises."""
        self._saver.close()
        if len(self.undeleted) > 1:  # the first one has been said
            self._say(f"{len(self.undeleted)} old checkpoints in {self._store.url} could not be deleted.")

    def _write(self, snapshot: _Snapshot) -> None:
        step = snapshot.metadata.step
        is_complete = step not in self._passed_over and self._is_complete(step)
        if is_complete and step not in self._torn:
            return
        if not is_complete:  # else an earlier try has succeeded without hearing of it
            self._write_all(snapshot)
        self._torn.discard(step)
        if snapshot.then is not None:
            snapshot.then()
        self._prune(step, snapshot.spare)

    def _write_all(self, snapshot: _Snapshot) -> None:
        self._take_manifest_away(snapshot.metadata.step)
        self._torn.add(snapshot.metadata.step)
        for name, data in snapshot.to_files().items():
            if name == MANIFEST:
                self._complete(snapshot, data)
            else:
                self._store.put(f"{snapshot.folder}/{name}", data)

    def _complete(self, snapshot: _Snapshot, manifest: bytes) -> None:
        """Write the manifest, if the run is still this process's."""
        if snapshot.first is not None:
            self._check_lease()
            snapshot.first()
        self._check_lease()
        self._store.put(f"{snapshot.folder}/{MANIFEST}", manifest)

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

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
        return any(saved <= step and MANIFEST in files for saved, files in self._list_folders().items())

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
        self._delete_torn(folders)
        complete = [s for s, files in folders.items() if s <= saved and MANIFEST in files]
        spared = max((step for step in complete if spare is not None and step <= spare), default=None)
        for step in sorted(complete)[: -self._keep]:
            if step in self.undeleted or step == spared:
                continue
            try:
                self._store.delete([f"{_FOLDER}/{_folder_name(step)}/{MANIFEST}"])
                others = [name for name in folders[step] if name != MANIFEST]
                self._store.delete([f"{_FOLDER}/{_folder_name(step)}/{name}" for name in others])
            except Exception as error:
                if not self.undeleted:
                    self._say(
                        f"The old checkpoint {_folder_name(step)} could not be deleted; training goes on, and further "
                        f"ones that have to stay are counted: {error}"
                    )
                self.undeleted.add(step)

    def _delete_torn(self, folders: Mapping[int, FileSizes]) -> None:
        """Delete what failed tries have left of checkpoints that newer ones have replaced; what stays is torn."""
        for step in [step for step in self._torn if MANIFEST not in folders.get(step, {})]:
            self._torn.discard(step)
            with suppress(InputError, StorageError):
                self._store.delete([f"{_FOLDER}/{_folder_name(step)}/{name}" for name in folders.get(step, {})])

    def _take_manifest_away(self, step: int) -> None:
        """See to it that a torn folder of this step does not look complete while it is written again."""
        if MANIFEST not in self._list_folders().get(step, {}):
            return
        key = f"{_FOLDER}/{_folder_name(step)}/{MANIFEST}"
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
                if MANIFEST in folders[step]:
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
        metadata = read_metadata(parse_object("state.json", files.pop("state.json")))
        if metadata.step != step:
            raise UnusableCheckpoint(f"state.json is of update {metadata.step}")
        return Checkpoint(metadata, {n.removesuffix(".safetensors"): parse_tensors(n, b) for n, b in files.items()})

    def _read_manifest(self, step: int, listed: FileSizes) -> dict[str, dict[str, Any]]:
        manifest = parse_object(MANIFEST, self._get(step, MANIFEST, listed))
        if not manifest.keys() >= _ALWAYS_THERE:
            raise UnusableCheckpoint(f"{MANIFEST} does not list {' and '.join(sorted(_ALWAYS_THERE))}")
        if not all(_FILE_NAME.fullmatch(name) for name in manifest):
            raise UnusableCheckpoint(f"{MANIFEST} lists files of other names")
        if not all(isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in manifest.values()):
            raise UnusableCheckpoint(f"{MANIFEST} lacks sizes or hashes")
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


def _write_files(store: Store, snapshot: _Snapshot) -> None:
    """Write a checkpoint to another store, where nothing is in its way."""
    for name, data in snapshot.to_files().items():
        store.put(f"{snapshot.folder}/{name}", data)
