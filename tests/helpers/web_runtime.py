"""onnxruntime-web for tests: the package where this machine has it, and a stand-in that only looks like it."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from ali_dist.exploration.runtime import FILES, PACKAGE, USUAL_FOLDER
from tests.helpers.processes import ROOT

VARIABLE = "ALI_ONNXRUNTIME_WEB"
_FOLDERS = [Path(os.environ[VARIABLE])] if VARIABLE in os.environ else [ROOT / USUAL_FOLDER]
FOLDER = next((folder for folder in _FOLDERS if (folder / FILES["wasm"]).is_file()), None)
"""The unpacked package; None where there is none."""
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
NO_FOLDER = f"there is no {PACKAGE}: run `npm install {PACKAGE}` in the checkout, or name its folder in {VARIABLE}"


def write_stand_in(folder: Path) -> Path:
    """Write a package with the right names and nothing in it; gives its folder."""
    (folder / "dist").mkdir(parents=True)
    about = {"name": PACKAGE, "version": "1.2.3</summary>", "license": "MIT"}
    (folder / "package.json").write_text(json.dumps(about))
    for name, path in FILES.items():
        (folder / path).write_bytes(f"this is the {name}".encode())
    return folder
