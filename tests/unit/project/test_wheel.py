"""What is installed and what is published: the wheel holds every file of the packages, the source archive every file.

Both are built here as `pip wheel --no-build-isolation` would build them, without the network.
Run: `make test ARGS=tests/unit/project/test_wheel.py`
"""

from __future__ import annotations

import email
import email.message
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ali_dist.version import VERSION
from tests.unit.project.test_tooling import ROOT

PACKAGES = ("ali_dist", "tuning", "cluster")
BUILD = "import setuptools.build_meta as b, sys; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}


def list_files_of_git() -> list[str]:
    """Every file that is or would be committed, as git tells."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this folder is no checkout of git, or git is not installed")
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from a copy of the files of git."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in list_files_of_git():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def read_metadata(wheel: Path) -> email.message.Message:
    """The wheel's METADATA, whose header lines are those of an e-mail and whose body is the readme."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name))


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """Presets, py.typed, cluster files and scripts are not forgotten, and no test or secret slips in."""
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {name for name in list_files_of_git() if name.startswith(tuple(f"{name}/" for name in PACKAGES))}
    assert names == expected


def test_the_source_archive_holds_every_file_of_git(built: Path) -> None:
    """What is unpacked can be tested and built like a checkout."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        paths = {member.name.partition("/")[2] for member in file if member.isfile()}
    made = {path for path in paths if path in MADE_BY_SETUPTOOLS or path.startswith("ali_dist.egg-info/")}
    assert paths - made == set(list_files_of_git())


def test_the_wheel_says_what_it_is_and_what_it_needs(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("ali-dist", VERSION)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert {"test", "lint", "sweep", "fid", "onnx"} <= set(metadata.get_all("Provides-Extra", []))


def test_a_wheel_brings_the_command_and_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """From the wheel alone, each package finds its files: presets, search spaces and cluster files."""
    with zipfile.ZipFile(wheel) as file:
        (entry_points,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert b"ali = ali_dist.__main__:run" in file.read(entry_points)
        file.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import ali_dist.config.loading as loading, tuning.spaces as spaces, cluster.checks\n"
        "print(loading.__file__)\nprint(*loading.preset_names())\nprint(*spaces.space_names())"
    )
    completed = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    module, presets, spaces = completed.stdout.splitlines()
    assert Path(module).is_relative_to(tmp_path)
    assert set(presets.split()) == {path.stem for path in (ROOT / "ali_dist/presets").glob("*.yaml")}
    assert set(spaces.split()) == {path.stem for path in (ROOT / "tuning/presets").glob("*.yaml")}


def test_a_cluster_is_not_started_from_a_wheel_which_has_no_pinned_versions(wheel: Path, tmp_path: Path) -> None:
    """The one command that needs the project's folder says so, before it asks for anything else."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from cluster.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-P", "-c", code, "up", str(tmp_path / "site" / "cluster" / "local.yaml")]
    variables = {**os.environ, "HOME": str(tmp_path)}
    completed = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert completed.returncode == 2, completed.stderr
    assert "run it in a checkout or in the unpacked source archive" in completed.stderr
    assert not (tmp_path / ".ray").exists()
