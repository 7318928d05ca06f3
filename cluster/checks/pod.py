"""Checks of one pod of a RayJob: what it may do on its machine, and what it needs to train.

Kubernetes accepts all of this: root, secrets in plain text, 64 MiB of shared memory, no time to save a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.checks.findings import PLACEHOLDER, SECRET_NAME, Finding, as_list, as_mapping

_LEAST_GRACE_SECONDS = 60


def check_pod(key: str, pod: Mapping[str, Any]) -> Iterator[Finding]:
    """All findings about a pod.

    Args:
        key: The dotted key of the pod's template.
        pod: The template's `spec`.
    """
    yield from _check_isolation(key, pod)
    containers = [as_mapping(container) for container in as_list(pod.get("containers"))]
    if not containers:
        yield Finding.wrong_value(f"{key}.spec.containers", None, "a pod needs one", "add it")
        return
    for number, container in enumerate(containers):
        container_key = f"{key}.spec.containers[{number}]"
        yield from _check_image(container_key, container)
        yield from _check_user(container_key, pod, container)
        yield from _check_privileges(container_key, container)
        yield from _check_environment(container_key, container)
        yield from _check_memory_limit(container_key, container)
        yield from _check_mounts(container_key, pod, container)
    if key != "spec.submitterPodTemplate":  # which neither trains nor saves
        yield from _check_grace_period(key, pod)
        yield from _check_shared_memory(key, pod, containers[0])


def _map_volumes(pod: Mapping[str, Any]) -> dict[Any, Mapping[str, Any]]:
    """Name to volume."""
    return {volume.get("name"): volume for volume in map(as_mapping, as_list(pod.get("volumes")))}


def _check_isolation(key: str, pod: Mapping[str, Any]) -> Iterator[Finding]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            expected = "pods share nothing with their machine"
            yield Finding.wrong_value(f"{key}.spec.{name}", pod[name], expected, "take it out")
    for name, volume in _map_volumes(pod).items():
        if "hostPath" in volume:
            expected = "pods share no folder with their machine"
            yield Finding.wrong_value(f"{key}.spec.volumes.{name}", "hostPath", expected, "use an emptyDir or a claim")


def _check_image(key: str, container: Mapping[str, Any]) -> Iterator[Finding]:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    if (not tag or tag == "latest") and "@sha256:" not in image and PLACEHOLDER not in image:
        expected = "all pods have to run the same image, today and at the next try"
        yield Finding.wrong_value(f"{key}.image", image or None, expected, "name a version, such as :0.1.0")
    if "imagePullPolicy" not in container:
        expected = "whether pods pull gigabytes again should not depend on the tag's name"
        yield Finding.wrong_value(f"{key}.imagePullPolicy", None, expected, "write IfNotPresent")


def _check_user(key: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[Finding]:
    """The user's number. A pod's security settings hold for a container that has none of its own."""
    key = f"{key}.securityContext"
    settings = {**as_mapping(pod.get("securityContext")), **as_mapping(container.get("securityContext"))}
    non_root = settings.get("runAsNonRoot")
    if non_root is not True:
        expected = "the image's user is 1000, and nothing here needs root"
        fix = "write true, there or for the pod"
        yield Finding.wrong_value(f"{key}.runAsNonRoot", non_root, expected, fix)
    if settings.get("runAsUser", 1000) == 0:
        yield Finding.wrong_value(f"{key}.runAsUser", 0, "nothing here needs root", "write 1000")


def _check_privileges(key: str, container: Mapping[str, Any]) -> Iterator[Finding]:
    key = f"{key}.securityContext"
    settings = as_mapping(container.get("securityContext"))
    escalation = settings.get("allowPrivilegeEscalation")
    if escalation is not False:
        expected = "no process may gain more rights than it started with"
        yield Finding.wrong_value(f"{key}.allowPrivilegeEscalation", escalation, expected, "write false")
    if settings.get("privileged"):
        yield Finding.wrong_value(f"{key}.privileged", settings["privileged"], "nothing here needs it", "take it out")
    dropped = as_mapping(settings.get("capabilities")).get("drop")
    if "ALL" not in as_list(dropped):
        expected = "nothing here needs a capability"
        yield Finding.wrong_value(f"{key}.capabilities.drop", dropped, expected, "write [ALL]")


def _check_environment(key: str, container: Mapping[str, Any]) -> Iterator[Finding]:
    for variable in map(as_mapping, as_list(container.get("env"))):
        name = str(variable.get("name"))
        if SECRET_NAME.search(name) and "value" in variable:
            fix = "take it from a Secret: valueFrom: {secretKeyRef: {name: ..., key: ...}}"
            yield Finding.wrong_value(f"{key}.env.{name}", "...", "secrets do not belong in a file", fix)


def _check_memory_limit(key: str, container: Mapping[str, Any]) -> Iterator[Finding]:
    if as_mapping(as_mapping(container.get("resources")).get("limits")).get("memory") is None:
        expected = "Ray plans with the whole machine's memory where a pod has no limit"
        yield Finding.wrong_value(f"{key}.resources.limits.memory", None, expected, "write one, such as 12Gi")


def _check_mounts(key: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[Finding]:
    """Every mount is of a volume that the pod has."""
    volumes = _map_volumes(pod)
    for mount in map(as_mapping, as_list(container.get("volumeMounts"))):
        name = mount.get("name")
        if name not in volumes:
            yield Finding.unknown_key(f"{key}.volumeMounts", name, map(str, volumes), "the pod's list of volumes")


def _check_grace_period(key: str, pod: Mapping[str, Any]) -> Iterator[Finding]:
    seconds = pod.get("terminationGracePeriodSeconds")
    if not isinstance(seconds, int) or seconds < _LEAST_GRACE_SECONDS:
        expected = "a pod that has to end needs time to save a checkpoint, and Kubernetes gives it 30 s by default"
        fix = f"write {_LEAST_GRACE_SECONDS} or more"
        yield Finding.wrong_value(f"{key}.spec.terminationGracePeriodSeconds", seconds, expected, fix)


def _check_shared_memory(key: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[Finding]:
    """Shared memory is large enough and has a limit. Ray runs in a pod's first container."""
    mounts = [as_mapping(mount) for mount in as_list(container.get("volumeMounts"))]
    names = {mount.get("mountPath"): mount.get("name") for mount in mounts}
    volume = _map_volumes(pod).get(names.get("/dev/shm"))
    shared = as_mapping(as_mapping(volume).get("emptyDir"))
    if shared.get("medium") != "Memory" or "sizeLimit" not in shared:
        expected = "Ray and NCCL need more than a container's 64 MiB, and without a limit it may eat the pod's memory"
        fix = "mount an emptyDir with medium: Memory and a sizeLimit there"
        yield Finding.wrong_value(f"{key}.spec.volumes at /dev/shm", dict(shared) or None, expected, fix)
