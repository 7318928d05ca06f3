"""An exported model goes to the Hugging Face Hub, by the Hub's own library, which also knows where the token is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ali_dist.errors import InputError, StorageError
from ali_dist.inference.choices import GRAPH_SUFFIXES
from ali_dist.runs.optional_packages import is_installed, without_secrets

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_REFUSED = (401, 403, 404)  # no such token, no right to write, or a repository that must not be known


def check_push(repository: str) -> None:
    """Refuse before anything is exported what could not be uploaded.

    Raises:
        InputError: The name is none, or the package or a token is missing.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"--push is {repository!r}, but must be OWNER/NAME, such as me/digits.")
    if not is_installed("huggingface_hub"):
        raise InputError(
            "--push needs the package huggingface_hub, which is not installed: install it with pip install "
            "'ali-dist[hub]', or leave --push out."
        )
    from huggingface_hub import get_token

    if not get_token():
        raise InputError(
            "--push needs a token that may write to the Hugging Face Hub, and there is none: run hf auth login, set "
            "HF_TOKEN, or leave --push out."
        )


def push_export(folder: Path, repository: str, names: Sequence[str], *, message: str, is_public: bool = False) -> str:
    """Upload the files of an exported model in one commit; graphs of an older export go, as they do in the folder.

    Args:
        folder: Where they lie, and stay.
        repository: OWNER/NAME; made if it does not exist.
        names: Names of the files.
        message: Title of the commit.
        is_public: Whether a repository that is made here is public. One that exists stays as it is.

    Returns:
        The address of the commit, or of the repository.

    Raises:
        InputError: The Hub refuses.
        StorageError: It cannot be reached, or fails.
    """
    from huggingface_hub import HfApi, get_token

    graphs = [f"{network}{suffix}" for network in ("encoder", "decoder") for suffix in GRAPH_SUFFIXES.values()]
    try:
        api = HfApi(library_name="ali_dist")
        api.create_repo(repository, private=not is_public, exist_ok=True, repo_type="model")
        commit: Any = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            allow_patterns=list(names),
            delete_patterns=[name for name in graphs if name not in names],
            commit_message=message,
        )
    except Exception as error:
        # The library's errors are those of its HTTP client as well, which change from version to version.
        reason = without_secrets(" ".join(f"{error}".split()), get_token() or "").rstrip(".")[:300]
        kept = f"{reason or type(error).__name__}); it stays in {folder}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in _REFUSED or isinstance(error, ValueError):
            raise InputError(
                f"The Hugging Face Hub refused the exported model for {repository} ({kept}: give a repository that "
                "your token may write to."
            ) from error
        raise StorageError(
            f"The exported model could not be uploaded to {repository} ({kept}: repeat the command when the Hugging "
            "Face Hub can be reached."
        ) from error
    return str(getattr(commit, "commit_url", None) or f"{repository} on the Hugging Face Hub")
