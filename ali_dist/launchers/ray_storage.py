"""How Ray's processes reach storage: the driver's access, handed on in memory, and Ray's own files beside ours.

Imports neither ray nor torch: the launcher on a user's laptop has neither.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.errors import InputError
from ali_dist.storage import is_local, scheme_of

# Ray writes a job's environment variables into log files and command lines, so keys travel another way; see `cluster`.
ACCESS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)

_JOB_FOLDER = "/working_dir_files/"  # stands in the path of what `ray job submit --working-dir` has brought to the head


def storage_access() -> dict[str, str]:
    """The variables of this process with which S3 is reached; none where machines have a role of their own."""
    return {name: os.environ[name] for name in ACCESS_VARIABLES if os.environ.get(name)}


def check_results_stay(config: Config) -> None:
    """Refuse a relative run.dir in a Ray job: it would lie in the copy of the project that Ray made for this job.

    Raises:
        InputError: It would.
    """
    folder = os.getcwd()
    if is_local(config.run.dir) and not Path(config.run.dir).expanduser().is_absolute() and _JOB_FOLDER in folder:
        raise InputError(
            f"run.dir is {config.run.dir!r}, but a Ray job runs in a copy of the project that Ray deletes after it "
            f"({folder}): give --run.dir s3://bucket/prefix, or the whole path of a folder that all machines mount."
        )


def with_absolute_paths(config: Config) -> Config:
    """The config for processes that run in folders of their own: its paths do not depend on the current folder."""
    paths = {"run.dir": _absolute_url(config.run.dir), "data.url": _absolute_url(config.data.url)}
    cache = config.data.cache_dir
    if cache is not None and not cache.startswith("~"):  # the home of each machine's own user
        paths["data.cache_dir"] = _absolute_url(cache)
    return from_mapping(config.to_mapping(), paths)


def _absolute_url(url: str) -> str:
    return os.path.abspath(os.path.expanduser(url)) if is_local(url) else url


def open_ray_storage(config: Config) -> tuple[str, Any]:
    """Say where Ray keeps its own few files: in the run folder, beside ours, so that every machine sees them.

    Returns:
        Ray's `storage_path` and `storage_filesystem` (None for a folder).

    Raises:
        InputError: Ray has no file system for the scheme of run.dir.
    """
    url = f"{config.run.dir.rstrip('/')}/{config.run.name}/ray"
    scheme = scheme_of(url)
    if is_local(url):
        return url, None
    if scheme != "s3":
        raise InputError(f"run.dir is {config.run.dir!r}, but on Ray it must be a folder or s3://bucket/prefix.")
    return url.removeprefix(f"{scheme}://"), _open_s3_filesystem(config)


def _open_s3_filesystem(config: Config) -> Any:
    import pyarrow.fs

    endpoint = (
        config.storage.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    protocol, _, host = (endpoint or "").rpartition("://")
    # Ray's controller is a process without our environment: the keys travel with the object, from memory to memory.
    keys = {} if config.storage.anonymous else storage_access()
    return pyarrow.fs.S3FileSystem(
        access_key=keys.get("AWS_ACCESS_KEY_ID"),
        secret_key=keys.get("AWS_SECRET_ACCESS_KEY"),
        session_token=keys.get("AWS_SESSION_TOKEN"),
        anonymous=config.storage.anonymous,
        endpoint_override=host or None,
        scheme=protocol or "https",
        force_virtual_addressing=config.storage.addressing == "virtual",
        region=config.storage.region
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or "us-east-1",
        connect_timeout=config.storage.timeout_seconds,
        request_timeout=config.storage.timeout_seconds,
    )
