"""KubeRay's own schema of a RayJob, vendored as JSON: made from its CRD, and read for checks.

    python -m tests.helpers.kuberay ray.io_rayjobs.yaml tests/data/kuberay/rayjob-X.Y.Z.json

writes the file of another version; `tests/data/kuberay/README.md` says where the CRD comes from.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "data" / "kuberay"
VERSIONS = ("1.5.1", "1.7.0")
"""The oldest version that cluster/README.md promises, and the newest that was looked at."""
_VERSION = "v1"
_SHORT = 200  # characters of a part that is not worth a definition of its own


def load_schema(version: str) -> dict[str, Any]:
    """The JSON schema of a RayJob as a version of KubeRay has it; keys that it does not know are refused.

    Kubernetes itself drops unknown keys in silence, so that a misspelt one would do nothing.
    """
    schema: dict[str, Any] = _refuse_unknown(json.loads((FOLDER / f"rayjob-{version}.json").read_text("utf-8")))
    return schema


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The part that a reference stands for; every other part is itself."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _refuse_unknown(node: Any) -> Any:
    if isinstance(node, list):
        return [_refuse_unknown(part) for part in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _refuse_unknown(part) for key, part in node.items()}
    if isinstance(node.get("properties"), dict) and node["properties"] and _is_closed(node):
        strict["additionalProperties"] = False
    return strict


def _is_closed(node: dict[str, Any]) -> bool:
    is_part = node.get("type") == "object" and "additionalProperties" not in node
    return is_part and not node.get("x-kubernetes-preserve-unknown-fields")


def convert_crd(crd: dict[str, Any]) -> dict[str, Any]:
    """The schema of the version v1 of a CRD, without descriptions; parts that come again are in `$defs`."""
    versions = {version["name"]: version for version in crd["spec"]["versions"]}
    plain = _without_descriptions(versions[_VERSION]["schema"]["openAPIV3Schema"])
    counts: Counter[str] = Counter()
    _count_parts(plain, counts)
    names: dict[str, str] = {}
    definitions: dict[str, Any] = {}

    def hoist(node: Any, *, stays: bool = False) -> Any:
        if isinstance(node, list):
            return [hoist(part) for part in node]
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        whole = {key: hoist(part, stays=key == "properties") for key, part in node.items()}
        if stays or counts[text] < 2 or len(text) <= _SHORT:
            return whole
        name = names.setdefault(text, f"part{len(names)}")
        definitions[name] = whole
        return {"$ref": f"#/$defs/{name}"}

    return {**hoist(plain, stays=True), "$defs": definitions}


def _count_parts(node: Any, counts: Counter[str]) -> None:
    if isinstance(node, dict):
        counts[json.dumps(node, sort_keys=True)] += 1
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _count_parts(part, counts)


def _without_descriptions(node: Any, *, is_properties: bool = False) -> Any:
    if isinstance(node, list):
        return [_without_descriptions(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_descriptions(part, is_properties=key == "properties" and not is_properties)
        for key, part in node.items()
        if is_properties or key != "description"
    }


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    converted = convert_crd(yaml.load(source.read_text("utf-8"), Loader=yaml.SafeLoader))
    target.write_text(json.dumps(converted, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
