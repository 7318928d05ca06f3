"""What a wheel holds beside the code: types for those who check theirs, presets, and the command `ali`."""

import shutil
import subprocess
import sys
import zipfile

from tests.unit.project.test_tooling import ROOT

BUILD = "import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])"


def test_a_wheel_ships_types_presets_and_the_command(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("ali_dist", "tuning"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"ali = ali_dist.__main__:main" in file.read(entry_points)
    assert {"ali_dist/py.typed", "ali_dist/presets/digits.yaml", "ali_dist/__main__.py"} <= names
