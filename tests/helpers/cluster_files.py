"""The shipped files for clusters, filled in and broken at will, and what a finding about them has to look like."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml

from cluster.checks import find_problems

ROOT = Path(__file__).resolve().parents[2]
ALI = ROOT / "cluster" / "ali.yaml"
RAYJOB = ROOT / "cluster" / "rayjob.yaml"
GROUP = "sg-0123456789abcdef0"
GONE = object()


def filled(path: Path) -> list[Any]:
    """The shipped file with the user's values in it, and without the sharing that YAML's aliases leave."""
    text = path.read_text(encoding="utf-8")
    text = text.replace("sg-CHANGE-ME", GROUP).replace("s3://CHANGE-ME", "s3://mine").replace("CHANGE-ME", "mine")
    return [json.loads(json.dumps(document)) for document in yaml.safe_load_all(text)]


FILLED = {path: filled(path) for path in (ALI, RAYJOB)}


def put(document: Any, path: tuple[str | int, ...], value: object) -> None:
    """Set, add or (GONE) take out what stands at `path`."""
    for step in path[:-1]:
        document = document[step]
    if value is GONE:
        del document[path[-1]]
    elif isinstance(document, list) and path[-1] == len(document):
        document.append(value)
    else:
        document[path[-1]] = value


def broken(file: Path, path: tuple[str | int, ...], value: object) -> list[str]:
    documents = copy.deepcopy(FILLED[file])
    put(documents[-1], path, value)
    return find_problems(documents)


def told(found: list[str], *fragments: str) -> None:
    """Exactly one finding, one sentence, with all of the fragments."""
    assert len(found) == 1, found
    for fragment in fragments:
        assert fragment in found[0], f"{fragment!r} is not in: {found[0]}"
    assert re.search(r"[.?]$", found[0])
    assert "\n" not in found[0]
