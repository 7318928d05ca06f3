"""The first thing of a job that has keys to storage: `python -m cluster.entry COMMAND ...`, on the head.

Ray writes a job's environment variables into log files that everybody on a machine may read, and shows them in command
lines. A job's metadata it keeps in memory. So keys come as metadata, and become variables of the command alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

MARK = "access:"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def with_access(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with keys as variables, and no longer in the job's metadata, which Ray would pass on."""
    job = json.loads(environment.get(_JOB, "{}"))
    metadata = job.get("metadata", {})
    keys = {name.removeprefix(MARK): value for name, value in metadata.items() if name.startswith(MARK)}
    rest = {name: value for name, value in metadata.items() if not name.startswith(MARK)}
    return {**environment, _JOB: json.dumps({**job, "metadata": rest}), **keys}


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], with_access(os.environ))
