"""The schema of a RayJob that `cluster.checks` has agrees with KubeRay's own, and so does the shipped file.

KubeRay's is vendored (tests/data/kuberay). Ours is written by hand, so that a mistake can be a sentence with its fix.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest

from cluster.checks.rayjob_schema import ANY, AUTOSCALER, CLUSTER, GROUP, HEAD, JOB, RAYJOB
from tests.helpers.cluster_files import FILLED_IN, KeyPath, set_value
from tests.helpers.cluster_files import RAYJOB as FILE
from tests.helpers.kuberay import VERSIONS, load_schema, resolve

NEWEST = VERSIONS[-1]
_TYPES = {"text": "string", "whole": "integer", "number": "number", "flag": "boolean"}
_MINE_ALONE = {"apiVersion", "kind", "metadata"}  # every object of Kubernetes has these; a CRD does not describe them
_CLUSTER = ("spec", "rayClusterSpec")


@functools.cache
def schema_of(version: str) -> dict[str, Any]:
    return load_schema(version)


def errors_of(document: Any, version: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of(version))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("version", VERSIONS)
def test_kuberay_takes_the_shipped_file(version: str) -> None:
    assert errors_of(FILLED_IN[FILE][-1], version) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "x"),
        (("spec", "backoffLimit"), "2"),
        ((*_CLUSTER, "headGroupSpec", "rayStartParams", "port"), 6379),
        ((*_CLUSTER, "authOptions", "mode"), "tokens"),
        ((*_CLUSTER, "workerGroupSpecs", 0, "template", "spec", "toleration"), []),
        ((*_CLUSTER, "workerGroupSpecs", 0, "template", "spec", "containers", 0, "env"), {"A": "b"}),
    ],
    ids=lambda value: "",
)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_our_checks_report_kuberay_refuses_too(version: str, path: KeyPath, value: object) -> None:
    document = copy.deepcopy(FILLED_IN[FILE][-1])
    set_value(document, path, value)
    assert errors_of(document, version)


def walk(ours: Any, theirs: Mapping[str, Any], key: str) -> Iterator[str]:
    """Sentences about each key that KubeRay does not have, or has as another kind."""
    node = resolve(schema_of(NEWEST), dict(theirs))
    if ours is ANY:
        return
    if isinstance(ours, dict):
        if node.get("type") != "object":
            yield f"{key} is {node.get('type')} there"
        properties, others = node.get("properties", {}), node.get("additionalProperties")
        for name, inner in ours.items():
            found = (others or None) if name == "*" else properties.get(name)
            if isinstance(found, dict):
                yield from walk(inner, found, f"{key}.{name}")
            else:
                yield f"{key}.{name} is not there"
    elif isinstance(ours, list):
        if node.get("type") != "array":
            yield f"{key} is {node.get('type')} there"
        else:
            yield from walk(ours[0], node["items"], f"{key}[]")
    elif isinstance(ours, tuple):
        if not set(ours) <= set(node.get("enum", ours)) or node.get("type") != "string":
            yield f"{key} may be {node.get('enum')} there"
    elif ours == "quantity":
        if not node.get("x-kubernetes-int-or-string"):
            yield f"{key} is no quantity there"
    elif node.get("type") != _TYPES[ours]:
        yield f"{key} is {node.get('type')} there"


def test_every_key_of_our_schema_is_one_of_kuberays_and_of_the_same_kind() -> None:
    ours = {key: inner for key, inner in RAYJOB.items() if key not in _MINE_ALONE}
    assert list(walk(ours, schema_of(NEWEST), "")) == []


@pytest.mark.parametrize(
    ("ours", "place"),
    [
        (JOB, "spec"),
        (CLUSTER, "spec.rayClusterSpec"),
        (HEAD, "spec.rayClusterSpec.headGroupSpec"),
        (GROUP, "spec.rayClusterSpec.workerGroupSpecs[]"),
        (AUTOSCALER, "spec.rayClusterSpec.autoscalerOptions"),
    ],
    ids=["job", "cluster", "head", "group", "autoscaler"],
)
def test_our_schema_knows_every_key_of_kuberays_own_parts(ours: dict[str, Any], place: str) -> None:
    """Else a right file would be reported. Of Kubernetes' own pods, rare and deprecated keys are left out."""
    schema = schema_of(NEWEST)
    node = dict(schema)
    for step in place.split("."):
        node = resolve(schema, node["properties"][step.removesuffix("[]")])
        node = resolve(schema, node["items"]) if step.endswith("[]") else node
    assert set(node["properties"]) == set(ours)
