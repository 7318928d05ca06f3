"""How Ray's processes reach storage: the driver's access, handed on in memory, and Ray's own files beside ours."""

from __future__ import annotations

import os
from typing import Any

from ali_dist.config import Config

# Ray writes a job's environment variables into log files and command lines, so keys have another way; see `cluster`.
ACCESS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)


def storage_access() -> dict[str, str]:
    """The variables of this process with which S3 is reached; none where machines have a role of their own."""
    return {name: os.environ[name] for name in ACCESS_VARIABLES if os.environ.get(name)}


def ray_storage(config: Config) -> tuple[str, Any]:
    """Where Ray keeps its own few files: beside ours, so that every machine sees them."""
    place = f"{config.run.dir.rstrip('/')}/{config.run.name}/ray"
    if not place.startswith("s3://"):
        return place, None
    import pyarrow.fs

    endpoint = (
        config.storage.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    scheme, _, host = (endpoint or "").rpartition("://")
    # Ray's controller is a process without our environment: the keys travel with the object, from memory to memory.
    keys = storage_access()
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=keys.get("AWS_ACCESS_KEY_ID"),
        secret_key=keys.get("AWS_SECRET_ACCESS_KEY"),
        session_token=keys.get("AWS_SESSION_TOKEN"),
        endpoint_override=host or None,
        scheme=scheme or "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        connect_timeout=config.storage.timeout_seconds,
        request_timeout=config.storage.timeout_seconds,
    )
    return place.removeprefix("s3://"), filesystem
