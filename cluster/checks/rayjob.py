"""What is wrong with a RayJob for KubeRay and what stands in the same file, found without Kubernetes.

KubeRay refuses much of this only when the job is applied, and lets the rest pass: a cluster that never goes away, a
dashboard with a public address, GPUs that no pod asks for, 64 MiB of shared memory, root.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from cluster.checks.findings import (
    PLACEHOLDER,
    SECRET_NAME,
    as_mapping,
    as_sequence,
    describe_finding,
    describe_unknown,
)
from cluster.checks.rayjob_schema import RAYJOB, find_misfits

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NAME_LENGTH = 47  # KubeRay puts six characters behind it, and more for its pods, within Kubernetes' 63
_BESIDE = ("ServiceAccount", "NetworkPolicy", "ConfigMap", "Secret")
_GPU = "nvidia.com/gpu"


def check_rayjob(documents: list[Mapping[str, Any]]) -> Iterator[str]:
    """All findings about the documents of one file, one of which has to be a RayJob."""
    jobs = [document for document in documents if document.get("kind") == "RayJob"]
    if len(jobs) != 1:
        yield describe_finding(
            "kind", [document.get("kind") for document in documents], "one document is a RayJob", "add it"
        )
    for document in documents:
        kind = document.get("kind")
        if kind != "RayJob" and kind not in _BESIDE:
            yield describe_unknown("kind", kind, ("RayJob", *_BESIDE), "this check")
        if kind == "Secret" and (document.get("data") or document.get("stringData")):
            fix = "take it out and use `kubectl create secret`"
            yield describe_finding("Secret", "...", "secrets do not belong into a file", fix)
    for job in jobs:
        wrong = list(find_misfits("", job, RAYJOB))
        yield from wrong
        if wrong:  # what is misspelt would be missed below, and said twice
            continue
        yield from _check_job(job)
        yield from _check_cluster_spec(as_mapping(as_mapping(job.get("spec")).get("rayClusterSpec")))
        for where, template in _pod_templates(as_mapping(job.get("spec"))):
            yield from _check_pod(where, as_mapping(template.get("spec")))


def _check_job(job: Mapping[str, Any]) -> Iterator[str]:
    """The job's own life: that it starts something, and that nothing of it stays."""
    name, spec = as_mapping(job.get("metadata")).get("name"), as_mapping(job.get("spec"))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH:
        expected = f"it has to be up to {_NAME_LENGTH} small letters, digits and dashes, with a letter first"
        yield describe_finding("metadata.name", name, expected, "shorten or correct it, such as ali")
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        yield describe_finding(
            "spec.entrypoint", None, "the job has to run something", "write python -m ali_dist.train ..."
        )
    if spec.get("shutdownAfterJobFinishes") is not True:
        expected = "the cluster would stay, and cost, when the job is done"
        yield describe_finding(
            "spec.shutdownAfterJobFinishes", spec.get("shutdownAfterJobFinishes"), expected, "write true"
        )
    for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not spec.get(key):
            expected = "a job that hangs, or a cluster after its job, would stay without end"
            yield describe_finding(f"spec.{key}", spec.get(key), expected, "write a number of seconds above 0")
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
        expected = "KubeRay's own submitter has neither limits nor a user other than the image's"
        yield describe_finding("spec.submitterPodTemplate", None, expected, "write one with this image")
    if mode in ("SidecarMode", "HTTPMode") and "submitterPodTemplate" in spec:
        yield describe_finding("spec.submitterPodTemplate", "...", f"{mode} has no such pod", "take it out")


def _check_cluster_spec(cluster: Mapping[str, Any]) -> Iterator[str]:
    """The cluster: closed, of the image's version, and with groups whose numbers agree."""
    where = "spec.rayClusterSpec"
    if not cluster:
        yield describe_finding(where, None, "the job needs a cluster of its own", "write it")
        return
    auth = as_mapping(cluster.get("authOptions")).get("mode")
    if auth != "token":
        expected = "who reaches Ray's ports runs code as this job unless Ray asks for a token"
        yield describe_finding(f"{where}.authOptions.mode", auth, expected, "write authOptions: {mode: token}")
    if cluster.get("rayVersion") != version("ray"):
        expected = f"constraints.txt and so the image have Ray {version('ray')}"
        yield describe_finding(f"{where}.rayVersion", cluster.get("rayVersion"), expected, f"write {version('ray')}")
    head = as_mapping(cluster.get("headGroupSpec"))
    for key in ("num-cpus", "num-gpus"):
        value = as_mapping(head.get("rayStartParams")).get(key)
        if value != "0":
            expected = "the head coordinates and trains nothing"
            yield describe_finding(f"{where}.headGroupSpec.rayStartParams.{key}", value, expected, f'write {key}: "0"')
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        key = "enableIngress" if head.get("enableIngress") else "serviceType"
        expected = "the dashboard, which starts jobs, would be reached from outside"
        yield describe_finding(
            f"{where}.headGroupSpec.{key}", head.get(key), expected, "take it out and use port-forward"
        )
    yield from _check_groups(f"{where}.workerGroupSpecs", as_sequence(cluster.get("workerGroupSpecs")))
    if cluster.get("enableInTreeAutoscaling") is True:
        yield from _check_autoscaling(where, cluster)


