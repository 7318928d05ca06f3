"""Tars as any tool might write them, and images to fill them with."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Members = list[tuple[str, bytes]]


def write_foreign_tar(path: Path, members: Members, mode: str = "w") -> None:
    """Write a tar in GNU format, with folders, times and owners; `mode` is tarfile's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "somebody"
            tar.addfile(info, io.BytesIO(data))


def encode_image(
    value: int, kind: str = "PNG", size: tuple[int, int] = (5, 4), mode: str = "RGB", **save: Any
) -> bytes:
    """An image of one gray value, width x height of `size`."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(buffer, kind, **save)
    return buffer.getvalue()


def make_members(labels: list[Any], field: str = "cls") -> Members:
    """Samples 0, 1, ... with an image each and a label: text in a field of their own, objects as json."""
    members: Members = []
    for number, label in enumerate(labels):
        members.append((f"{number}.png", encode_image(number)))
        if isinstance(label, dict):
            members.append((f"{number}.json", json.dumps(label).encode()))
        elif label is not None:
            members.append((f"{number}.{field}", str(label).encode()))
    return members


def values_of(x: Any) -> list[int]:
    """The value of the first pixel of each image."""
    return np.asarray(x).reshape(len(x), -1)[:, 0].tolist()
