"""Checks of a RayJob for KubeRay and of the manifests beside it, without Kubernetes.

KubeRay refuses many mistakes only when the job is applied, and accepts others: a cluster that never goes away, a
dashboard with a public address, GPUs that no pod asks for. `cluster.checks.pod` looks into the pods.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from cluster.checks.findings import Finding, as_list, as_mapping
from cluster.checks.pod import check_pod
from cluster.checks.rayjob_schema import check_schema

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NAME_LENGTH = 47  # KubeRay appends six characters, and more for its pods; Kubernetes allows 63
_KINDS = ("RayJob", "ServiceAccount", "NetworkPolicy", "ConfigMap", "Secret")
_GPU = "nvidia.com/gpu"
_CLUSTER = "spec.rayClusterSpec"


def check_manifest(document: Mapping[str, Any]) -> Iterator[Finding]:
    """One document of a file for Kubernetes: a RayJob, or what the job needs beside it."""
    kind = document.get("kind")
    if kind == "RayJob":
        yield from check_rayjob(document)
    elif kind == "Secret" and (document.get("data") or document.get("stringData")):
        fix = "take it out and use `kubectl create secret`"
        yield Finding.wrong_value("Secret", "...", "secrets do not belong in a file", fix)
    elif kind not in _KINDS:
        yield Finding.unknown_key("kind", kind, _KINDS, "this check")


def check_rayjob(document: Mapping[str, Any]) -> Iterator[Finding]:
    """All findings about a RayJob; those about its values only where the schema has none.

    A misspelt key would otherwise be reported a second time, as a missing one.
    """
    schema_findings = list(check_schema(document))
    yield from schema_findings
    if schema_findings:
        return
    spec = as_mapping(document.get("spec"))
    yield from _check_name(document)
    yield from _check_lifetime(spec)
    yield from _check_submitter(spec)
    yield from _check_cluster_spec(as_mapping(spec.get("rayClusterSpec")))
    for key, template in _list_pod_templates(spec):
        yield from check_pod(key, as_mapping(template.get("spec")))


def _check_name(document: Mapping[str, Any]) -> Iterator[Finding]:
    name = as_mapping(document.get("metadata")).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH:
        expected = f"it has to be up to {_NAME_LENGTH} small letters, digits and dashes, with a letter first"
        yield Finding.wrong_value("metadata.name", name, expected, "shorten or correct it, such as ali")


def _check_lifetime(spec: Mapping[str, Any]) -> Iterator[Finding]:
    """The job starts something, and nothing of it stays forever."""
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        fix = "write python -m ali_dist.train ..."
        yield Finding.wrong_value("spec.entrypoint", None, "the job has to run something", fix)
    shutdown = spec.get("shutdownAfterJobFinishes")
    if shutdown is not True:
        expected = "the cluster would stay, and cost money, when the job is done"
        yield Finding.wrong_value("spec.shutdownAfterJobFinishes", shutdown, expected, "write true")
    for name in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not spec.get(name):
            expected = "a job that hangs, or a cluster after its job, would stay forever"
            yield Finding.wrong_value(f"spec.{name}", spec.get(name), expected, "write a number of seconds above 0")


def _check_submitter(spec: Mapping[str, Any]) -> Iterator[Finding]:
    """The pod that submits the job: ours in one mode, none in others."""
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
        expected = "KubeRay's own submitter has no limits, and no user other than the image's"
        yield Finding.wrong_value("spec.submitterPodTemplate", None, expected, "write one with this image")
    if mode in ("SidecarMode", "HTTPMode") and "submitterPodTemplate" in spec:
        yield Finding.wrong_value("spec.submitterPodTemplate", "...", f"{mode} has no such pod", "take it out")


def _check_cluster_spec(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    """The cluster is closed, has the image's version of Ray, and its groups' numbers agree."""
    if not cluster:
        yield Finding.wrong_value(_CLUSTER, None, "the job needs a cluster of its own", "write it")
        return
    mode = as_mapping(cluster.get("authOptions")).get("mode")
    if mode != "token":
        expected = "everybody who reaches Ray's ports can run code as this job unless Ray asks for a token"
        yield Finding.wrong_value(f"{_CLUSTER}.authOptions.mode", mode, expected, "write authOptions: {mode: token}")
    if cluster.get("rayVersion") != version("ray"):
        expected = f"constraints.txt, and so the image, has Ray {version('ray')}"
        fix = f"write {version('ray')}"
        yield Finding.wrong_value(f"{_CLUSTER}.rayVersion", cluster.get("rayVersion"), expected, fix)
    yield from _check_head(as_mapping(cluster.get("headGroupSpec")))
    yield from _check_worker_groups(as_list(cluster.get("workerGroupSpecs")))
    if cluster.get("enableInTreeAutoscaling") is True:
        yield from _check_autoscaling(cluster)


def _check_head(head: Mapping[str, Any]) -> Iterator[Finding]:
    for name in ("num-cpus", "num-gpus"):
        value = as_mapping(head.get("rayStartParams")).get(name)
        if value != "0":
            key = f"{_CLUSTER}.headGroupSpec.rayStartParams.{name}"
            expected = "the head coordinates and trains nothing"
            yield Finding.wrong_value(key, value, expected, f'write {name}: "0"')
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        name = "enableIngress" if head.get("enableIngress") else "serviceType"
        key = f"{_CLUSTER}.headGroupSpec.{name}"
        expected = "the dashboard, which can start jobs, would be open to the outside"
        yield Finding.wrong_value(key, head.get(name), expected, "take it out and use kubectl port-forward")


def _check_worker_groups(groups: list[Any]) -> Iterator[Finding]:
    key = f"{_CLUSTER}.workerGroupSpecs"
    if not groups:
        yield Finding.wrong_value(key, None, "without workers nothing trains", "add a group")
    names = [as_mapping(group).get("groupName") for group in groups]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield Finding.wrong_value(f"{key}.groupName", name, "each group needs a name of its own", "rename one")
    for number, group in enumerate(map(as_mapping, groups)):
        least, count, most = (group.get(name, 0) for name in ("minReplicas", "replicas", "maxReplicas"))
        if all(isinstance(value, int) for value in (least, count, most)) and not least <= count <= most:
            expected = f"it has to lie between minReplicas {least} and maxReplicas {most}"
            yield Finding.wrong_value(f"{key}[{number}].replicas", count, expected, "correct one of the three")
        pod = as_mapping(as_mapping(group.get("template")).get("spec"))
        yield from _check_gpus(f"{key}[{number}].template.spec", pod)


def _check_gpus(key: str, pod: Mapping[str, Any]) -> Iterator[Finding]:
    """Ray runs in a pod's first container and offers the GPUs of this one."""
    for number, container in enumerate(map(as_mapping, as_list(pod.get("containers")))):
        resources = as_mapping(container.get("resources"))
        limit, request = (as_mapping(resources.get(name)).get(_GPU) for name in ("limits", "requests"))
        limit_key = f"{key}.containers[{number}].resources.limits.{_GPU}"
        if number == 0 and not limit:
            expected = "a worker without a GPU trains on its CPU"
            yield Finding.wrong_value(limit_key, limit, expected, f"write {_GPU}: 1")
        elif request is not None and request != limit:
            expected = f"it has to equal the request, which is {request}"
            yield Finding.wrong_value(limit_key, limit, expected, "write the same number in both")


