"""What a machine of the cluster finds out about itself, with its own Python and no other file of the project.

    python host.py missing       exit 1 and print a line for each package that is not what constraints.txt pins
    python host.py requirements  print the packages that pyproject.toml requires
    python host.py head-address  print the head's address, from the file that `ray up` leaves on the head

pyproject.toml and constraints.txt are read from this file's folder. This needs Python 3.11 alone, for it also runs
before anything is installed.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")


def read_requirements(folder: Path) -> list[str]:
    """The requirements of the project in `folder`, as its pyproject.toml names them."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements: list[str] = project["dependencies"]
    return requirements


def read_pinned_versions(folder: Path) -> dict[str, str]:
    """Normalized name to exact version, from the constraints.txt in `folder`."""
    lines = (folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==")[::2] for line in lines if "==" in line and not line.startswith("#"))
    return {_normalize_name(name): exact.partition(";")[0].strip() for name, exact in pairs}


def find_wrong_packages(folder: Path) -> list[str]:
    """What keeps this Python from running the project in `folder`.

    Returns:
        A line for each requirement that is not installed, and for each package of another version than the pinned one.
    """
    pinned = read_pinned_versions(folder)
    required = {
        _normalize_name(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
        for requirement in read_requirements(folder)
    }
    lines = []
    for name in sorted(required | pinned.keys()):
        try:
            installed = version(name).partition("+")[0]
        except PackageNotFoundError:
            if name in required:
                lines.append(f"{name} is not installed")
            continue
        if name in pinned and installed != pinned[name].partition("+")[0]:
            lines.append(f"{name} is {installed}, not {pinned[name]}")
    return lines


def read_head_address(bootstrap: Path) -> str:
    """The head's IP address, as the autoscaler's configuration names it."""
    head = json.loads(bootstrap.read_text(encoding="utf-8"))["provider"]["head_ip"]
    return socket.gethostbyname(head)


def _normalize_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    if arguments == ["missing"]:
        lines = find_wrong_packages(_FOLDER)
    elif arguments == ["requirements"]:
        lines = read_requirements(_FOLDER)
    elif arguments == ["head-address"]:
        lines = [read_head_address(_BOOTSTRAP.expanduser())]
    else:
        lines = (__doc__ or "").splitlines()
    print("\n".join(lines))
    return int(bool(lines) and arguments == ["missing"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
