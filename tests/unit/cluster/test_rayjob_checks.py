"""The RayJob for Kubernetes is valid and closed, and every mistake in it is reported in one sentence.

Each check has a case that breaks the shipped file in that way alone. Nothing here needs a network or Kubernetes.
Run: `make test ARGS=tests/unit/cluster/test_rayjob_checks.py`
"""

from __future__ import annotations

import copy

import pytest

from cluster.checks import check_documents, read_documents
from cluster.host import read_pinned_versions
from tests.helpers.cluster_files import (
    DELETED,
    FILLED_IN,
    RAYJOB,
    ROOT,
    KeyPath,
    assert_single_finding,
    check_broken,
    set_value,
)


def test_the_shipped_file_is_right_once_its_placeholders_are_filled_in() -> None:
    assert check_documents(FILLED_IN[RAYJOB]) == []


def test_the_shipped_file_reports_each_placeholder_once() -> None:
    """Nothing starts with somebody else's values; the image is used four times and reported once."""
    entrypoint, image = check_documents(read_documents(RAYJOB))
    assert entrypoint.key == "spec.entrypoint"
    assert image.key == "spec.submitterPodTemplate.spec.containers[0].image"


CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKER = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*WORKER, "template", "spec")
CONTAINER = (*POD, "containers", 0)
RAYJOB_CASES: list[tuple[KeyPath, object, tuple[str, ...]]] = [
    # the schema
    (("apiVersion",), "ray.io/v1alpha1", ("apiVersion is 'ray.io/v1alpha1'", "ray.io/v1")),
    (("spec", "entryPoint"), "x", ("spec.entryPoint ", "did you mean 'entrypoint'?")),
    (("spec", "submissionMode"), "K8SJobMode", ("spec.submissionMode is 'K8SJobMode'", "K8sJobMode")),
    (("spec", "backoffLimit"), "2", ("spec.backoffLimit is '2'", "whole number")),
    ((*HEAD, "rayStartParams", "port"), 6379, ("rayStartParams.port is 6379", "quotes")),
    ((*WORKER, "groupname"), "x", ("workerGroupSpecs[0].groupname ", "did you mean 'groupName'?")),
    ((*POD, "toleration"), [], ("template.spec.toleration ", "did you mean 'tolerations'?")),
    ((*POD, "tolerations", 0, "operator"), "exists", ("tolerations[0].operator is 'exists'", "Exists")),
    ((*CONTAINER, "imagePullPolicy"), "Sometimes", ("imagePullPolicy is 'Sometimes'", "IfNotPresent")),
    ((*CONTAINER, "resources", "limits", "memory"), "12 GB", ("limits.memory is '12 GB'", "4Gi")),
    ((*CONTAINER, "env"), {"A": "b"}, ("containers[0].env is", "a list")),
    (POD, "text", ("workerGroupSpecs[0].template.spec is 'text'", "keys with values")),
    # the job's life
    (("metadata", "name"), "Ali_1", ("metadata.name is 'Ali_1'", "small letters")),
    (("metadata", "name"), "a" * 48, ("metadata.name is", "up to 47")),
    (("spec", "entrypoint"), DELETED, ("spec.entrypoint is missing", "python -m ali_dist.train")),
    (("spec", "shutdownAfterJobFinishes"), DELETED, ("spec.shutdownAfterJobFinishes is missing", "write true")),
    (("spec", "activeDeadlineSeconds"), DELETED, ("spec.activeDeadlineSeconds is missing", "seconds")),
    (("spec", "ttlSecondsAfterFinished"), 0, ("spec.ttlSecondsAfterFinished is 0", "seconds")),
    (("spec", "submitterPodTemplate"), DELETED, ("spec.submitterPodTemplate is missing", "with this image")),
    (("spec", "submissionMode"), "HTTPMode", ("spec.submitterPodTemplate", "HTTPMode has no such pod")),
    (CLUSTER, DELETED, ("spec.rayClusterSpec is missing", "a cluster of its own")),
    # closed
    ((*CLUSTER, "authOptions"), DELETED, ("authOptions.mode is missing", "authOptions: {mode: token}")),
    ((*CLUSTER, "authOptions", "mode"), "disabled", ("authOptions.mode is 'disabled'", "token")),
    ((*HEAD, "serviceType"), "LoadBalancer", ("headGroupSpec.serviceType is 'LoadBalancer'", "port-forward")),
    ((*HEAD, "enableIngress"), True, ("headGroupSpec.enableIngress is True", "port-forward")),
    ((*POD, "hostNetwork"), True, ("spec.hostNetwork is True", "take it out")),
    ((*POD, "volumes", 1), {"name": "x", "hostPath": {"path": "/"}}, ("volumes.x is 'hostPath'", "emptyDir")),
    (
        (*POD, "securityContext", "runAsNonRoot"),
        DELETED,
        ("containers[0].securityContext.runAsNonRoot is missing", "write true"),
    ),
    ((*POD, "securityContext", "runAsUser"), 0, ("containers[0].securityContext.runAsUser is 0", "write 1000")),
    (
        (*CONTAINER, "securityContext", "allowPrivilegeEscalation"),
        True,
        ("containers[0].securityContext.allowPrivilegeEscalation is True",),
    ),
    (
        (*CONTAINER, "securityContext", "privileged"),
        True,
        ("containers[0].securityContext.privileged is True", "take it out"),
    ),
    (
        (*CONTAINER, "securityContext", "capabilities"),
        DELETED,
        ("containers[0].securityContext.capabilities.drop is missing", "[ALL]"),
    ),
    (
        (*CONTAINER, "env", 2),
        {"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"},
        ("env.AWS_SECRET_ACCESS_KEY", "secretKeyRef"),
    ),
    # what trains
    ((*CLUSTER, "rayVersion"), "2.59.0", ("rayVersion is '2.59.0'", read_pinned_versions(ROOT)["ray"])),
    ((*HEAD, "rayStartParams", "num-cpus"), "4", ("rayStartParams.num-cpus is '4'", 'num-cpus: "0"')),
    ((*WORKER, "minReplicas"), 9, ("workerGroupSpecs[0].replicas is 0", "minReplicas 9")),
    ((*WORKER, "groupName"), "gpu-on-demand", ("groupName is 'gpu-on-demand'", "name of its own")),
    ((*CLUSTER, "workerGroupSpecs"), [], ("workerGroupSpecs is missing", "add a group")),
    ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), 2, ("nvidia.com/gpu is 2", "request, which is 1")),
    ((*CONTAINER, "resources", "limits", "memory"), DELETED, ("limits.memory is missing", "12Gi")),
    ((*CONTAINER, "securityContext", "fsGroup"), 1000, ("containers[0].securityContext.fsGroup ", "Kubernetes")),
    ((*POD, "securityContext", "privileged"), False, ("spec.securityContext.privileged ", "Kubernetes")),
    ((*CONTAINER, "image"), "registry/ali-dist", ("image is 'registry/ali-dist'", "name a version")),
    ((*CONTAINER, "image"), "registry:5000/ali-dist:latest", ("image is", "name a version")),
    ((*CONTAINER, "imagePullPolicy"), DELETED, ("imagePullPolicy is missing", "IfNotPresent")),
    ((*POD, "restartPolicy"), "Always", ("restartPolicy is 'Always'", "write Never")),
    ((*POD, "terminationGracePeriodSeconds"), DELETED, ("terminationGracePeriodSeconds is missing", "60 or more")),
    ((*POD, "terminationGracePeriodSeconds"), 5, ("terminationGracePeriodSeconds is 5", "60 or more")),
    ((*CONTAINER, "volumeMounts"), [], ("volumes at /dev/shm is missing", "medium: Memory")),
    ((*POD, "volumes", 0, "emptyDir", "sizeLimit"), DELETED, ("volumes at /dev/shm", "sizeLimit")),
]


