"""The Dockerfile and .dockerignore as texts: pinned, cached where it matters, and given nothing that it does not need.

That the image builds and works is shown in tests/e2e/test_image.py, where the machine allows it.
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
from tests.unit.project.test_tooling import ROOT, pins


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined, comments gone."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    joined = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, arguments.strip()) for name, _, arguments in pairs]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name of each stage (the last is called final) to its instructions."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            found[arguments.partition(" AS ")[2] or "final"] = []
        elif found:
            list(found.values())[-1].append((name, arguments))
    return found


def test_the_base_is_rays_image_of_the_pinned_version() -> None:
    assert ("ARG", f"BASE_IMAGE=rayproject/ray:{pins()['ray']}-py311-cpu") in instructions()
    bases = [text.partition(" AS ")[0] for name, text in instructions() if name == "FROM"]
    assert set(bases) == {"${BASE_IMAGE}"}, "a stage on another base brings a Python that the others do not have"


def test_the_version_label_is_the_packages() -> None:
    assert ("ARG", f"VERSION={ali_dist.__version__}") in stages()["final"]


def test_a_changed_line_of_code_does_not_install_gigabytes_again() -> None:
    """The stage of the dependencies sees nothing but what names them."""
    copied = [text.split()[:-1] for name, text in stages()["dependencies"] if name == "COPY"]
    assert copied == [["pyproject.toml", "constraints.txt"]]


def test_every_installation_is_pinned_or_offline_and_leaves_no_cache() -> None:
    runs = [text for name, text in instructions() if name == "RUN"]
    calls = [call for text in runs for call in re.findall(r"-m pip (?:install|wheel)[^&|]*", text)]
    assert len(calls) == 3
    for call in calls:
        assert "--no-cache-dir" in call, call
        assert "--constraint constraints.txt" in call or "--no-deps" in call and "--no-index" in call, call


def test_what_is_installed_is_what_pyproject_asks_for_each_with_its_pin(tmp_path: Path) -> None:
    """The line that makes requirements.txt is run as the builder runs it."""
    (run,) = [text for name, text in stages()["dependencies"] if name == "RUN"]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = run.partition(" > requirements.txt")[0].replace("python3", sys.executable, 1)
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [re.split(r"[\[<>=!~]", line)[0] for line in done.stdout.splitlines()]
    assert {"torch", "ray", "boto3", "webdataset", "optuna", "setuptools"} <= set(names)
    assert not {"pytest", "mypy", "ruff"} & set(names), "tests and linters have no business in the image"
    assert set(names) <= set(pins())


def test_the_image_runs_as_a_user_by_number_who_is_not_root() -> None:
    """Kubernetes refuses to start an image with runAsNonRoot whose user is a name."""
    users = [text for name, text in stages()["final"] if name == "USER"]
    assert users[-1] == "1000"


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a file or folder at the top of the checkout from the builder: the last match wins."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    result = False
    for line in [line for line in lines if line and not line.startswith("#")]:
        if fnmatch.fnmatch(name, line.removeprefix("!").removeprefix("**/")):
            result = not line.startswith("!")
    return result


def test_the_builder_is_given_what_it_copies_and_nothing_else() -> None:
    for name in ("ali_dist", "tuning", "pyproject.toml", "constraints.txt", "LICENSE"):
        assert not ignored(name), name
    for name in (".git", ".venv", ".env", "runs", "data", "tests", "cluster", "id_ed25519", "__pycache__", ".swift"):
        assert ignored(name), name
