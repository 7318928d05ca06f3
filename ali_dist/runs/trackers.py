"""Where metrics and pictures of a run are tracked while it trains: lines of JSON, and TensorBoard.

A tracker is a class with the methods of `Tracker` and a row in `TRACKERS`; rank 0 alone uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ali_dist.storage.local import LocalStore

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOREIGN_LINES = "metrics-foreign.txt"
"""Where lines of metrics.jsonl that are no records are kept, once a run goes on."""

Record = dict[str, Any]
"""What is known at one moment: `event` (train or evaluation), `images`, and values by name."""


class Tracker(Protocol):
    """Takes what a run has to tell while it trains.

    Attributes:
        appended_files: Files of the run that the tracker appends to. A run in an object store fetches them before it
            goes on.
    """

    appended_files: tuple[str, ...]

    def forget_after(self, images: int) -> str | None:
        """Drop what was recorded beyond so many images: training goes on from there and records it again.

        Returns:
            A sentence for the user, if there is something to tell.
        """

    def log_record(self, record: Record) -> None:
        """Keep one record."""

    def log_image(self, path: Path, images: int) -> None:
        """Keep a PNG, drawn after so many images; its name says what it shows."""

    def flush(self) -> None:
        """Bring everything to disk."""

    def close(self) -> None:
        """Let go of files. May be called twice."""


class JsonLinesTracker:
    """metrics.jsonl: one line for each record, complete on disk when `log_record` returns.

    Args:
        folder: The run's folder.
    """

    appended_files: tuple[str, ...] = ("metrics.jsonl", FOREIGN_LINES)

    def __init__(self, folder: Path) -> None:
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

    def log_image(self, path: Path, images: int) -> None:
        """Nothing: pictures are files of the run already."""

    def flush(self) -> None:
        """Nothing: every line is written through."""

    def close(self) -> None:
        """Nothing: no file stays open."""


def _images_of(line: bytes) -> float | None:
    """The images of a record; None for a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the former also for bytes that are no text
        return None
    images = record.get("images") if isinstance(record, dict) else None
    return images if isinstance(images, int | float) else None


def _as_text(folder: Path) -> str:
    """A path that TensorBoard can encode: in the C locale, one from the current folder may be, if the whole is not."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return os.path.relpath(folder)
    return str(folder)


class TensorBoardTracker:
    """tensorboard/: the numbers of records as scalars, pictures as they are.

    The writer is opened by the first record, because it costs a second and writes a file.

    Args:
        folder: The run's folder.
    """

    appended_files: tuple[str, ...] = ()  # each start of a run writes a file of its own

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def forget_after(self, images: int) -> None:
        """Close the writer: the one that the next record opens tells TensorBoard from where on it replaces."""
        self.close()

    def log_record(self, record: Record) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard hides what an earlier start wrote from here on.
            self._writer = SummaryWriter(_as_text(self._folder), purge_step=record["images"])
        for key, value in record.items():
            if isinstance(value, float) and key != "seconds":
                self._writer.add_scalar(f"{record['event']}/{key}", value, record["images"])

    def log_image(self, path: Path, images: int) -> None:
        if self._writer is None:
            return
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            width, height = image.size
        encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        tag = path.stem.rpartition("-")[0]
        events = self._writer._get_file_writer()  # its add_image takes pixels and would encode them once more
        events.add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), images)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"jsonl": JsonLinesTracker, "tensorboard": TensorBoardTracker}
"""How every tracker is opened on a run's folder; each run uses all of them."""
