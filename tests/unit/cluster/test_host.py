"""What a machine of the cluster finds out about itself, and its setup script.

Run: `make test ARGS=tests/unit/cluster/test_host.py`
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from cluster import host
from tests.helpers.cluster_files import ROOT


def write_project(folder: Path, *, pins: str) -> Path:
    """A project that requires two packages, with the text of its constraints.txt."""
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2.0", "ray[default,train]>=2"]\n')
    (folder / "constraints.txt").write_text(pins)
    return folder


def test_a_machine_is_right_when_it_has_the_requirements_in_their_pinned_versions(tmp_path: Path) -> None:
    numpy, ray = (importlib.metadata.version(name) for name in ("numpy", "ray"))
    pins = f"# all\nnumpy=={numpy}\nray=={ray}\nnot_there==1\n"
    assert host.find_wrong_packages(write_project(tmp_path, pins=pins)) == []
    pins = f"Numpy==1.0\nray=={ray}\n"
    assert host.find_wrong_packages(write_project(tmp_path, pins=pins)) == [f"numpy is {numpy}, not 1.0"]
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["Surely_Not.There[a]>=1"]\n')
    assert "surely-not-there is not installed" in host.find_wrong_packages(tmp_path)


def test_this_environment_is_right_for_this_project() -> None:
    assert host.find_wrong_packages(ROOT) == []


def test_the_script_prints_the_requirements_as_pip_reads_them(tmp_path: Path) -> None:
    """setup.sh calls it on a machine where nothing is installed: alone beside pyproject.toml, without site-packages."""
    write_project(tmp_path, pins="")
    (tmp_path / "host.py").write_bytes((ROOT / "cluster" / "host.py").read_bytes())
    command = [sys.executable, "-I", "-S", str(tmp_path / "host.py"), "requirements"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stdout == "numpy>=2.0\nray[default,train]>=2\n"
    script = (ROOT / "cluster" / "setup.sh").read_text(encoding="utf-8")
    assert "host.py requirements >requirements.txt" in script
    assert "--requirement requirements.txt" in script


def test_setting_up_leaves_a_machine_that_is_right_as_it_is(tmp_path: Path) -> None:
    """It calls no pip and needs no network, for pip would fail here. Without Python it says what to install."""
    for name in ("cluster/host.py", "cluster/setup.sh", "pyproject.toml", "constraints.txt"):
        (tmp_path / Path(name).name).write_bytes((ROOT / name).read_bytes())
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "hostname"):
        (tools / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    script = [str(tools / "sh"), str(tmp_path / "setup.sh")]
    env = {"PATH": str(tools), "HOME": str(tmp_path)}
    completed = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert completed.returncode == 1
    assert "has no Python 3.11 with venv" in completed.stderr
    (tmp_path / "venv").symlink_to(sys.prefix)
    completed = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


def test_the_head_takes_its_address_from_the_autoscalers_configuration(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap"
    path.write_text(json.dumps({"provider": {"head_ip": "127.0.0.1"}}), encoding="utf-8")
    assert host.read_head_address(path) == "127.0.0.1"
