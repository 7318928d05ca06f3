"""The first process of a job that has access keys to storage: `python -m cluster.entry COMMAND ...`, on the head.

Ray writes a job's environment variables into log files that every user of a machine may read, and shows them in command
lines; a job's metadata it keeps in memory. So the keys arrive as metadata and become variables of the command alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

ACCESS_PREFIX = "access:"  # of the metadata's names that are environment variables
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def unpack_access(environment: Mapping[str, str]) -> dict[str, str]:
    """Turn the access keys in a job's metadata into variables.

    Args:
        environment: The job's environment, in which Ray describes the job.

    Returns:
        A copy with the keys as variables and without them in the metadata, which Ray would pass on.
    """
    job = json.loads(environment.get(_JOB_CONFIG, "{}"))
    metadata = job.get("metadata", {})
    keys = {
        name.removeprefix(ACCESS_PREFIX): value for name, value in metadata.items() if name.startswith(ACCESS_PREFIX)
    }
    others = {name: value for name, value in metadata.items() if not name.startswith(ACCESS_PREFIX)}
    return {**environment, _JOB_CONFIG: json.dumps({**job, "metadata": others}), **keys}


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], unpack_access(os.environ))