@pytest.mark.parametrize(("path", "value", "fragments"), RAYJOB_CASES, ids=lambda value: "")
def test_a_mistake_in_a_rayjob_is_one_finding(path: KeyPath, value: object, fragments: tuple[str, ...]) -> None:
    assert_single_finding(check_broken(RAYJOB, path, value), *fragments)


def test_a_pod_without_containers_is_reported() -> None:
    template = ("spec", "submitterPodTemplate", "spec", "containers")
    assert_single_finding(
        check_broken(RAYJOB, template, []), "submitterPodTemplate.spec.containers is missing", "a pod needs one"
    )


def test_the_old_autoscaler_lets_kubernetes_restart_pods() -> None:
    documents = copy.deepcopy(FILLED_IN[RAYJOB])
    set_value(documents[-1], (*CLUSTER, "autoscalerOptions", "version"), "v1")
    set_value(documents[-1], (*POD, "restartPolicy"), "Always")
    assert check_documents(documents) == []


def test_a_gpu_worker_that_asks_for_no_gpu_is_reported() -> None:
    documents = copy.deepcopy(FILLED_IN[RAYJOB])
    for key in ("limits", "requests"):
        set_value(documents[-1], (*CONTAINER, "resources", key, "nvidia.com/gpu"), DELETED)
    assert_single_finding(check_documents(documents), "limits.nvidia.com/gpu is missing", "nvidia.com/gpu: 1")


def test_a_mount_without_its_volume_is_reported() -> None:
    assert_single_finding(
        check_broken(RAYJOB, (*CONTAINER, "volumeMounts", 1), {"name": "shared-memroy", "mountPath": "/x"}),
        "volumeMounts.shared-memroy",
        "did you mean 'shared-memory'?",
    )


def test_secrets_and_unknown_kinds_beside_a_rayjob_are_reported() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"note": "x"}}
    assert_single_finding(check_documents([secret, *FILLED_IN[RAYJOB]]), "Secret", "kubectl create secret")
    misspelt = {"apiVersion": "v1", "kind": "NetworkPolcy"}
    assert_single_finding(check_documents([misspelt, *FILLED_IN[RAYJOB]]), "did you mean 'NetworkPolicy'?")
    assert_single_finding(check_documents(FILLED_IN[RAYJOB][:-1]), "one document is a RayJob")


def test_all_pods_of_the_job_are_behind_the_same_network_policy() -> None:
    """The policy selects pods by a label; a pod without the label would be open to the whole Kubernetes cluster."""
    _, policy, job = FILLED_IN[RAYJOB]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for template in [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]:
        assert labels.items() <= template["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
