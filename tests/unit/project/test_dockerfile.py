"""The text of the Dockerfile and of .dockerignore: everything is pinned and cached, and only what is needed is copied.

tests/e2e/test_image.py shows that the image builds and works, on machines that allow it.
Run: `make test ARGS=tests/unit/project/test_dockerfile.py`
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ali_dist
from cluster.host import read_pinned_versions

ROOT = Path(__file__).resolve().parents[3]
PINNED = read_pinned_versions(ROOT)


def read_instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, without comments and with continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    joined = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, arguments.strip()) for name, _, arguments in pairs]


def read_stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name; the last stage is called final."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in read_instructions():
        if name == "FROM":
            stages[arguments.partition(" AS ")[2] or "final"] = []
        elif stages:
            list(stages.values())[-1].append((name, arguments))
    return stages


def test_the_base_is_rays_image_of_the_pinned_version() -> None:
    assert ("ARG", f"BASE_IMAGE=rayproject/ray:{PINNED['ray']}-py311-cpu") in read_instructions()
    bases = [text.partition(" AS ")[0] for name, text in read_instructions() if name == "FROM"]
    assert set(bases) == {"${BASE_IMAGE}"}, "a stage on another base brings a Python that the others do not have"


def test_the_version_label_is_the_version_of_the_package() -> None:
    assert ("ARG", f"VERSION={ali_dist.__version__}") in read_stages()["final"]


def test_a_changed_line_of_code_does_not_install_gigabytes_again() -> None:
    """The stage that installs the dependencies copies only the files that name them."""
    copied = [text.split()[:-1] for name, text in read_stages()["dependencies"] if name == "COPY"]
    assert copied == [["pyproject.toml", "constraints.txt"]]


def test_every_installation_is_pinned_or_offline_and_leaves_no_cache() -> None:
    runs = [text for name, text in read_instructions() if name == "RUN"]
    calls = [call for text in runs for call in re.findall(r"-m pip (?:install|wheel)[^&|]*", text)]
    assert len(calls) == 3
    for call in calls:
        assert "--no-cache-dir" in call, call
        is_offline = "--no-deps" in call and "--no-index" in call
        assert "--constraint constraints.txt" in call or is_offline, call


def test_the_image_installs_the_requirements_of_pyproject_and_each_is_pinned(tmp_path: Path) -> None:
    """The line that writes requirements.txt is run as the builder runs it."""
    (run,) = [text for name, text in read_stages()["dependencies"] if name == "RUN"]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = run.partition(" > requirements.txt")[0].replace("python3", sys.executable, 1)
    completed = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [re.split(r"[\[<>=!~]", line)[0] for line in completed.stdout.splitlines()]
    assert {"torch", "ray", "boto3", "webdataset", "optuna", "setuptools"} <= set(names)
    assert not {"pytest", "mypy", "ruff"} & set(names), "the image needs neither tests nor linters"
    assert set(names) <= set(PINNED)


def test_the_image_runs_as_a_user_who_is_not_root_and_is_named_by_number() -> None:
    """With runAsNonRoot, Kubernetes refuses to start an image whose user is a name."""
    users = [text for name, text in read_stages()["final"] if name == "USER"]
    assert users[-1] == "1000"


def is_ignored(name: str) -> bool:
    """Whether .dockerignore keeps a file or folder of the project's folder from the builder. The last match decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    result = False
    for line in [line for line in lines if line and not line.startswith("#")]:
        if fnmatch.fnmatch(name, line.removeprefix("!").removeprefix("**/")):
            result = not line.startswith("!")
    return result


def test_the_builder_gets_what_it_copies_and_nothing_else() -> None:
    for name in ("ali_dist", "tuning", "pyproject.toml", "constraints.txt", "LICENSE", "README.md"):
        assert not is_ignored(name), name
    for name in (".git", ".venv", ".env", "runs", "data", "tests", "cluster", "id_ed25519", "__pycache__", ".swift"):
        assert is_ignored(name), name
