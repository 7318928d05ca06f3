"""What is wrong with a RayJob for KubeRay and what stands in the same file, found without Kubernetes.

KubeRay refuses much of this only when the job is applied, and lets the rest pass: a cluster that never goes away, a
dashboard with a public address, GPUs that no pod asks for, 64 MiB of shared memory, root.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from cluster.findings import PLACEHOLDER, SECRET_NAME, finding, mapping, sequence, unknown
from cluster.rayjob_schema import RAYJOB, misfits

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NAME_LENGTH = 47  # KubeRay puts six characters behind it, and more for its pods, within Kubernetes' 63
_BESIDE = ("ServiceAccount", "NetworkPolicy", "ConfigMap", "Secret")
_GPU = "nvidia.com/gpu"


def rules(documents: list[Mapping[str, Any]]) -> Iterator[str]:
    """All findings about the documents of one file, one of which has to be a RayJob."""
    jobs = [document for document in documents if document.get("kind") == "RayJob"]
    if len(jobs) != 1:
        yield finding("kind", [document.get("kind") for document in documents], "one document is a RayJob", "add it")
    for document in documents:
        kind = document.get("kind")
        if kind != "RayJob" and kind not in _BESIDE:
            yield unknown("kind", kind, ("RayJob", *_BESIDE), "this check")
        if kind == "Secret" and (document.get("data") or document.get("stringData")):
            fix = "take it out and use `kubectl create secret`"
            yield finding("Secret", "...", "secrets do not belong into a file", fix)
    for job in jobs:
        wrong = list(misfits("", job, RAYJOB))
        yield from wrong
        if wrong:  # what is misspelt would be missed below, and said twice
            continue
        yield from _job(job)
        yield from _cluster(mapping(mapping(job.get("spec")).get("rayClusterSpec")))
        for where, template in _templates(mapping(job.get("spec"))):
            yield from _pod(where, mapping(template.get("spec")))


def _job(job: Mapping[str, Any]) -> Iterator[str]:
    """The job's own life: that it starts something, and that nothing of it stays."""
    name, spec = mapping(job.get("metadata")).get("name"), mapping(job.get("spec"))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH:
        expected = f"it has to be up to {_NAME_LENGTH} small letters, digits and dashes, with a letter first"
        yield finding("metadata.name", name, expected, "shorten or correct it, such as ali")
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        yield finding("spec.entrypoint", None, "the job has to run something", "write python -m ali_dist.train ...")
    if spec.get("shutdownAfterJobFinishes") is not True:
        expected = "the cluster would stay, and cost, when the job is done"
        yield finding("spec.shutdownAfterJobFinishes", spec.get("shutdownAfterJobFinishes"), expected, "write true")
    for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not spec.get(key):
            expected = "a job that hangs, or a cluster after its job, would stay without end"
            yield finding(f"spec.{key}", spec.get(key), expected, "write a number of seconds above 0")
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
        expected = "KubeRay's own submitter has neither limits nor a user other than the image's"
        yield finding("spec.submitterPodTemplate", None, expected, "write one with this image")
    if mode in ("SidecarMode", "HTTPMode") and "submitterPodTemplate" in spec:
        yield finding("spec.submitterPodTemplate", "...", f"{mode} has no such pod", "take it out")


def _cluster(cluster: Mapping[str, Any]) -> Iterator[str]:
    """The cluster: closed, of the image's version, and with groups whose numbers agree."""
    where = "spec.rayClusterSpec"
    if not cluster:
        yield finding(where, None, "the job needs a cluster of its own", "write it")
        return
    auth = mapping(cluster.get("authOptions")).get("mode")
    if auth != "token":
        expected = "who reaches Ray's ports runs code as this job unless Ray asks for a token"
        yield finding(f"{where}.authOptions.mode", auth, expected, "write authOptions: {mode: token}")
    if cluster.get("rayVersion") != version("ray"):
        expected = f"constraints.txt and so the image have Ray {version('ray')}"
        yield finding(f"{where}.rayVersion", cluster.get("rayVersion"), expected, f"write {version('ray')}")
    head = mapping(cluster.get("headGroupSpec"))
    for key in ("num-cpus", "num-gpus"):
        value = mapping(head.get("rayStartParams")).get(key)
        if value != "0":
            expected = "the head coordinates and trains nothing"
            yield finding(f"{where}.headGroupSpec.rayStartParams.{key}", value, expected, f'write {key}: "0"')
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        key = "enableIngress" if head.get("enableIngress") else "serviceType"
        expected = "the dashboard, which starts jobs, would be reached from outside"
        yield finding(f"{where}.headGroupSpec.{key}", head.get(key), expected, "take it out and use port-forward")
    yield from _groups(f"{where}.workerGroupSpecs", sequence(cluster.get("workerGroupSpecs")))
    if cluster.get("enableInTreeAutoscaling") is True:
        yield from _autoscaling(where, cluster)


