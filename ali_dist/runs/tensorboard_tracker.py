"""TensorBoard: scalars, histograms and pictures over the images seen, the settings, and a layout to see them by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali_dist.runs.tracker import Histograms, Record, TrackedRun, Tracker, kind_of_picture, numbers_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAYOUT: dict[str, dict[str, list[str]]] = {
    "Losses": {
        "D beside E and G": ["train/d_loss", "train/g_loss"],
        "gradient penalty, of encoder pairs (R1) and of decoder pairs (R2)": ["train/penalty_q", "train/penalty_p"],
        "cycle and supervised": ["train/cycle", "train/supervised"],
    },
    "Discriminator": {
        "probability, of encoder pairs and of decoder pairs": ["train/d_q", "train/d_p"],
        "mean logit, of encoder pairs and of decoder pairs": ["distributions/mean_d_q", "distributions/mean_d_p"],
        "share of logits beyond 30": ["train/logits_beyond_30"],
    },
    "Encoder": {
        "mean sigma": ["distributions/mean_sigma"],
        "distance of q(z) from the prior, in nats": ["watch/latent_kl"],
    },
    "Machine": {
        "images a second": ["train/images_per_second"],
        "share of time that waits for data": ["train/data_wait"],
        "memory, in GiB": ["memory/host_gib", "memory/cuda_gib", "memory/cuda_peak_gib"],
        "learning rates": ["train/lr_d", "train/lr_g"],
    },
}
"""Charts of the tab Custom Scalars: the tags of each, by its title, in groups."""


class TensorBoardTracker(Tracker):
    """tensorboard/: what TensorBoard shows of a run.

    The writer is opened by the first record, because it costs a second and writes a file: one for each start.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._run: TrackedRun | None = None
        self._forgotten_after: int | None = None
        self._writer: SummaryWriter | None = None

    def start(self, run: TrackedRun) -> None:
        self._run = run

    def forget_after(self, images: int) -> None:
        """Close the writer: the one that the next record opens tells TensorBoard from where on it replaces."""
        self.close()
        self._forgotten_after = images

    def log_record(self, record: Record) -> None:
        writer = self._open(record["images"])
        for key, value in numbers_of(record).items():
            writer.add_scalar(f"{record['event']}/{key}", value, record["images"])

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        writer = self._open(images)
        for name, values in histograms.items():
            writer.add_histogram(f"distributions/{name}", values, images)

    def log_image(self, path: Path, images: int) -> None:
        if self._writer is None:
            return
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            width, height = image.size
        encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        events = self._writer._get_file_writer()  # its add_image takes pixels and would encode them once more
        events.add_summary(Summary(value=[Summary.Value(tag=kind_of_picture(path), image=encoded)]), images)

    def finish(self, summary: Record) -> None:
        """Write the settings with the final metrics, as the tab HParams compares runs by."""
        if self._run is None:
            return
        from torch.utils.tensorboard.summary import hparams

        writer = self._open(summary["images"])
        metrics = {f"final/{key}": float(value) for key, value in (summary.get("metrics") or {}).items()}
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, summary["images"])
        settings = {key: _plain(value) for key, value in self._run.settings.items()}
        # Its add_hparams would write a run of its own beside this one.
        for part in hparams(settings, metrics):
            writer._get_file_writer().add_summary(part)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, images: int) -> SummaryWriter:
        """The writer, which at first tells TensorBoard to hide what an earlier start wrote from here on."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            is_begun = self._forgotten_after is not None
            first = images if not is_begun else min(images, (self._forgotten_after or 0) + 1)
            self._writer = SummaryWriter(_as_text(self.folder / "tensorboard"), purge_step=first)
            self._writer.add_custom_scalars(_layout_of(LAYOUT))
            if self._run is not None:
                text = json.dumps(dict(self._run.settings), indent=1)
                self._writer.add_text("settings", f"```json\n{text}\n```", first)
        return self._writer


def _layout_of(groups: Mapping[str, Mapping[str, list[str]]]) -> dict[str, dict[str, list[Any]]]:
    """The form that TensorBoard takes layouts in."""
    return {
        group: {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items()}
        for group, charts in groups.items()
    }


def _plain(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else "none" if value is None else str(value)


def _as_text(folder: Path) -> str:
    """A path that TensorBoard can encode: in the C locale, one from the current folder may be, if the whole is not."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return os.path.relpath(folder)
    return str(folder)
