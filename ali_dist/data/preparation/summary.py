"""What `prepare` says of a split that it wrote or found: how much there is, and all that was done or left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ali_dist.data.shards.index import Index

_SHOWN = 3  # names that a line gives
_MAX_KINDS = 8  # kinds of left-out files that a line counts

_TREATMENTS = {
    "background": "had transparent pixels and {was} put on {background}",
    "orientation": "{was} turned as the camera noted",
    "enlarged": "{was} smaller than {size} pixels and {was} enlarged, which adds no detail",
    "16-bit": "had 16 bits a channel, of which 65535 became 255",
    "dark-16-bit": "had 16 bits a channel, all below 4096, and {was} left nearly black: stretch the range first",
    "cmyk": "had printing colors (CMYK) and {was} converted to RGB",
    "first-frame": "had several frames or pages, of which the first was taken",
}
"""What is said of each treatment. Whether images were resized or cropped is in the index, and no surprise."""

_PLURALS = {"broken link": "broken links", "link to a folder around it": "links to a folder around them"}

NETWORK_SIDES = (16, 32, 64, 128, 256)
"""Sides of the images that the residual networks take, which are those of all networks for images."""

_CONVERTIBLE = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ai", ".eps", ".ico", ".tga", ".exr", ".hdr"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
}
"""Pictures that Pillow does not read."""


def count(number: int, thing: str, plural: str = "") -> str:
    """A number with its noun: `1 shard`, `2,000 shards`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {plural or thing + 's'}"


def summary_lines(name: str, index: Index, url: str, *, is_new: bool) -> list[str]:
    """The lines on one split.

    Args:
        name: Its name.
        index: Its index.
        url: Where it is.
        is_new: Whether it has just been written.
    """
    extra = index.extra
    size = f"{index.num_samples} {'sample' if index.num_samples == 1 else 'samples'}"
    outcome = "written" if is_new else "already there"
    lines = [f"{name}: {size} in {count(len(index.shards), 'shard')}, {outcome} in {url}"]
    words = {"background": extra.get("source", {}).get("background", index.background), "size": index.shape[-1]}
    for word, text in _TREATMENTS.items():
        if entry := extra.get("treatments", {}).get(word):
            words["was"] = "was" if entry["count"] == 1 else "were"
            lines.append(f"{name}: {count(entry['count'], 'image')} {text.format(**words)}{_name_first(entry)}")
    if left_out := extra.get("left_out"):
        is_of_tars = str(extra.get("source", {}).get("name", "")).startswith("webdataset")
        lines.append(_describe_left_out(name, left_out, "sample or member" if is_of_tars else "file"))
        if unread := sorted(_CONVERTIBLE & left_out.keys()):
            lines.append(f"{name}: pictures in {', '.join(unread)} cannot be read: convert them to .png or .jpg.")
    return [*lines, *extra.get("notes", [])]


def describe_side(index: Index) -> list[str]:
    """A sentence on images of a side that no network takes, if they are such."""
    if len(index.shape) != 3 or index.shape[1] != index.shape[2] or index.shape[1] in NETWORK_SIDES:
        return []
    side = index.shape[1]
    nearest = max((known for known in NETWORK_SIDES if known < side), default=NETWORK_SIDES[0])
    sides = ", ".join(map(str, NETWORK_SIDES[:-1]))
    return [
        f"No network takes images of {side} pixels a side, but there are some for {sides} and {NETWORK_SIDES[-1]}: "
        f"`train` resizes them with --data.image_size {nearest}."
    ]


def _describe_left_out(name: str, left_out: Mapping[str, Any], thing: str) -> str:
    kinds = sorted(left_out.items(), key=lambda item: -item[1]["count"])
    parts = [f"{_count_kind(entry['count'], kind)}{_name_first(entry)}" for kind, entry in kinds[:_MAX_KINDS]]
    if more := sum(entry["count"] for _, entry in kinds[_MAX_KINDS:]):
        parts.append(f"{more:,} of other kinds")
    total = sum(entry["count"] for entry in left_out.values())
    things = count(total, thing, "samples or members" if thing != "file" else "files")
    return f"{name}: {things} {'was' if total == 1 else 'were'} left out: {', '.join(parts)}"


def _count_kind(number: int, kind: str) -> str:
    return count(number, kind, _PLURALS.get(kind, kind))


def _name_first(entry: Mapping[str, Any]) -> str:
    names = [*entry["first"][:_SHOWN], *["..."] * (entry["count"] > _SHOWN)]
    return f" ({', '.join(names)})" if entry["first"] else ""