def _groups(where: str, groups: list[Any]) -> Iterator[str]:
    if not groups:
        yield finding(where, None, "without workers nothing trains", "add a group")
    names = [mapping(group).get("groupName") for group in groups]
    for name in {name for name in names if names.count(name) > 1}:
        yield finding(f"{where}.groupName", name, "each group needs a name of its own", "rename one")
    for number, group in enumerate(map(mapping, groups)):
        low, now, high = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
        if all(isinstance(value, int) for value in (low, now, high)) and not low <= now <= high:
            key = f"{where}[{number}].replicas"
            yield finding(key, now, f"it has to lie between minReplicas {low} and maxReplicas {high}", "correct one")
        yield from _gpus(f"{where}[{number}].template.spec", mapping(mapping(group.get("template")).get("spec")))


def _gpus(where: str, pod: Mapping[str, Any]) -> Iterator[str]:
    """Ray runs in a pod's first container and offers the GPUs that this one has."""
    for number, container in enumerate(map(mapping, sequence(pod.get("containers")))):
        resources = mapping(container.get("resources"))
        limit, request = (mapping(resources.get(key)).get(_GPU) for key in ("limits", "requests"))
        key = f"{where}.containers[{number}].resources.limits.{_GPU}"
        if number == 0 and not limit:
            yield finding(key, limit, "a worker without a GPU trains on its CPU", f"write {_GPU}: 1")
        elif request is not None and request != limit:
            yield finding(key, limit, f"it has to equal the request, which is {request}", "write the same")


def _autoscaling(where: str, cluster: Mapping[str, Any]) -> Iterator[str]:
    """KubeRay's autoscaler v2 replaces pods by itself, and refuses those that Kubernetes would restart."""
    if mapping(cluster.get("autoscalerOptions")).get("version", "v2") == "v1":
        return
    pods = [("headGroupSpec", cluster.get("headGroupSpec"))]
    pods += [(f"workerGroupSpecs[{n}]", group) for n, group in enumerate(sequence(cluster.get("workerGroupSpecs")))]
    for name, group in pods:
        policy = mapping(mapping(mapping(group).get("template")).get("spec")).get("restartPolicy", "Never")
        if policy != "Never":
            expected = "autoscaler v2 replaces pods and KubeRay refuses those that restart"
            yield finding(f"{where}.{name}.template.spec.restartPolicy", policy, expected, "write Never")