def _check_autoscaling(cluster: Mapping[str, Any]) -> Iterator[Finding]:
    """KubeRay's autoscaler v2 replaces pods by itself, and refuses those that Kubernetes would restart."""
    if as_mapping(cluster.get("autoscalerOptions")).get("version", "v2") == "v1":
        return
    groups = [("headGroupSpec", cluster.get("headGroupSpec"))]
    groups += [(f"workerGroupSpecs[{n}]", group) for n, group in enumerate(as_list(cluster.get("workerGroupSpecs")))]
    for name, group in groups:
        pod = as_mapping(as_mapping(as_mapping(group).get("template")).get("spec"))
        policy = pod.get("restartPolicy", "Never")
        if policy != "Never":
            key = f"{_CLUSTER}.{name}.template.spec.restartPolicy"
            expected = "autoscaler v2 replaces pods, and KubeRay refuses pods that restart"
            yield Finding.wrong_value(key, policy, expected, "write Never")


def _list_pod_templates(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod's template, with its dotted key."""
    if "submitterPodTemplate" in spec:
        yield "spec.submitterPodTemplate", as_mapping(spec["submitterPodTemplate"])
    cluster = as_mapping(spec.get("rayClusterSpec"))
    if cluster:
        head = as_mapping(cluster.get("headGroupSpec"))
        yield f"{_CLUSTER}.headGroupSpec.template", as_mapping(head.get("template"))
    for number, group in enumerate(as_list(cluster.get("workerGroupSpecs"))):
        yield f"{_CLUSTER}.workerGroupSpecs[{number}].template", as_mapping(as_mapping(group).get("template"))
