"""What a machine of the cluster asks about itself, with its own Python and nothing else of ours.

    python host.py missing       exit 1 and a line for each package that is not what constraints.txt pins
    python host.py wanted        the packages that pyproject.toml asks for
    python host.py head-address  the head's address, from the file that `ray up` leaves on the head

The project's files are looked for beside this one. Needs Python 3.11 alone: it also runs before anything is installed.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")


def required_packages(folder: Path) -> list[str]:
    """The requirements of the project in `folder`, as pyproject.toml has them."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = project["dependencies"]
    return found


def pinned_versions(folder: Path) -> dict[str, str]:
    """Normalised name to exact version, from constraints.txt."""
    lines = (folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==")[::2] for line in lines if "==" in line and not line.startswith("#"))
    return {_normal_name(name): exact.partition(";")[0].strip() for name, exact in pairs}


def missing_packages(folder: Path) -> list[str]:
    """What keeps this Python from running the project: absent requirements, and other versions than the pinned."""
    exact = pinned_versions(folder)
    names = {
        _normal_name(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
        for requirement in required_packages(folder)
    }
    found = []
    for name in sorted(names | exact.keys()):
        try:
            here = version(name).partition("+")[0]
        except PackageNotFoundError:
            if name in names:
                found.append(f"{name} is not installed")
            continue
        if name in exact and here != exact[name].partition("+")[0]:
            found.append(f"{name} is {here}, not {exact[name]}")
    return found


def head_address(bootstrap: Path) -> str:
    """The head's IP address, as the autoscaler's configuration names it."""
    head = json.loads(bootstrap.read_text(encoding="utf-8"))["provider"]["head_ip"]
    return socket.gethostbyname(head)


def _normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def main(arguments: list[str]) -> int:
    """The command; its exit code."""
    if arguments == ["missing"]:
        lines = missing_packages(_HERE)
    elif arguments == ["wanted"]:
        lines = required_packages(_HERE)
    elif arguments == ["head-address"]:
        lines = [head_address(_BOOTSTRAP.expanduser())]
    else:
        lines = (__doc__ or "").splitlines()
    print("\n".join(lines))
    return int(bool(lines) and arguments == ["missing"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