def _check_groups(where: str, groups: list[Any]) -> Iterator[str]:
    if not groups:
        yield describe_finding(where, None, "without workers nothing trains", "add a group")
    names = [as_mapping(group).get("groupName") for group in groups]
    for name in {name for name in names if names.count(name) > 1}:
        yield describe_finding(f"{where}.groupName", name, "each group needs a name of its own", "rename one")
    for number, group in enumerate(map(as_mapping, groups)):
        low, now, high = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
        if all(isinstance(value, int) for value in (low, now, high)) and not low <= now <= high:
            key = f"{where}[{number}].replicas"
            yield describe_finding(
                key, now, f"it has to lie between minReplicas {low} and maxReplicas {high}", "correct one"
            )
        yield from _check_gpus(
            f"{where}[{number}].template.spec", as_mapping(as_mapping(group.get("template")).get("spec"))
        )


def _check_gpus(where: str, pod: Mapping[str, Any]) -> Iterator[str]:
    """Ray runs in a pod's first container and offers the GPUs that this one has."""
    for number, container in enumerate(map(as_mapping, as_sequence(pod.get("containers")))):
        resources = as_mapping(container.get("resources"))
        limit, request = (as_mapping(resources.get(key)).get(_GPU) for key in ("limits", "requests"))
        key = f"{where}.containers[{number}].resources.limits.{_GPU}"
        if number == 0 and not limit:
            yield describe_finding(key, limit, "a worker without a GPU trains on its CPU", f"write {_GPU}: 1")
        elif request is not None and request != limit:
            yield describe_finding(key, limit, f"it has to equal the request, which is {request}", "write the same")


def _check_autoscaling(where: str, cluster: Mapping[str, Any]) -> Iterator[str]:
    """KubeRay's autoscaler v2 replaces pods by itself, and refuses those that Kubernetes would restart."""
    if as_mapping(cluster.get("autoscalerOptions")).get("version", "v2") == "v1":
        return
    pods = [("headGroupSpec", cluster.get("headGroupSpec"))]
    pods += [(f"workerGroupSpecs[{n}]", group) for n, group in enumerate(as_sequence(cluster.get("workerGroupSpecs")))]
    for name, group in pods:
        policy = as_mapping(as_mapping(as_mapping(group).get("template")).get("spec")).get("restartPolicy", "Never")
        if policy != "Never":
            expected = "autoscaler v2 replaces pods and KubeRay refuses those that restart"
            yield describe_finding(f"{where}.{name}.template.spec.restartPolicy", policy, expected, "write Never")


