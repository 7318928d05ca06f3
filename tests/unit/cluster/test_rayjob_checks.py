"""The RayJob for Kubernetes: valid, closed, and every break of it is told in a sentence.

Each rule has a case that breaks the shipped file in that way alone. Nothing here needs a network or a Kubernetes.
Run: `make test ARGS=tests/unit/cluster/test_rayjob_checks.py`
"""

from __future__ import annotations

import copy

import pytest

from cluster.checks import find_problems, read_documents
from tests.helpers.cluster_files import FILLED, GONE, RAYJOB, broken, put, told
from tests.unit.project.test_tooling import pins


def test_the_shipped_file_is_right_once_the_marked_values_are_filled_in() -> None:
    assert find_problems(FILLED[RAYJOB]) == []


def test_the_shipped_file_names_each_value_that_is_yet_to_be_filled_in_once() -> None:
    """Nothing starts with somebody else's names; the image is used four times and asked for once."""
    entrypoint, image = find_problems(read_documents(RAYJOB))
    assert entrypoint.startswith("spec.entrypoint")
    assert image.startswith("spec.submitterPodTemplate.spec.containers[0].image")


CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKER = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*WORKER, "template", "spec")
CONTAINER = (*POD, "containers", 0)
RAYJOB_CASES: list[tuple[tuple[str | int, ...], object, tuple[str, ...]]] = [
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
    (("spec", "entrypoint"), GONE, ("spec.entrypoint is missing", "python -m ali_dist.train")),
    (("spec", "shutdownAfterJobFinishes"), GONE, ("spec.shutdownAfterJobFinishes is missing", "write true")),
    (("spec", "activeDeadlineSeconds"), GONE, ("spec.activeDeadlineSeconds is missing", "seconds")),
    (("spec", "ttlSecondsAfterFinished"), 0, ("spec.ttlSecondsAfterFinished is 0", "seconds")),
    (("spec", "submitterPodTemplate"), GONE, ("spec.submitterPodTemplate is missing", "with this image")),
    (("spec", "submissionMode"), "HTTPMode", ("spec.submitterPodTemplate", "HTTPMode has no such pod")),
    (CLUSTER, GONE, ("spec.rayClusterSpec is missing", "a cluster of its own")),
    # closed
    ((*CLUSTER, "authOptions"), GONE, ("authOptions.mode is missing", "authOptions: {mode: token}")),
    ((*CLUSTER, "authOptions", "mode"), "disabled", ("authOptions.mode is 'disabled'", "token")),
    ((*HEAD, "serviceType"), "LoadBalancer", ("headGroupSpec.serviceType is 'LoadBalancer'", "port-forward")),
    ((*HEAD, "enableIngress"), True, ("headGroupSpec.enableIngress is True", "port-forward")),
    ((*POD, "hostNetwork"), True, ("spec.hostNetwork is True", "take it out")),
    ((*POD, "volumes", 1), {"name": "x", "hostPath": {"path": "/"}}, ("volumes.x is 'hostPath'", "emptyDir")),
    ((*POD, "securityContext", "runAsNonRoot"), GONE, ("runAsNonRoot is missing", "write true")),
    ((*POD, "securityContext", "runAsUser"), 0, ("runAsUser is 0", "write 1000")),
    ((*CONTAINER, "securityContext", "allowPrivilegeEscalation"), True, ("allowPrivilegeEscalation is True",)),
    ((*CONTAINER, "securityContext", "capabilities"), GONE, ("capabilities.drop is missing", "[ALL]")),
    (
        (*CONTAINER, "env", 2),
        {"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"},
        ("env.AWS_SECRET_ACCESS_KEY", "secretKeyRef"),
    ),
    # what trains
    ((*CLUSTER, "rayVersion"), "2.59.0", ("rayVersion is '2.59.0'", pins()["ray"])),
    ((*HEAD, "rayStartParams", "num-cpus"), "4", ("rayStartParams.num-cpus is '4'", 'num-cpus: "0"')),
    ((*WORKER, "minReplicas"), 9, ("workerGroupSpecs[0].replicas is 0", "minReplicas 9")),
    ((*WORKER, "groupName"), "gpu-on-demand", ("groupName is 'gpu-on-demand'", "name of its own")),
    ((*CLUSTER, "workerGroupSpecs"), [], ("workerGroupSpecs is missing", "add a group")),
    ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), 2, ("nvidia.com/gpu is 2", "request, which is 1")),
    ((*CONTAINER, "resources", "limits", "memory"), GONE, ("limits.memory is missing", "12Gi")),
    ((*CONTAINER, "image"), "registry/ali-dist", ("image is 'registry/ali-dist'", "name a version")),
    ((*CONTAINER, "image"), "registry:5000/ali-dist:latest", ("image is", "name a version")),
    ((*CONTAINER, "imagePullPolicy"), GONE, ("imagePullPolicy is missing", "IfNotPresent")),
    ((*POD, "restartPolicy"), "Always", ("restartPolicy is 'Always'", "write Never")),
    ((*POD, "terminationGracePeriodSeconds"), GONE, ("terminationGracePeriodSeconds is missing", "60 or more")),
    ((*POD, "terminationGracePeriodSeconds"), 5, ("terminationGracePeriodSeconds is 5", "60 or more")),
    ((*CONTAINER, "volumeMounts"), [], ("volumes at /dev/shm is missing", "medium: Memory")),
    ((*POD, "volumes", 0, "emptyDir", "sizeLimit"), GONE, ("volumes at /dev/shm", "sizeLimit")),
]


