"""The shipped files for clusters, filled in and broken on purpose, and what a finding about them has to look like."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml

from cluster.checks import check_documents
from cluster.checks.findings import Finding

ROOT = Path(__file__).resolve().parents[2]
ALI = ROOT / "cluster" / "ali.yaml"
LOCAL = ROOT / "cluster" / "local.yaml"
RAYJOB = ROOT / "cluster" / "rayjob.yaml"
SECURITY_GROUP = "sg-0123456789abcdef0"
DELETED = object()

KeyPath = tuple[str | int, ...]


def fill_in(path: Path) -> list[Any]:
    """The documents of a shipped file with a user's values, and without the sharing that YAML's aliases leave."""
    text = path.read_text(encoding="utf-8")
    text = text.replace("sg-CHANGE-ME", SECURITY_GROUP)
    text = text.replace("s3://CHANGE-ME", "s3://mine").replace("CHANGE-ME", "mine")
    return [json.loads(json.dumps(document)) for document in yaml.safe_load_all(text)]


FILLED_IN = {path: fill_in(path) for path in (ALI, RAYJOB)}


def set_value(document: Any, path: KeyPath, value: object) -> None:
    """Set or add the value at `path`, or take it out if it is DELETED."""
    *parents, last = path
    for step in parents:
        document = document[step]
    if value is DELETED:
        del document[last]
    elif isinstance(document, list) and last == len(document):
        document.append(value)
    else:
        document[last] = value


def check_broken(file: Path, path: KeyPath, value: object) -> list[Finding]:
    """Findings about a shipped file that is right but for the value at `path` of its last document."""
    documents = copy.deepcopy(FILLED_IN[file])
    set_value(documents[-1], path, value)
    return check_documents(documents)


def assert_single_finding(findings: list[Finding], *fragments: str) -> None:
    """There is exactly one finding, its text is one sentence, and it has all of the fragments."""
    assert len(findings) == 1, findings
    sentence = str(findings[0])
    for fragment in fragments:
        assert fragment in sentence, f"{fragment!r} is not in: {sentence}"
    assert re.search(r"[.?]$", sentence)
    assert "\n" not in sentence
