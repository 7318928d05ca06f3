"""Check a file that starts a cluster before anything is started: `python -m cluster.checks FILE...`.

It takes files for Ray's cluster launcher (AWS, or your own machines over SSH) and for Kubernetes (a RayJob and the
manifests beside it), and needs neither a network nor an account. It prints a sentence for each finding on stderr; the
exit code is 0 if there are none, otherwise 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from ali_dist.config.yaml_files import describe_yaml_error, parse_typed_documents
from ali_dist.errors import InputError
from cluster.checks.aws import check_aws
from cluster.checks.findings import Finding, as_mapping, check_placeholders, check_secrets
from cluster.checks.ray import check_ray
from cluster.checks.rayjob import check_manifest


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file, without empty ones.

    Raises:
        InputError: The file cannot be read or is not YAML.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return parse_typed_documents(text)
    except OSError as error:
        raise InputError(f"it cannot be read ({error}): name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"it cannot be read as YAML: {describe_yaml_error(error, text)}.") from error


def check_documents(documents: list[Any]) -> list[Finding]:
    """Check all documents of one file.

    Returns:
        The findings, each once, beginning with the values that the user has yet to fill in.
    """
    if not documents or not all(isinstance(document, Mapping) for document in documents):
        problem = "is not a mapping, but has to be a cluster for `ray up` or a RayJob"
        return [Finding("The file", problem, "start from cluster/local.yaml, ali.yaml or rayjob.yaml")]
    if any("kind" in document or "apiVersion" in document for document in documents):
        specific = _check_manifests(documents)
    else:
        specific = _check_cluster(documents)
    placeholders = chain.from_iterable(map(check_placeholders, documents))
    secrets = chain.from_iterable(map(check_secrets, documents))
    return list(dict.fromkeys([*placeholders, *specific, *secrets]))


def _check_manifests(documents: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """A file for Kubernetes: one RayJob, and what the job needs beside it."""
    kinds = [document.get("kind") for document in documents]
    if kinds.count("RayJob") != 1:
        yield Finding.wrong_value("kind", kinds, "exactly one document is a RayJob", "add it, or take the others out")
    for document in documents:
        yield from check_manifest(document)


def _check_cluster(documents: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """A file for Ray's cluster launcher: one document, on AWS or on machines over SSH."""
    if len(documents) > 1:
        yield Finding("The file", f"has {len(documents)} documents, but Ray reads one", "take out the lines ---")
        return
    provider = as_mapping(documents[0].get("provider")).get("type")
    if provider not in ("aws", "local"):
        expected = "the launcher starts clusters on AWS or on machines over SSH"
        yield Finding.wrong_value("provider.type", provider, expected, "write type: aws or type: local")
        return
    yield from check_ray(documents[0])
    if provider == "aws":
        yield from check_aws(documents[0])
