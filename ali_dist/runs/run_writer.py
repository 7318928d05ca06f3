"""The files of one run, written on the local disk and, for a run in an object store, published from there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ali_dist.runs.run_reader import read_records
from ali_dist.runs.trackers import TRACKERS, Record
from ali_dist.storage import Store, is_local


class RunWriter:
    """config.json, metrics.jsonl, tensorboard/, images/, summary.json and report.html; used by rank 0.

    Args:
        store: The run folder's storage.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._is_remote = not is_local(store.url)
        self._scratch = tempfile.TemporaryDirectory(prefix="ali-dist-run-") if self._is_remote else None
        self.path = Path(self._scratch.name if self._scratch else store.url)
        self._published: dict[str, tuple[int, int]] = {}  # modification time and size of each file, by key
        (self.path / "images").mkdir(parents=True, exist_ok=True)
        self._trackers = [open_tracker(self.path) for open_tracker in TRACKERS.values()]
        if self._is_remote:
            self._fetch([name for tracker in self._trackers for name in tracker.appended_files])

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
        """Write a JSON file of the run, atomically."""
        self.store.put(name, (json.dumps(content, indent=1) + "\n").encode())
        if self._is_remote:  # the report page reads the local copy
            (self.path / name).write_text(json.dumps(content), encoding="utf-8")

    def log_record(self, record: Record) -> None:
        """Give a record to every tracker."""
        for tracker in self._trackers:
            tracker.log_record(record)

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
        return [note for tracker in self._trackers if (note := tracker.forget_after(images))]

    def publish(self) -> None:
        """Bring new and changed files to the store; a local run is there already."""
        for tracker in self._trackers:
            tracker.flush()
        if not self._is_remote:
            return
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            status = path.stat()
            key = path.relative_to(self.path).as_posix()
            version = (status.st_mtime_ns, status.st_size)
            if self._published.get(key) != version:
                self.store.put(key, path)
                self._published[key] = version

    def close(self) -> None:
        """Publish what is left and free the scratch folder."""
        for tracker in self._trackers:
            tracker.close()
        self.publish()
        if self._scratch is not None:
            self._scratch.cleanup()