def _pod_templates(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod's template, with its dotted key."""
    if "submitterPodTemplate" in spec:
        yield "spec.submitterPodTemplate", as_mapping(spec["submitterPodTemplate"])
    cluster = as_mapping(spec.get("rayClusterSpec"))
    if cluster:
        head = as_mapping(cluster.get("headGroupSpec"))
        yield "spec.rayClusterSpec.headGroupSpec.template", as_mapping(head.get("template"))
    for number, group in enumerate(as_sequence(cluster.get("workerGroupSpecs"))):
        yield f"spec.rayClusterSpec.workerGroupSpecs[{number}].template", as_mapping(as_mapping(group).get("template"))


def _check_pod(where: str, pod: Mapping[str, Any]) -> Iterator[str]:
    """What a pod may do, and what it gets."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield describe_finding(
                f"{where}.spec.{key}", pod[key], "pods share nothing of their machine", "take it out"
            )
    volumes = {volume.get("name"): volume for volume in map(as_mapping, as_sequence(pod.get("volumes")))}
    for name, volume in volumes.items():
        if "hostPath" in volume:
            expected = "pods share no folder of their machine"
            yield describe_finding(f"{where}.spec.volumes.{name}", "hostPath", expected, "use an emptyDir or a claim")
    containers = as_sequence(pod.get("containers"))
    if not containers:
        yield describe_finding(f"{where}.spec.containers", None, "a pod needs one", "add it")
        return
    for number, container in enumerate(map(as_mapping, containers)):
        key = f"{where}.spec.containers[{number}]"
        yield from _check_image(key, container)
        yield from _check_user(
            key, as_mapping(pod.get("securityContext")), as_mapping(container.get("securityContext"))
        )
        yield from _check_environment(key, container)
        memory = as_mapping(as_mapping(container.get("resources")).get("limits")).get("memory")
        if memory is None:
            expected = "Ray plans with the whole machine's memory where a pod has no limit"
            yield describe_finding(f"{key}.resources.limits.memory", None, expected, "write one, such as 12Gi")
        for mount in map(as_mapping, as_sequence(container.get("volumeMounts"))):
            if mount.get("name") not in volumes:
                yield describe_unknown(
                    f"{key}.volumeMounts", mount.get("name"), map(str, volumes), "the pod's list of volumes"
                )
    if "submitterPodTemplate" not in where:
        yield from _check_storage(where, pod, volumes)


def _check_storage(where: str, pod: Mapping[str, Any], volumes: Mapping[Any, Mapping[str, Any]]) -> Iterator[str]:
    """Time to save a checkpoint, and shared memory that is big enough and counted."""
    grace = pod.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace < 60:
        expected = "a pod needs time to save a checkpoint when it has to go; Kubernetes gives 30 s"
        yield describe_finding(f"{where}.spec.terminationGracePeriodSeconds", grace, expected, "write 60 or more")
    first = as_mapping((as_sequence(pod.get("containers")) or [None])[0])
    mounts = {
        mount.get("mountPath"): mount.get("name") for mount in map(as_mapping, as_sequence(first.get("volumeMounts")))
    }
    shared = as_mapping(as_mapping(volumes.get(mounts.get("/dev/shm"))).get("emptyDir"))
    if shared.get("medium") != "Memory" or "sizeLimit" not in shared:
        expected = "Ray and NCCL need more than a container's 64 MiB, and without a limit it may eat the pod's memory"
        fix = "mount an emptyDir with medium: Memory and a sizeLimit there"
        yield describe_finding(f"{where}.spec.volumes at /dev/shm", dict(shared) or None, expected, fix)


def _check_image(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    if (not tag or tag == "latest") and "@sha256:" not in image and PLACEHOLDER not in image:
        expected = "all pods have to run the same image, today and at the next try"
        yield describe_finding(f"{where}.image", image or None, expected, "name a version, such as :0.1.0")
    if "imagePullPolicy" not in container:
        expected = "whether pods pull gigabytes anew should not depend on the tag's name"
        yield describe_finding(f"{where}.imagePullPolicy", None, expected, "write IfNotPresent")


def _check_user(where: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    """A pod's security settings hold for a container unless it has its own."""
    if container.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        expected = "the image's user is 1000, and nothing here needs root"
        yield describe_finding(
            f"{where}.securityContext.runAsNonRoot", None, expected, "write true, there or for the pod"
        )
    if container.get("runAsUser", pod.get("runAsUser", 1000)) == 0:
        yield describe_finding(f"{where}.securityContext.runAsUser", 0, "nothing here needs root", "write 1000")
    if container.get("allowPrivilegeEscalation") is not False or container.get("privileged"):
        expected = "no process is to gain more rights than it started with"
        value = container.get("allowPrivilegeEscalation")
        yield describe_finding(f"{where}.securityContext.allowPrivilegeEscalation", value, expected, "write false")
    if "ALL" not in as_sequence(as_mapping(container.get("capabilities")).get("drop")):
        value = as_mapping(container.get("capabilities")).get("drop")
        yield describe_finding(
            f"{where}.securityContext.capabilities.drop", value, "nothing here needs any", "write [ALL]"
        )


def _check_environment(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    for variable in map(as_mapping, as_sequence(container.get("env"))):
        name = str(variable.get("name"))
        if SECRET_NAME.search(name) and "value" in variable:
            fix = "take it from a Secret: valueFrom: {secretKeyRef: {name: ..., key: ...}}"
            yield describe_finding(f"{where}.env.{name}", "...", "secrets do not belong into a file", fix)
