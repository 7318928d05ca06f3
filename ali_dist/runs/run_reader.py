"""Reading a run folder for the report, whatever state the run left it in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

GalleryFiles = Mapping[float, Path]
"""The PNGs of one kind of picture, by the number of images that had been seen; a final one is at infinity."""

IMAGE_KINDS = ("samples", "reconstructions", "latents", "nearest", "interpolations", "conditions")
"""Kinds of pictures that a report shows first, in this order."""


@dataclass(frozen=True)
class RunReader:
    """What a run folder holds.

    Attributes:
        config: config.json; empty if it is missing.
        summary: summary.json; empty if it is missing.
        train: The training records of metrics.jsonl, ascending in `images`, one for each value of it.
        evaluations: The evaluation records of metrics.jsonl, likewise; all of one split, the first one's, so that a
            curve through them means one thing.
        alarms: The alarms of metrics.jsonl, and the rollbacks, which stand for the alarms that they answered.
        neighbors: The distances of samples to the nearest training images, likewise.
        galleries: The PNGs of each kind, in the order of the report.
        problems: One sentence for each file that is missing or cannot be read.
    """

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    train: list[Record]
    evaluations: list[Record]
    alarms: list[Record]
    neighbors: list[Record]
    galleries: dict[str, GalleryFiles]
    problems: list[str]

    @classmethod
    def read(cls, folder: Path) -> RunReader:
        """Read a run folder; missing and damaged files are no errors, but are listed in `problems`."""
        problems: list[str] = []
        config = _read_mapping(folder / "config.json", problems)
        summary = _read_mapping(folder / "summary.json", problems)
        records = read_records(folder / "metrics.jsonl", problems)
        problems += [
            f"The {r.get('what')} after {r['images']:,} images failed: {r.get('reason')}."
            for r in records
            if r.get("event") == "failure"
        ]
        galleries = find_galleries(folder / "images")
        if not galleries:
            problems.append("There are no images yet.")
        return cls(
            config,
            summary,
            _latest_by_images([r for r in records if r.get("event") == "train"]),
            _latest_by_images(_of_one_split([r for r in records if r.get("event") == "evaluation"])),
            [r for r in records if r.get("event") in ("alarm", "rollback")],
            _latest_by_images([r for r in records if r.get("event") == "neighbors"]),
            galleries,
            problems,
        )


def _of_one_split(evaluations: list[Record]) -> list[Record]:
    """Leave out evaluations of another split than the first: a run ends with one of the split it reports on."""
    return [record for record in evaluations if record.get("split") == evaluations[0].get("split")]


def find_galleries(folder: Path) -> dict[str, GalleryFiles]:
    """Find the PNGs of each kind by images seen: `samples-000064.png` and `samples.png` are of the kind `samples`.

    A name without a number counts as the final one.
    """
    found: dict[str, dict[float, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        kind, number = re.findall(r"^(.*?)(?:[-_.]?(\d+))?$", path.stem)[0]
        found.setdefault(kind, {})[int(number) if number else float("inf")] = path
    order = [kind for kind in IMAGE_KINDS if kind in found] + sorted(set(found) - set(IMAGE_KINDS))
    return {kind: dict(sorted(found[kind].items())) for kind in order}


def _read_mapping(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        problems.append(f"There is no {path.name}.")
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{path.name} cannot be read: {error}.")
        return {}
    if not isinstance(loaded, dict):
        problems.append(f"{path.name} holds no mapping.")
        return {}
    return loaded


def read_records(path: Path, problems: list[str]) -> list[Record]:
    """Read the records of metrics.jsonl; `problems` receives a sentence about what cannot be read."""
    if not path.is_file():
        problems.append(f"There is no {path.name}: curves are missing.")
        return []
    records: list[Record] = []
    num_bad_lines = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("images"), int | float):
                raise ValueError("not a record")
        except (ValueError, RecursionError):  # a process killed in the middle of a write leaves half a line
            num_bad_lines += 1
        else:
            records.append(record)
    if num_bad_lines:
        total = num_bad_lines + len(records)
        verb = "is" if num_bad_lines == 1 else "are"
        problems.append(f"{num_bad_lines} of {total} lines of {path.name} cannot be read and {verb} left out.")
    return records


def _latest_by_images(records: list[Record]) -> list[Record]:
    """Keep the last record of each number of images: a resumed run repeats what it had not saved."""
    by_images = {record["images"]: record for record in records}
    return [by_images[images] for images in sorted(by_images)]
