"""The files of one run, written on the local disk and, for an s3:// run, published from there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali_dist.storage.base import Store

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = dict[str, Any]


class RunWriter:
    """config.json, metrics.jsonl, tensorboard/, images/, summary.json and report.html; used by rank 0.

    Args:
        store: The run folder's storage.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._remote = store.url.startswith("s3://")
        self._scratch = tempfile.TemporaryDirectory(prefix="ali-dist-run-") if self._remote else None
        self.path = Path(self._scratch.name if self._scratch else store.url)
        self._published: dict[str, tuple[int, int]] = {}
        self._writer: SummaryWriter | None = None
        (self.path / "images").mkdir(parents=True, exist_ok=True)
        if self._remote and store.stat("metrics.jsonl"):
            (self.path / "metrics.jsonl").write_bytes(store.get("metrics.jsonl"))

    def read_json(self, name: str) -> Record | None:
        """A JSON file of the run; None if there is none."""
        if self.store.stat(name) is None:
            return None
        loaded: Record = json.loads(self.store.get(name))
        return loaded

    def write_json(self, name: str, content: Record) -> None:
        """Write a JSON file of the run, atomically."""
        self.store.put(name, (json.dumps(content, indent=1) + "\n").encode())
        if self._remote:  # the report page reads the local copy
            (self.path / name).write_text(json.dumps(content), encoding="utf-8")

    def append(self, record: Record) -> None:
        """Add one line to metrics.jsonl and its numbers to TensorBoard."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # costs a second; only rank 0 needs it

            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=record["images"])
        for key, value in record.items():
            if isinstance(value, float) and key != "seconds":
                self._writer.add_scalar(f"{record['event']}/{key}", value, record["images"])

    def forget_after(self, images: int) -> None:
        """Drop metrics that lie beyond a checkpoint which training goes on from: they will be written again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["images"] <= images:
                    kept.append(line)
            except (ValueError, KeyError):  # the half line of a killed process
                continue
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def add_image(self, path: Path, images: int) -> None:
        """Show a PNG of the run in TensorBoard, as it is."""
        if self._writer is None:
            return
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            width, height = image.size
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        tag = path.stem.rpartition("-")[0]
        events = self._writer._get_file_writer()  # its add_image takes pixels and would encode them once more
        events.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), images)

    def publish(self) -> None:
        """Bring new and changed files to the store; does nothing for a local run."""
        if self._writer is not None:
            self._writer.flush()
        if not self._remote:
            return
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            stat, key = path.stat(), path.relative_to(self.path).as_posix()
            if self._published.get(key) != (stat.st_mtime_ns, stat.st_size):
                self.store.put(key, path)
                self._published[key] = (stat.st_mtime_ns, stat.st_size)

    def close(self) -> None:
        """Publish what is left and free the scratch folder."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.publish()
        if self._scratch is not None:
            self._scratch.cleanup()
