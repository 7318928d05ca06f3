"""onnxruntime-web, the library that runs the networks of a page without a server: which of its files a page carries.

It is read from its npm package as that is unpacked, and never downloaded here. Its build without WebGL and WebGPU
is taken, which is the smallest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ali_dist.errors import InputError

PACKAGE = "onnxruntime-web"
USUAL_FOLDER = Path("node_modules") / PACKAGE
"""Where `npm install` puts it."""
FILES = {
    "runtime": "dist/ort.wasm.min.mjs",
    "loader": "dist/ort-wasm-simd-threaded.mjs",
    "wasm": "dist/ort-wasm-simd-threaded.wasm",
}
"""What a page carries of it: its interface, the script that starts its machine code, and that code."""
_INSTALL = f"run `npm install {PACKAGE}`"


@dataclass(frozen=True, slots=True)
class Runtime:
    """The library as a page carries it.

    Attributes:
        version: Its version.
        license_name: Its license, as the package names it.
        files: The contents of `FILES`, by the same names.
    """

    version: str
    license_name: str
    files: Mapping[str, bytes]


def read_runtime(folder: Path | None = None) -> Runtime:
    """Read the library.

    Args:
        folder: The unpacked package; None: where `npm install` puts it, in the current folder.

    Raises:
        InputError: It is not there, or is something else.
    """
    place = USUAL_FOLDER if folder is None else folder
    try:
        about = json.loads((place / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if folder is None:
            raise InputError(
                f"--static needs {PACKAGE}, and there is no {USUAL_FOLDER} in this folder: {_INSTALL}, or name its "
                "folder with --runtime."
            ) from error
        raise _not_a_package(folder, "it has no package.json that can be read") from error
    if not isinstance(about, dict) or about.get("name") != PACKAGE:
        name = about.get("name") if isinstance(about, dict) else about
        raise _not_a_package(place, f"its package.json is of {str(name)[:60]!r}")
    try:
        files = {name: (place / path).read_bytes() for name, path in FILES.items()}
    except OSError as error:
        raise _not_a_package(place, f"version {about.get('version')} of it has no {_missing(place)}") from error
    return Runtime(str(about.get("version")), str(about.get("license")), files)


def _missing(place: Path) -> str:
    return " and no ".join(path for path in FILES.values() if not (place / path).is_file()) or "files that can be read"


def _not_a_package(place: Path, reason: str) -> InputError:
    return InputError(f"--runtime is {str(place)!r}, which is no {PACKAGE} that can be used ({reason}): {_INSTALL}.")
