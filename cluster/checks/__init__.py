"""Say what is wrong with a file that starts a cluster, before anything is started: `python -m cluster.checks FILE...`.

Files for Ray's launcher (AWS, or machines over SSH) and for Kubernetes (a RayJob and what goes with it). Needs neither
network nor account. Exit code 0 if all is well, 2 if not, with a sentence for each finding on stderr.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ali_dist.errors import InputError
from cluster.checks import aws as aws_checks
from cluster.checks import findings
from cluster.checks import ray as ray_checks
from cluster.checks import rayjob as rayjob_checks


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file.

    Raises:
        InputError: If the file is not there or is not YAML.
    """
    try:
        return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): name a YAML file.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}): correct it there.") from error


def find_problems(documents: list[Any]) -> list[str]:
    """All findings about the documents of one file, in the order of its rules; none if it can be used as it is."""
    if any(not isinstance(document, Mapping) for document in documents) or not documents:
        return ["The file is not a mapping, but has to be a cluster for `ray up` or a RayJob: start from ali.yaml."]
    if any("kind" in document or "apiVersion" in document for document in documents):
        found = list(rayjob_checks.check_rayjob(documents))
    elif len(documents) > 1:
        found = [f"The file is {len(documents)} documents, but Ray reads one: take out the lines ---."]
    else:
        found = list(_check_cluster(documents[0]))
    for document in documents:
        found += [*findings.find_secrets(document)]
    gaps = [gap for document in documents for gap in findings.find_gaps(document)]
    return list(dict.fromkeys([*gaps, *found]))


def _check_cluster(config: Mapping[str, Any]) -> list[str]:
    kind = findings.as_mapping(config.get("provider")).get("type")
    if kind not in ("aws", "local"):
        expected = "clusters are started on AWS or on machines over SSH"
        return [findings.describe_finding("provider.type", kind, expected, "write type: aws or type: local")]
    found = list(ray_checks.check_ray(config))
    return [*found, *aws_checks.check_aws(config)] if kind == "aws" else found
