"""Which keys a RayJob has, and of what kind their values are, as KubeRay 1.5.1 to 1.7.0 describe them.

Of what Kubernetes itself allows in a pod, rare and deprecated keys are left out: they are told as unknown.

A fact is a kind ("text", "whole", "number", "flag", "quantity"), a tuple of the words that are allowed, a mapping of
keys to facts, a list with the fact of each element, or ANY for what is not looked into. `misfits` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.checks.findings import describe_finding, describe_unknown

ANY = object()
TEXTS = {"*": "text"}  # any keys, texts as values
QUANTITIES = {"*": "quantity"}
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kKMGTPE]i?)?")

SECURITY = {
    "runAsNonRoot": "flag",
    "runAsUser": "whole",
    "runAsGroup": "whole",
    "fsGroup": "whole",
    "fsGroupChangePolicy": "text",
    "supplementalGroups": ["whole"],
    "allowPrivilegeEscalation": "flag",
    "privileged": "flag",
    "readOnlyRootFilesystem": "flag",
    "procMount": "text",
    "seLinuxOptions": ANY,
    "capabilities": {"add": ["text"], "drop": ["text"]},
    "seccompProfile": {"type": ("RuntimeDefault", "Unconfined", "Localhost"), "localhostProfile": "text"},
    "appArmorProfile": ANY,
    "sysctls": ANY,
}

RESOURCES = {"requests": QUANTITIES, "limits": QUANTITIES, "claims": ANY}
ENV = [{"name": "text", "value": "text", "valueFrom": ANY}]
ENV_FROM = [
    {
        "prefix": "text",
        "secretRef": {"name": "text", "optional": "flag"},
        "configMapRef": {"name": "text", "optional": "flag"},
    }
]
MOUNTS = [
    {
        "name": "text",
        "mountPath": "text",
        "subPath": "text",
        "subPathExpr": "text",
        "readOnly": "flag",
        "mountPropagation": "text",
        "recursiveReadOnly": "text",
    }
]

CONTAINER = {
    "name": "text",
    "image": "text",
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "command": ["text"],
    "args": ["text"],
    "workingDir": "text",
    "env": ENV,
    "envFrom": ENV_FROM,
    "resources": RESOURCES,
    "volumeMounts": MOUNTS,
    "volumeDevices": ANY,
    "ports": ANY,
    "securityContext": SECURITY,
    "lifecycle": ANY,
    "livenessProbe": ANY,
    "readinessProbe": ANY,
    "startupProbe": ANY,
    "restartPolicy": "text",
    "resizePolicy": ANY,
    "terminationMessagePath": "text",
    "terminationMessagePolicy": "text",
    "stdin": "flag",
    "tty": "flag",
}

VOLUME = {
    "name": "text",
    "emptyDir": {"medium": ("", "Memory"), "sizeLimit": "quantity"},
    "secret": ANY,
    "configMap": ANY,
    "persistentVolumeClaim": ANY,
    "projected": ANY,
    "csi": ANY,
    "ephemeral": ANY,
    "hostPath": ANY,
    "nfs": ANY,
    "downwardAPI": ANY,
    "image": ANY,
}

TOLERATION = {
    "key": "text",
    "operator": ("Exists", "Equal"),
    "value": "text",
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "tolerationSeconds": "whole",
}

POD = {
    "containers": [CONTAINER],
    "initContainers": [CONTAINER],
    "volumes": [VOLUME],
    "securityContext": SECURITY,
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "serviceAccountName": "text",
    "automountServiceAccountToken": "flag",
    "terminationGracePeriodSeconds": "whole",
    "nodeSelector": TEXTS,
    "tolerations": [TOLERATION],
    "affinity": ANY,
    "topologySpreadConstraints": ANY,
    "priorityClassName": "text",
    "imagePullSecrets": [{"name": "text"}],
    "schedulerName": "text",
    "runtimeClassName": "text",
    "hostNetwork": "flag",
    "hostPID": "flag",
    "hostIPC": "flag",
    "shareProcessNamespace": "flag",
    "dnsPolicy": "text",
    "dnsConfig": ANY,
    "hostAliases": ANY,
    "activeDeadlineSeconds": "whole",
    "enableServiceLinks": "flag",
    "resourceClaims": ANY,
    "preemptionPolicy": "text",
    "nodeName": "text",
    "subdomain": "text",
    "hostname": "text",
    "hostUsers": "flag",
}

METADATA = {"name": "text", "generateName": "text", "namespace": "text", "labels": TEXTS, "annotations": TEXTS}
TEMPLATE = {"metadata": METADATA, "spec": POD}

HEAD = {
    "template": TEMPLATE,
    "rayStartParams": TEXTS,
    "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
    "headService": ANY,
    "enableIngress": "flag",
    "resources": TEXTS,
    "labels": TEXTS,
    "ingressOptions": ANY,  # from KubeRay 1.7
}

GROUP = {
    "groupName": "text",
    "replicas": "whole",
    "minReplicas": "whole",
    "maxReplicas": "whole",
    "template": TEMPLATE,
    "rayStartParams": TEXTS,
    "idleTimeoutSeconds": "whole",
    "numOfHosts": "whole",
    "suspend": "flag",
    "scaleStrategy": {"workersToDelete": ["text"]},
    "resources": TEXTS,
    "labels": TEXTS,
    "priority": "whole",  # from KubeRay 1.7
}

AUTOSCALER = {
    "version": ("v1", "v2"),
    "idleTimeoutSeconds": "whole",
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
    "resources": RESOURCES,
    "image": "text",
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "securityContext": SECURITY,
    "env": ENV,
    "envFrom": ENV_FROM,
    "volumeMounts": MOUNTS,
    "command": ["text"],
    "args": ["text"],  # this and command from KubeRay 1.7
}

CLUSTER = {
    "rayVersion": "text",
    "headGroupSpec": HEAD,
    "workerGroupSpecs": [GROUP],
    "enableInTreeAutoscaling": "flag",
    "autoscalerOptions": AUTOSCALER,
    "headServiceAnnotations": TEXTS,
    "gcsFaultToleranceOptions": ANY,
    "authOptions": {
        "mode": ("token", "disabled"),
        "secretName": "text",  # from KubeRay 1.6
    },
    "suspend": "flag",
    "managedBy": "text",
    "upgradeStrategy": ANY,
    "networkPolicy": ANY,
    "tlsOptions": ANY,
    "historyServerOptions": ANY,  # from KubeRay 1.7, behind feature gates
}

JOB = {
    "entrypoint": "text",
    "runtimeEnvYAML": "text",
    "jobId": "text",
    "metadata": TEXTS,
    "submissionMode": ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    "submitterPodTemplate": TEMPLATE,
    "submitterConfig": {"backoffLimit": "whole"},
    "shutdownAfterJobFinishes": "flag",
    "ttlSecondsAfterFinished": "whole",
    "activeDeadlineSeconds": "whole",
    "backoffLimit": "whole",
    "suspend": "flag",
    "managedBy": "text",
    "clusterSelector": TEXTS,
    "deletionStrategy": ANY,
    "entrypointNumCpus": "number",
    "entrypointNumGpus": "number",
    "entrypointResources": "text",
    "rayClusterSpec": CLUSTER,
    "preRunningDeadlineSeconds": "whole",  # from KubeRay 1.6
}

RAYJOB = {"apiVersion": ("ray.io/v1",), "kind": ("RayJob",), "metadata": METADATA, "spec": JOB}


def find_misfits(where: str, value: object, fact: Any) -> Iterator[str]:
    """Sentences about keys that are unknown and values that are of another kind than `fact` says."""
    if fact is ANY:
        return
    if isinstance(fact, dict):
        yield from _mapping_misfits(where, value, fact)
    elif isinstance(fact, list):
        if not isinstance(value, list):
            yield describe_finding(where, value, "Kubernetes expects a list", "put each element after a dash")
        else:
            for number, element in enumerate(value):
                yield from find_misfits(f"{where}[{number}]", element, fact[0])
    elif isinstance(fact, tuple):
        if value not in fact:
            yield describe_finding(where, value, "Kubernetes takes no such word", f"use one of {', '.join(fact)}")
    elif not _has_type(fact, value):
        examples = {"text": "a text, in quotes if it looks like a number", "whole": "a whole number from 0 up"}
        expected = examples.get(fact, {"flag": "true or false", "number": "a number"}.get(fact, "such as 500m or 4Gi"))
        yield describe_finding(where, value, f"it has to be a {fact}", f"write {expected}")


def _mapping_misfits(where: str, value: object, fact: dict[str, Any]) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield describe_finding(where, value, "Kubernetes expects keys with values", "write them below it")
        return
    for key, inner in value.items():
        if key in fact or "*" in fact:
            yield from find_misfits(f"{where}.{key}" if where else str(key), inner, fact.get(key, fact.get("*")))
        else:
            yield describe_unknown(where, key, fact, "Kubernetes")


def _has_type(kind: str, value: object) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "flag":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "whole":
        return isinstance(value, int) and value >= 0
    if kind == "number":
        return isinstance(value, int | float) and value >= 0
    return isinstance(value, int) or (isinstance(value, str) and _QUANTITY.fullmatch(value) is not None)
