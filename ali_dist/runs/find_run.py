"""The folder that a command's RUN means: a path, a url, or the name of a run under runs/. Needs no torch."""

from __future__ import annotations

import re

from ali_dist.config import StorageConfig
from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError
from ali_dist.runs.datasets import open_url
from ali_dist.storage.base import Store

RUNS = "runs"
"""Folder in which bare names of runs are looked for: the default of run.dir."""
_CHECKPOINT = re.compile(r"(?P<run>.*?)/+checkpoints(?:/+step-(?P<step>\d{9}))?")
_MOST_NAMES = 10


def find_run(path: str, storage: StorageConfig) -> tuple[Store, int | None]:
    """Find the run folder that `path` means, and the step if it names one checkpoint.

    Args:
        path: A run folder or a checkpoint folder in one, local or s3://; or the name of a run under runs/.
        storage: How to reach S3.

    Raises:
        InputError: There is no such run; the message names the nearest.
    """
    if not path.strip():
        raise InputError("RUN is empty: give a run folder, a checkpoint folder in one, or the name of a run.")
    url = path.rstrip("/") or "/"
    checkpoint = _CHECKPOINT.fullmatch(url)
    step = int(checkpoint["step"]) if checkpoint and checkpoint["step"] else None
    url = checkpoint["run"] if checkpoint else url
    is_bare_name = "/" not in url
    stores = [open_url(candidate, storage) for candidate in ([url, f"{RUNS}/{url}"] if is_bare_name else [url])]
    for store in stores:
        if store.stat("config.json") or store.list("checkpoints/"):
            return store, step
    raise _no_run_error(path, stores[-1].url, storage)


def _no_run_error(path: str, url: str, storage: StorageConfig) -> InputError:
    """The error for a run that is missing; it names the runs that are beside it."""
    parent, _, name = url.rpartition("/")
    if not parent or parent.endswith(":/"):  # a bare name, or a bucket itself: there is no folder to list
        return InputError(f"There is no run {path!r}: give a run folder, or the name of a run under {RUNS}/.")
    keys = [info.key.split("/") for info in open_url(parent, storage).list()]
    names = sorted({key[0] for key in keys if len(key) > 1 and (key[1] == "checkpoints" or key[1:] == ["config.json"])})
    if not names:
        return InputError(
            f"There is no run {path!r}, and no other in {parent}: train one with `python -m ali_dist.train`, or give "
            "the folder that holds its checkpoints."
        )
    hint = did_you_mean(name, names).removesuffix("?")
    shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    return InputError(f"There is no run {path!r}{hint}; the runs in {parent} are: {shown}.")
