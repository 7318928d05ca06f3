"""The files of one run, written on the local disk and, for a run in an object store, published from there.

What cannot be uploaded ends no run: it is said once, stays on the local disk, and goes with what is published next.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ali_dist.errors import InputError, StorageError
from ali_dist.runs.json_lines import JsonLinesTracker
from ali_dist.runs.optional_packages import without_secrets
from ali_dist.runs.run_reader import read_records
from ali_dist.runs.tracker import Histograms, Record, TrackedRun
from ali_dist.runs.trackers import TrackerMemory, open_trackers, read_memory
from ali_dist.storage import Store, is_local
from ali_dist.storage.local import TEMPORARY, LocalStore

STARTS_FILE = "starts.json"
"""How often training has begun in the folder."""
_LAST_PAUSES = (5.0, 15.0)  # seconds between the last tries, at the end of a run
_MOST_FAILURES = 2  # in a row, before the other files are left for the next time


class RunWriter:
    """config.json, metrics.jsonl, tensorboard/, images/, summary.json and report.html; used by rank 0.

    Args:
        store: The run folder's storage.
        say: Takes messages for the user; from any thread.
        trackers: Names of the trackers that are told of the run, beside metrics.jsonl.

    Raises:
        InputError: There is no tracker of such a name.
    """

    def __init__(self, store: Store, say: Callable[[str], None], trackers: Sequence[str] = ()) -> None:
        self.store = store
        self._say = say
        self._is_remote = not is_local(store.url)
        self._scratch = tempfile.TemporaryDirectory(prefix="ali-dist-run-") if self._is_remote else None
        self.path = Path(self._scratch.name if self._scratch else store.url)
        self._uploading = threading.Lock()  # for what follows: uploads come from the thread of checkpoints, too
        self._published: dict[str, tuple[int, int]] = {}  # modification time and size of each file, by key
        self._failed: set[str] = set()  # keys that could not be uploaded the last time
        self._failures: list[str] = []
        self._has_given_up = False
        (self.path / "images").mkdir(parents=True, exist_ok=True)
        self._records = JsonLinesTracker(self.path)
        memory = TrackerMemory(self.path, read_memory(self.read_json)) if trackers else TrackerMemory(self.path, None)
        self._trackers = open_trackers(trackers, self.path, memory, say)
        if self._is_remote:
            appended = [name for tracker in self._trackers for name in tracker.appended_files]
            self._fetch([*self._records.appended_files, *appended])

    def _fetch(self, names: list[str]) -> None:
        """Bring files of an earlier start here, so that they can be appended to."""
        for name in names:
            if self.store.stat(name):
                (self.path / name).write_bytes(self.store.get(name))

    def read_json(self, name: str) -> Record | None:
        """A JSON file of the run; None if there is none."""
        if self.store.stat(name) is None:
            return None
        content: Record = json.loads(self.store.get(name))
        return content

    def write_json(self, name: str, content: Record) -> None:
        """Write a JSON file of the run, atomically; it is uploaded at once."""
        data = (json.dumps(content, indent=1) + "\n").encode()
        if not self._is_remote:
            self.store.put(name, data)
            return
        LocalStore(self.path).put(name, data)  # the report page reads it there
        with self._uploading:
            if not self._failed:  # else it goes with what is published next, so that an outage costs less time
                self._upload([name])

    def count_start(self, known: int) -> int:
        """Count one more start of training in this folder; the count is stored when this returns.

        A start that is killed before its first checkpoint has left nothing else that tells of it.

        Args:
            known: Starts before this one that are known otherwise.

        Returns:
            Starts before this one.
        """
        before = known
        with suppress(ValueError, RecursionError):
            content = self.read_json(STARTS_FILE)
            if isinstance(content, dict) and isinstance(content.get("starts"), int):
                before = max(before, content["starts"])
        self.write_json(STARTS_FILE, {"starts": before + 1})
        return before

    def log_record(self, record: Record) -> None:
        """Write a record, and give it to every tracker."""
        self._records.log_record(record)
        self.track_record(record)

    def track_record(self, record: Record) -> None:
        """Give a record to every tracker, and write it nowhere else."""
        for tracker in self._trackers:
            tracker.log_record(record)

    @property
    def has_trackers(self) -> bool:
        """Whether anything beside metrics.jsonl hears of the run."""
        return bool(self._trackers)

    def start_trackers(self, name: str, images: int, settings: Mapping[str, Any]) -> None:
        """Tell every tracker of a run that begins to train, or goes on.

        Args:
            name: The run's name.
            images: Images seen so far.
            settings: By dotted name; trackers get them without secrets.
        """
        plain = {key: without_secrets(value) if isinstance(value, str) else value for key, value in settings.items()}
        for tracker in self._trackers:
            tracker.start(TrackedRun(name, images, plain, say=self._say))

    def finish_trackers(self, summary: Record) -> None:
        """Tell every tracker how training ends, and wait until they have everything, a minute at most."""
        for tracker in self._trackers:
            tracker.finish(summary)

    def tracker_failures(self) -> dict[str, Record]:
        """What trackers failed at in this start, by name; empty where nothing went wrong."""
        records = {tracker.guard.name: tracker.guard.to_record() for tracker in self._trackers}
        return {name: record for name, record in records.items() if record}

    def track_histograms(self, histograms: Histograms, images: int) -> None:
        """Give distributions of values to every tracker."""
        for tracker in self._trackers:
            tracker.log_histograms(histograms, images)

    def read_records(self) -> list[Record]:
        """All records so far, of earlier starts, too."""
        path = self.path / "metrics.jsonl"
        return [dict(record) for record in read_records(path, [])] if path.exists() else []

    def log_image(self, path: Path, images: int) -> None:
        """Give a PNG of the run to every tracker."""
        for tracker in self._trackers:
            tracker.log_image(path, images)

    def forget_after(self, images: int) -> list[str]:
        """Drop records that lie beyond a checkpoint which training goes on from: they will be written again.

        Returns:
            Sentences for the user.
        """
        notes = [self._records.forget_after(images), *(tracker.forget_after(images) for tracker in self._trackers)]
        return [note for note in notes if note]

    def flush(self) -> None:
        """Bring all records to the local disk."""
        for tracker in self._trackers:
            tracker.flush()

    def upload(self) -> None:
        """Bring new and changed files to the store, as they are on the local disk; a local run is there already.

        Never fails, and may be called from any thread.
        """
        if self._is_remote:
            with self._uploading:
                self._upload(self._unpublished())

    def publish(self, *, is_last: bool = False) -> None:
        """Bring everything to the store.

        Args:
            is_last: Whether what cannot be uploaded is tried again here, because nothing comes after it.
        """
        self.flush()
        self.upload()
        for pause in _LAST_PAUSES if is_last else ():
            if not self._failed:
                break
            time.sleep(pause)
            self.upload()
        self._has_given_up = is_last and bool(self._failed)

    def take_failures(self) -> list[str]:
        """Why uploads failed: a reason for each time that they began to, since the last call."""
        with self._uploading:
            taken, self._failures = self._failures, []
        return taken

    def _unpublished(self) -> list[str]:
        """Keys of files that are new or changed; those that failed the last time come last."""
        paths = [p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()]
        keys = [path.relative_to(self.path).as_posix() for path in paths if not path.name.startswith(TEMPORARY)]
        changed = [key for key in keys if self._published.get(key) != self._version_of(key)]
        return sorted(changed, key=lambda key: (key in self._failed, key))

    def _version_of(self, key: str) -> tuple[int, int] | None:
        """None where it is gone again: a tracker's library tidies up while we look."""
        try:
            status = (self.path / key).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size

    def _upload(self, keys: list[str]) -> None:
        """Upload files; after failures in a row, the others are left for the next time."""
        in_a_row = 0
        for key in keys:
            version = self._version_of(key)
            if version is None:
                continue
            try:
                self.store.put(key, self.path / key)
            except Exception as error:
                self._note_failure(key, error)
                in_a_row += 1
                if in_a_row >= _MOST_FAILURES:
                    return
            else:
                in_a_row = 0
                self._published[key] = version
                self._note_success(key)

    def _note_failure(self, key: str, error: Exception) -> None:
        if not self._failed:
            is_told = isinstance(error, InputError | StorageError)
            reason = " ".join((str(error) if is_told else f"{type(error).__name__}: {error}").split()).rstrip(".")
            self._failures.append(reason)
            self._say(
                f"{key} could not be uploaded to {self.store.url} ({reason}); that ends no run, and it is tried again "
                "with what is uploaded next."
            )
        self._failed.add(key)

    def _note_success(self, key: str) -> None:
        if key in self._failed:
            self._failed.discard(key)
            if not self._failed:
                self._say(f"What could not be uploaded is in {self.store.url} now.")

    def close(self) -> None:
        """Publish what is left and free the scratch folder; what cannot be uploaded stays in another one."""
        for tracker in self._trackers:
            tracker.close()
        if self._scratch is None:
            return
        if not self._has_given_up:
            self.upload()
        if left := self._unpublished():
            try:
                self._keep(left)
            except OSError as error:  # a run does not fail for what it could not keep either
                self._say(f"{', '.join(left)} could neither be uploaded nor kept on this machine: {error}")
        self._scratch.cleanup()

    def _keep(self, keys: list[str]) -> None:
        """Copy files to a folder that stays, and say where it is."""
        folder = Path(tempfile.mkdtemp(prefix="ali-dist-unsaved-"))
        for key in keys:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.path / key, folder / key)
        others = f" and {len(keys) - 1} more files" if len(keys) > 1 else ""
        self._say(
            f"{keys[0]}{others} could not be uploaded: copy what is in {folder} to {self.store.url}, where it belongs."
        )
