"""A trial as a child process, which ends with everything that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bench.recipes.trial import FAILED, Result

ROOT = Path(__file__).resolve().parents[3]


class TrialProcess:
    """Runs `python -m tests.bench.recipes.trial`; see `RunningTrial`.

    Args:
        label: Names its files.
        settings: Everything that its config is made of.
        out: Folder of the results, whose folder `trials` gets its files and its log.
    """

    def __init__(self, label: str, settings: Mapping[str, Any], out: Path) -> None:
        folder = out / "trials"
        folder.mkdir(parents=True, exist_ok=True)
        spec, self._result, self._log = (folder / f"{label}.{ending}" for ending in ("json", "result.json", "log"))
        self._result.unlink(missing_ok=True)
        spec.write_text(json.dumps({"settings": dict(settings), "pictures": str(out / label)}), encoding="utf-8")
        with self._log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.recipes.trial", str(spec), str(self._result)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )

    def poll(self) -> Result | None:
        """What has become of it; None as long as it runs."""
        code = self._child.poll()
        if code is None:
            return None
        if self._result.exists():
            result: Result = json.loads(self._result.read_text(encoding="utf-8"))
            return result
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"status": FAILED, "reason": f"ended with {how}: {lines[-1] if lines else 'it said nothing'}"[:300]}

    def kill(self) -> None:
        """End it and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