@pytest.mark.parametrize(("path", "value", "fragments"), RAYJOB_CASES, ids=lambda value: "")
def test_a_broken_rayjob_is_told_in_one_sentence(
    path: tuple[str | int, ...], value: object, fragments: tuple[str, ...]
) -> None:
    told(broken(RAYJOB, path, value), *fragments)


def test_a_pod_without_containers_is_told() -> None:
    template = ("spec", "submitterPodTemplate", "spec", "containers")
    told(broken(RAYJOB, template, []), "submitterPodTemplate.spec.containers is missing", "a pod needs one")


def test_the_old_autoscaler_lets_kubernetes_restart_pods() -> None:
    documents = copy.deepcopy(FILLED[RAYJOB])
    put(documents[-1], (*CLUSTER, "autoscalerOptions", "version"), "v1")
    put(documents[-1], (*POD, "restartPolicy"), "Always")
    assert find_problems(documents) == []


def test_a_gpu_worker_that_asks_for_no_gpu_is_told() -> None:
    documents = copy.deepcopy(FILLED[RAYJOB])
    for key in ("limits", "requests"):
        put(documents[-1], (*CONTAINER, "resources", key, "nvidia.com/gpu"), GONE)
    told(find_problems(documents), "limits.nvidia.com/gpu is missing", "nvidia.com/gpu: 1")


def test_a_mount_without_its_volume_is_told() -> None:
    told(
        broken(RAYJOB, (*CONTAINER, "volumeMounts", 1), {"name": "shared-memroy", "mountPath": "/x"}),
        "volumeMounts.shared-memroy",
        "did you mean 'shared-memory'?",
    )


def test_secrets_and_strangers_in_a_rayjob_file_are_told() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"note": "x"}}
    told(find_problems([secret, *FILLED[RAYJOB]]), "Secret", "kubectl create secret")
    stranger = {"apiVersion": "v1", "kind": "NetworkPolcy"}
    told(find_problems([stranger, *FILLED[RAYJOB]]), "did you mean 'NetworkPolicy'?")
    told(find_problems(FILLED[RAYJOB][:-1]), "one document is a RayJob")


def test_all_pods_of_the_job_are_behind_the_same_network_policy() -> None:
    """The policy names pods by a label; a template without it would stand outside, open to the whole cluster."""
    _, policy, job = FILLED[RAYJOB]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for template in [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]:
        assert labels.items() <= template["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
