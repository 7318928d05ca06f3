"""Write hashes.txt: what `make install` installs on Linux x86-64 with Python 3.11, with the sha256 of each file.

    python -m tests.helpers.hashes    # asks the package index for files and hashes, and installs nothing

`pip install --require-hashes --no-deps --requirement hashes.txt` then refuses any file but these. Unlike
constraints.txt, the list has the CUDA libraries that torch brings, because nothing may come without a hash. No address
of an index is written.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "hashes.txt"
EXTRAS = ("test", "lint")
_PLATFORM = ("Linux", "x86_64", "3.11")
_HEAD = """\
# What `make install` installs on Linux x86-64 with Python 3.11, with the sha256 of each file. In a new environment:
# pip install --require-hashes --no-deps --requirement hashes.txt
# Written by `python -m tests.helpers.hashes`, anew whenever constraints.txt changes.
"""


def read_requirements() -> list[str]:
    """What running, testing, linting and building the project requires, as pyproject.toml names it."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [*document["build-system"]["requires"], *project["dependencies"], *extras]


def resolve(requirements: list[str]) -> dict[str, Any]:
    """The report of pip about what it would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["--constraint", str(ROOT / "constraints.txt"), *requirements]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def format_hashes(report: dict[str, Any]) -> str:
    """The lines of hashes.txt for a report of pip, sorted by name.

    Raises:
        ValueError: The index gave no sha256 for a file, or the file is no wheel, so that code would run to build it.
    """
    lines: dict[str, str] = {}
    for item in report["install"]:
        name, version = canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"]
        sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if sha256 is None or not item["download_info"]["url"].endswith(".whl"):
            raise ValueError(f"{name} {version} has no wheel with a sha256 in the package index.")
        lines[name] = f"{name}=={version} --hash=sha256:{sha256}\n"
    return _HEAD + "".join(lines[name] for name in sorted(lines))


def main() -> None:
    """Write hashes.txt."""
    here = (platform.system(), platform.machine(), ".".join(platform.python_version_tuple()[:2]))
    if here != _PLATFORM:
        sys.exit(f"hashes.txt is for {' '.join(_PLATFORM)}, but this is {' '.join(here)}: run the command there.")
    PATH.write_text(format_hashes(resolve(read_requirements())), encoding="utf-8")
    print(f"{PATH.name} has been written.")


if __name__ == "__main__":
    main()
