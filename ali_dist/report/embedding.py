"""Pictures inside a page: as they are where they are few, else as JPEG, so that the page can be sent."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Collection
from pathlib import Path

_QUALITIES = ((80, 1.0), (75, 0.75), (70, 0.5), (60, 0.3))  # of JPEG, with the scale of a side: tried in this order


def embed_pictures(paths: Collection[Path], most_bytes: int) -> dict[Path, str]:
    """Turn pictures into `data:` urls.

    Args:
        paths: PNG files.
        most_bytes: Bytes that they may take in all; they are compressed more and more until they fit, and in the end
            are as small as they get.

    Returns:
        The url of each file.
    """
    if sum(path.stat().st_size for path in paths) <= most_bytes:
        return {path: data_url("png", path.read_bytes()) for path in paths}
    compressed: dict[Path, bytes] = {}
    for quality, scale in _QUALITIES:
        compressed = {path: compress(path, path.stat().st_mtime_ns, quality, scale) for path in paths}
        if sum(map(len, compressed.values())) <= most_bytes:
            break
    return {path: data_url("jpeg", content) for path, content in compressed.items()}


@functools.lru_cache(maxsize=128)  # a run writes its page again and again, with the same earlier pictures
def compress(path: Path, modified: int, quality: int = 80, scale: float = 1.0) -> bytes:
    """A picture as JPEG, which takes about a tenth of the room of its PNG.

    Args:
        path: The picture.
        modified: Its time of modification: what was compressed is remembered until it changes.
        quality: Of JPEG, to 100.
        scale: Of both sides.
    """
    from PIL import Image

    file = io.BytesIO()
    with Image.open(path) as image:
        picture = image.convert("RGB")
        if scale != 1.0:
            picture = picture.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """A picture of a kind (png or jpeg) as a url that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
