"""The file that describes a cluster, as far as the launcher has to know it. Ray reads the same file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ali_dist.config.yaml_files import describe_yaml_error, parse_typed_yaml
from ali_dist.errors import InputError

_PLACEHOLDER = re.compile(r"CHANGE[-_ ]?(ME|THIS)|<[^<>]+>|YOUR[-_]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """A cluster that Ray's cluster launcher can start.

    Args:
        path: The YAML file.
        provider: "local" stands for own machines over SSH; all others are Ray's business.
        head: The head's address; empty unless the provider is local.
        workers: The addresses of the other machines; empty unless the provider is local.
        user: The user as whom SSH logs in.
        key: The private key that SSH uses; None leaves the choice to SSH.
        mounts: What every machine gets: pairs of a path there and a path here, which starts from the project's folder.
        setup: Shell commands that prepare a machine for Ray; none where it runs a container, which is prepared.
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
        """Whether these are own machines, to which the launcher itself may log in."""
        return self.provider == "local"

    @property
    def machines(self) -> tuple[str, ...]:
        """Addresses of all own machines, the head's first."""
        return (self.head, *self.workers) if self.is_local else ()


def load_cluster_file(path: Path) -> ClusterFile:
    """Read a cluster's file.

    Raises:
        InputError: There is no such file, it describes no Ray cluster, or placeholders are left in it.
    """
    document = _read_document(path)
    placeholders = sorted({key for key, text in _walk_texts(document) if _PLACEHOLDER.search(text)})
    if placeholders:
        raise InputError(
            f"{path} still has placeholders at {', '.join(placeholders)}: put your own values there, as the comments "
            "beside them say."
        )
    provider = document["provider"]
    auth = document.get("auth") or {}
    key = Path(auth["ssh_private_key"]).expanduser() if auth.get("ssh_private_key") else None
    if key is not None and not key.is_file():
        raise InputError(
            f"{path} names the SSH key {key} (auth.ssh_private_key), but there is no such file: name the private key "
            "that opens the machines, or make one with ssh-keygen -t ed25519 and copy it there with ssh-copy-id."
        )
    head: str = ""
    workers: tuple[str, ...] = ()
    if provider["type"] == "local":
        head, workers = _read_machines(path, provider)
        if not auth.get("ssh_user"):
            raise InputError(f"{path} has no auth.ssh_user: name the user to log in as on the machines.")
    return ClusterFile(
        path=path.absolute(),
        provider=provider["type"],
        head=head,
        workers=workers,
        user=auth.get("ssh_user", ""),
        key=key,
        mounts=tuple((document.get("file_mounts") or {}).items()),
        setup=() if document.get("docker") else tuple(document.get("setup_commands") or ()),
    )


def _read_document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no file {path}: name the YAML file of a cluster, such as cluster/local.yaml.")
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        document = parse_typed_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as YAML ({describe_yaml_error(error, text)}): correct it there."
        ) from error
    provider = document.get("provider") if isinstance(document, dict) else None
    if not isinstance(provider, dict) or "type" not in provider or "cluster_name" not in document:
        is_manifest = isinstance(document, dict) and "apiVersion" in document
        hint = " It is a Kubernetes manifest: kubectl apply -f takes those." if is_manifest else ""
        raise InputError(
            f"{path} does not describe a Ray cluster, which has a cluster_name and a provider with a type: start from "
            f"cluster/local.yaml or cluster/ali.yaml.{hint}"
        )
    return dict(document)


def _read_machines(path: Path, provider: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The head's address and those of the other machines."""
    head = provider.get("head_ip")
    workers = provider.get("worker_ips")
    if not isinstance(head, str) or not isinstance(workers, list) or not all(isinstance(w, str) for w in workers):
        raise InputError(
            f"{path} must name own machines by provider.head_ip, an address, and provider.worker_ips, a list of "
            "addresses: write [] where there are no others."
        )
    if len({head, *workers}) <= len(workers):
        raise InputError(f"{path} names a machine twice in provider.head_ip and provider.worker_ips: name each once.")
    return provider.get("external_head_ip") or head, tuple(workers)


def _walk_texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of every text, but for commands, which may contain any characters."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not str(name).endswith("_commands"):
                yield from _walk_texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk_texts(inner, key)
    elif isinstance(value, str):
        yield key, value
