"""Figures of matplotlib, made without pyplot (no global state, no window, safe in a thread), as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ali_dist.loading_note import collector_paused

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figure(width: float, height: float) -> Figure:
    """Make a white figure of so many inches, whose parts make room for each other."""
    with collector_paused():
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a figure as a PNG without an alpha channel; `Figure.savefig` would draw all of it twice.

    Args:
        figure: From `make_figure`.
        path: Where the file goes; its folder is made.
        dpi: Pixels to an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, compress_level=1)
