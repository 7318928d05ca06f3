"""Which keys a RayJob has, and of what kind their values are, as KubeRay 1.5.1 to 1.7.0 describe them.

Rare and deprecated keys of Kubernetes' own pods are left out, and are reported as unknown. A test compares all others
with KubeRay's own schema (`tests/unit/cluster/test_rayjob_schema.py`).

A schema is one of these:

  a word        the kind of the value: "text", "whole", "number", "flag" or "quantity"
  a tuple       the texts that are allowed
  a mapping     the schema of each key; "*" stands for any key
  a list        the schema of each element
  ANY           the value is not checked
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.checks.findings import Finding

ANY = object()
TEXTS = {"*": "text"}  # any keys, texts as values
QUANTITIES = {"*": "quantity"}
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kKMGTPE]i?)?")
# What each kind is called in a sentence, and what to write.
_KINDS = {
    "text": ("a text", "it in quotes where it looks like a number"),
    "whole": ("a whole number", "a whole number from 0 up, without quotes"),
    "number": ("a number", "a number from 0 up, without quotes"),
    "flag": ("true or false", "true or false, without quotes"),
    "quantity": ("a quantity", "something such as 500m or 4Gi"),
}

_SECURITY = {
    "runAsNonRoot": "flag",
    "runAsUser": "whole",
    "runAsGroup": "whole",
    "seLinuxOptions": ANY,
    "seccompProfile": {"type": ("RuntimeDefault", "Unconfined", "Localhost"), "localhostProfile": "text"},
    "appArmorProfile": ANY,
}
POD_SECURITY = {
    **_SECURITY,
    "fsGroup": "whole",
    "fsGroupChangePolicy": "text",
    "supplementalGroups": ["whole"],
    "sysctls": ANY,
}
CONTAINER_SECURITY = {
    **_SECURITY,
    "allowPrivilegeEscalation": "flag",
    "privileged": "flag",
    "readOnlyRootFilesystem": "flag",
    "procMount": "text",
    "capabilities": {"add": ["text"], "drop": ["text"]},
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
    "securityContext": CONTAINER_SECURITY,
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
    "securityContext": POD_SECURITY,
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

TEMPLATE_METADATA = {"name": "text", "namespace": "text", "labels": TEXTS, "annotations": TEXTS}
METADATA = {**TEMPLATE_METADATA, "generateName": "text"}
TEMPLATE = {"metadata": TEMPLATE_METADATA, "spec": POD}

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
    "securityContext": CONTAINER_SECURITY,
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


def check_schema(document: object) -> Iterator[Finding]:
    """Keys of a RayJob that are unknown, and values that are of another kind than KubeRay expects."""
    yield from _compare_value("", document, RAYJOB)


def _compare_value(key: str, value: object, schema: Any) -> Iterator[Finding]:
    if schema is ANY:
        return
    if isinstance(schema, dict):
        yield from _compare_mapping(key, value, schema)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield Finding.wrong_value(key, value, "Kubernetes expects a list", "put each element after a dash")
        else:
            for number, element in enumerate(value):
                yield from _compare_value(f"{key}[{number}]", element, schema[0])
    elif isinstance(schema, tuple):
        if value not in schema:
            fix = f"use one of {', '.join(schema)}"
            yield Finding.wrong_value(key, value, "Kubernetes does not know this word", fix)
    elif not _is_of_kind(schema, value):
        name, example = _KINDS[schema]
        yield Finding.wrong_value(key, value, f"it has to be {name}", f"write {example}")


def _compare_mapping(key: str, value: object, schema: dict[str, Any]) -> Iterator[Finding]:
    if not isinstance(value, Mapping):
        yield Finding.wrong_value(key, value, "Kubernetes expects keys with values", "write them below it")
        return
    for name, inner in value.items():
        if name in schema or "*" in schema:
            yield from _compare_value(f"{key}.{name}" if key else str(name), inner, schema.get(name, schema.get("*")))
        else:
            yield Finding.unknown_key(key, name, schema, "Kubernetes")


def _is_of_kind(kind: str, value: object) -> bool:
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
