"""Ray's agent of a machine without the modules that serve a dashboard, which take it a second and more to load.

A run's own cluster starts this file in place of Ray's. To its raylet, which starts no worker before the agent has
answered, it is the same agent: what is left out is what `get_all_modules` would find (Ray 2.60).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.pop(0)  # the folder of this file, whose modules have names such as `signals`

from ray.dashboard import utils  # noqa: E402


def _find_none(_: type) -> list[type]:
    return []


if __name__ == "__main__":
    utils.get_all_modules = _find_none
    runpy.run_path(str(Path(utils.__file__).with_name("agent.py")), run_name="__main__")