def _templates(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod's template, with its dotted key."""
    if "submitterPodTemplate" in spec:
        yield "spec.submitterPodTemplate", mapping(spec["submitterPodTemplate"])
    cluster = mapping(spec.get("rayClusterSpec"))
    if cluster:
        head = mapping(cluster.get("headGroupSpec"))
        yield "spec.rayClusterSpec.headGroupSpec.template", mapping(head.get("template"))
    for number, group in enumerate(sequence(cluster.get("workerGroupSpecs"))):
        yield f"spec.rayClusterSpec.workerGroupSpecs[{number}].template", mapping(mapping(group).get("template"))


def _pod(where: str, pod: Mapping[str, Any]) -> Iterator[str]:
    """What a pod may do, and what it gets."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield finding(f"{where}.spec.{key}", pod[key], "pods share nothing of their machine", "take it out")
    volumes = {volume.get("name"): volume for volume in map(mapping, sequence(pod.get("volumes")))}
    for name, volume in volumes.items():
        if "hostPath" in volume:
            expected = "pods share no folder of their machine"
            yield finding(f"{where}.spec.volumes.{name}", "hostPath", expected, "use an emptyDir or a claim")
    containers = sequence(pod.get("containers"))
    if not containers:
        yield finding(f"{where}.spec.containers", None, "a pod needs one", "add it")
        return
    for number, container in enumerate(map(mapping, containers)):
        key = f"{where}.spec.containers[{number}]"
        yield from _image(key, container)
        yield from _user(key, mapping(pod.get("securityContext")), mapping(container.get("securityContext")))
        yield from _environment(key, container)
        memory = mapping(mapping(container.get("resources")).get("limits")).get("memory")
        if memory is None:
            expected = "Ray plans with the whole machine's memory where a pod has no limit"
            yield finding(f"{key}.resources.limits.memory", None, expected, "write one, such as 12Gi")
        for mount in map(mapping, sequence(container.get("volumeMounts"))):
            if mount.get("name") not in volumes:
                yield unknown(f"{key}.volumeMounts", mount.get("name"), map(str, volumes), "the pod's list of volumes")
    if "submitterPodTemplate" not in where:
        yield from _lasting(where, pod, volumes)


def _lasting(where: str, pod: Mapping[str, Any], volumes: Mapping[Any, Mapping[str, Any]]) -> Iterator[str]:
    """Time to save a checkpoint, and shared memory that is big enough and counted."""
    grace = pod.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace < 60:
        expected = "a pod needs time to save a checkpoint when it has to go; Kubernetes gives 30 s"
        yield finding(f"{where}.spec.terminationGracePeriodSeconds", grace, expected, "write 60 or more")
    first = mapping((sequence(pod.get("containers")) or [None])[0])
    mounts = {mount.get("mountPath"): mount.get("name") for mount in map(mapping, sequence(first.get("volumeMounts")))}
    shared = mapping(mapping(volumes.get(mounts.get("/dev/shm"))).get("emptyDir"))
    if shared.get("medium") != "Memory" or "sizeLimit" not in shared:
        expected = "Ray and NCCL need more than a container's 64 MiB, and without a limit it may eat the pod's memory"
        fix = "mount an emptyDir with medium: Memory and a sizeLimit there"
        yield finding(f"{where}.spec.volumes at /dev/shm", dict(shared) or None, expected, fix)


def _image(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    if (not tag or tag == "latest") and "@sha256:" not in image and PLACEHOLDER not in image:
        expected = "all pods have to run the same image, today and at the next try"
        yield finding(f"{where}.image", image or None, expected, "name a version, such as :0.1.0")
    if "imagePullPolicy" not in container:
        expected = "whether pods pull gigabytes anew should not depend on the tag's name"
        yield finding(f"{where}.imagePullPolicy", None, expected, "write IfNotPresent")


def _user(where: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    """A pod's security settings hold for a container unless it has its own."""
    if container.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        expected = "the image's user is 1000, and nothing here needs root"
        yield finding(f"{where}.securityContext.runAsNonRoot", None, expected, "write true, there or for the pod")
    if container.get("runAsUser", pod.get("runAsUser", 1000)) == 0:
        yield finding(f"{where}.securityContext.runAsUser", 0, "nothing here needs root", "write 1000")
    if container.get("allowPrivilegeEscalation") is not False or container.get("privileged"):
        expected = "no process is to gain more rights than it started with"
        value = container.get("allowPrivilegeEscalation")
        yield finding(f"{where}.securityContext.allowPrivilegeEscalation", value, expected, "write false")
    if "ALL" not in sequence(mapping(container.get("capabilities")).get("drop")):
        value = mapping(container.get("capabilities")).get("drop")
        yield finding(f"{where}.securityContext.capabilities.drop", value, "nothing here needs any", "write [ALL]")


def _environment(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    for variable in map(mapping, sequence(container.get("env"))):
        name = str(variable.get("name"))
        if SECRET_NAME.search(name) and "value" in variable:
            fix = "take it from a Secret: valueFrom: {secretKeyRef: {name: ..., key: ...}}"
            yield finding(f"{where}.env.{name}", "...", "secrets do not belong into a file", fix)
