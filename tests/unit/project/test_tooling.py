"""What a newcomer meets before any of our code: the installation, make, and imports that load nothing heavy.

Run: `make test ARGS=tests/unit/project/test_tooling.py`
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]


def read_pins() -> dict[str, str]:
    """Name to exact version, from constraints.txt, each line of which is checked."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line)
            assert match, f"{line!r} is not name==version"
            assert canonicalize_name(match[1]) not in pins, f"{line!r} pins a package a second time"
            pins[canonicalize_name(match[1])] = match[2]
    return pins


def read_requirements() -> list[Requirement]:
    """Everything that pyproject.toml requires, including its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_constraints_are_exact_pins_inside_the_ranges_of_pyproject() -> None:
    """A dependency that is not pinned, or pinned outside its range, makes tomorrow's install differ from today's."""
    versions = read_pins()
    for requirement in read_requirements():
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not pinned"
        assert requirement.specifier.contains(versions[name]), f"{requirement} does not allow {versions[name]}"


def test_importing_any_module_loads_no_heavy_optional_library() -> None:
    """Local mode starts fast, and works without Ray, boto3 and webdataset, because such imports are lazy."""
    code = """if True:
        import importlib, pkgutil, sys
        import ali_dist

        heavy = {"boto3", "botocore", "matplotlib", "ray", "rich", "sklearn", "tensorboard", "webdataset"}
        names = [module.name for module in pkgutil.walk_packages(ali_dist.__path__, "ali_dist.")]
        for name in names:
            if not name.startswith("ali_dist.launchers.ray_"):
                importlib.import_module(name)
                assert not heavy & set(sys.modules), f"importing {name} loads {sorted(heavy & set(sys.modules))}"
        print(len(names))
    """
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr
    assert int(completed.stdout) > 5


def test_the_driver_and_the_controller_of_a_run_on_ray_do_without_pytorch() -> None:
    """It takes each of them two seconds and more to load, while the workers wait."""
    code = """if True:
        import sys
        import ali_dist.launchers.ray_controller
        import ali_dist.launchers.ray_group
        import ali_dist.launchers.ray_train
        import ali_dist.launchers.ray_trainer

        assert "torch" not in sys.modules
    """
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr


@pytest.fixture
def make(tmp_path: Path) -> Path:
    """A folder with our Makefile and nothing installed, for calls of make that must not touch this checkout."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run_make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    variables["PATH"] = path or variables["PATH"]
    command = [str(shutil.which("make")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, check=False)


def test_the_launcher_needs_no_pytorch(tmp_path: Path) -> None:
    """`make launcher` installs ray[default], boto3 and pyyaml alone, so nothing else may be imported."""
    uninstalled = ["torch", "torchvision", "sklearn", "webdataset", "tensorboard", "matplotlib", "PIL", "safetensors"]
    uninstalled += ["numpy", "pandas", "pyarrow", "rich"]
    code = (
        f"import runpy, sys\nsys.modules.update(dict.fromkeys({uninstalled}))\n"
        "import cluster.checks.aws, cluster.jobs, cluster.tunnel\n"
        "sys.argv[1:] = ['up', 'cluster/local.yaml']\nrunpy.run_module('cluster', run_name='__main__')"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (completed.returncode, "still has placeholders" in completed.stderr) == (2, True), completed.stderr


def test_make_without_a_target_lists_every_target_for_users(make: Path) -> None:
    """The default target explains the others and installs nothing."""
    completed = run_make(make)
    assert completed.returncode == 0, completed.stderr
    targets = "install launcher demo s3-demo test test-fast lint format docs sbom audit bench sweep image"
    for target in [*targets.split(), "up", "submit", "down", "clean"]:
        assert re.search(rf"^  make {target} +\w", completed.stdout, re.MULTILINE), target
    assert not (make / ".venv").exists()


@pytest.mark.parametrize(("target", "extra"), [("docs", "docs"), ("sbom", "supply"), ("audit", "supply")])
def test_tools_that_neither_train_nor_test_are_installed_beside_the_environment(
    make: Path, target: str, extra: str
) -> None:
    """`make test` and `make install` fetch none of them, and they cannot change the versions that tests run with."""
    lines = run_make(make, "--dry-run", target).stdout
    assert f"--requirement .venv/{extra}/requirements.txt" in lines
    for other in ("install", "test"):
        assert f".venv/{extra}" not in run_make(make, "--dry-run", other).stdout


def test_make_refuses_an_old_python_in_one_sentence(make: Path) -> None:
    """Without a recent Python nothing is created, and the message says what to install."""
    tools = make / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to(str(shutil.which("sh")))
    for name in ("python3", "python3.11"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    completed = run_make(make, "install", path=str(tools))
    assert completed.returncode != 0
    assert completed.stderr.startswith("ali_dist needs Python 3.11 or newer")
    assert "make PYTHON=" in completed.stderr
    assert not (make / ".venv").exists()


def test_an_installed_checkout_starts_at_once_and_a_changed_pin_installs_again(make: Path) -> None:
    """A stamp lets a second `make demo` start in seconds. It is outdated when pyproject or constraints are newer."""
    stamp = make / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip install" not in run_make(make, "--dry-run", "demo").stdout
    later = stamp.stat().st_mtime + 10
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(make / name, (later, later))
        assert "pip install" in run_make(make, "--dry-run", "demo").stdout, name
        os.utime(make / name, (later - 20, later - 20))
