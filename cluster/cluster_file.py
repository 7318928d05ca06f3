"""The file that describes a cluster, as far as the launcher has to know it; Ray reads the same file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ali_dist.errors import InputError

_LEFT_TO_CHANGE = re.compile(r"CHANGE[-_ ]?(ME|THIS)|<[^<>]+>|YOUR[-_]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """A cluster that Ray's cluster launcher can start.

    Args:
        path: Its YAML file.
        provider: `local` is own machines over SSH; others are Ray's business.
        head: Address of the head; empty unless the provider is local.
        workers: Addresses of the other machines; empty unless the provider is local.
        user: Whom SSH logs in as.
        key: The private key for it; None leaves it to SSH.
        mounts: What every machine gets: path there, path here (relative to the project).
        setup: Shell commands that make a machine ready for Ray; none where they are a container's business.
    """

    path: Path
    provider: str
    head: str
    workers: tuple[str, ...]
    user: str
    key: Path | None
    mounts: tuple[tuple[str, str], ...] = ()
    setup: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether these are own machines, which the launcher itself may log in to."""
        return self.provider == "local"

    @property
    def machines(self) -> tuple[str, ...]:
        """Addresses of all own machines, the head first."""
        return (self.head, *self.workers) if self.is_local else ()


def load_cluster_file(path: Path) -> ClusterFile:
    """What the file says.

    Raises:
        InputError: There is no such file, it describes no Ray cluster, or placeholders are left in it.
    """
    found = _read_yaml(path)
    left = sorted({name for name, value in _walk_texts(found) if _LEFT_TO_CHANGE.search(value)})
    if left:
        raise InputError(
            f"{path} still has placeholders at {', '.join(left)}: put your own values there, as the comments beside "
            "them say."
        )
    provider, auth = found["provider"], found.get("auth") or {}
    kind = provider["type"]
    key = Path(auth["ssh_private_key"]).expanduser() if auth.get("ssh_private_key") else None
    if key is not None and not key.is_file():
        raise InputError(
            f"{path} names the SSH key {key} (auth.ssh_private_key), and there is no such file: name the private key "
            "that opens the machines, or make one with ssh-keygen -t ed25519 and copy it there with ssh-copy-id."
        )
    head: str = ""
    workers: tuple[str, ...] = ()
    if kind == "local":
        head, workers = _read_machines(path, provider)
        if not auth.get("ssh_user"):
            raise InputError(f"{path} has no auth.ssh_user: name the user to log in as on the machines.")
    mounts = tuple((found.get("file_mounts") or {}).items())
    setup = () if found.get("docker") else tuple(found.get("setup_commands") or ())
    return ClusterFile(path.absolute(), kind, head, workers, auth.get("ssh_user", ""), key, mounts, setup)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no file {path}: name the YAML file of a cluster, such as cluster/local.yaml.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    provider = found.get("provider") if isinstance(found, dict) else None
    if not isinstance(provider, dict) or "type" not in provider or "cluster_name" not in found:
        hint = ""
        if isinstance(found, dict) and "apiVersion" in found:
            hint = " It is a Kubernetes manifest: kubectl apply -f takes those."
        raise InputError(
            f"{path} does not describe a Ray cluster, which has a cluster_name and a provider with a type: start from "
            f"cluster/local.yaml or cluster/ali.yaml.{hint}"
        )
    return dict(found)


def _read_machines(path: Path, provider: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not isinstance(head, str) or not isinstance(workers, list) or not all(isinstance(w, str) for w in workers):
        raise InputError(
            f"{path} must name own machines by provider.head_ip, an address, and provider.worker_ips, a list of "
            "addresses; [] where there are none."
        )
    if len({head, *workers}) <= len(workers):
        raise InputError(f"{path} names a machine twice in provider.head_ip and provider.worker_ips: name each once.")
    return provider.get("external_head_ip") or head, tuple(workers)


def _walk_texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of everything that is text; commands are left out, for they may have any characters."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not str(key).endswith("_commands"):
                yield from _walk_texts(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk_texts(inner, name)
    elif isinstance(value, str):
        yield name, value
