"""metrics.jsonl: the records of a run, of which its summary and its report are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from ali_dist.runs.tracker import Record, Tracker
from ali_dist.storage.local import LocalStore

FOREIGN_LINES = "metrics-foreign.txt"
"""Where lines of metrics.jsonl that are no records are kept, once a run goes on."""


class JsonLinesTracker(Tracker):
    """metrics.jsonl: one line for each record, complete on disk when `log_record` returns."""

    appended_files: ClassVar[tuple[str, ...]] = ("metrics.jsonl", FOREIGN_LINES)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "metrics.jsonl"

    def forget_after(self, images: int) -> str | None:
        if not self._path.exists():
            return None
        kept, foreign = [], []
        for line in self._path.read_bytes().splitlines():
            seen = _images_of(line)
            if seen is None:  # the half line of a killed process, or not ours at all
                foreign.append(line)
            elif seen <= images:
                kept.append(line)
        if foreign:
            with self._path.with_name(FOREIGN_LINES).open("ab") as file:
                file.write(b"".join(line + b"\n" for line in foreign))
        store = LocalStore(self._path.parent)
        store.put(self._path.name, b"".join(line + b"\n" for line in kept))  # a kill leaves the old file or the new one
        if not foreign:
            return None
        lines = "1 line that is" if len(foreign) == 1 else f"{len(foreign)} lines that are"
        return f"{lines} no record of a run went from {self._path.name} to {FOREIGN_LINES}."

    def log_record(self, record: Record) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _images_of(line: bytes) -> float | None:
    """The images of a record; None for a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the former also for bytes that are no text
        return None
    images = record.get("images") if isinstance(record, dict) else None
    return images if isinstance(images, int | float) else None
