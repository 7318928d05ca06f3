"""Say what is wrong with a file that starts a cluster: `python -m cluster.checks FILE...`."""

from __future__ import annotations

import sys
from pathlib import Path

import cluster.checks
from ali_dist.errors import InputError
from cluster.checks import find_problems, read_documents


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    names = sys.argv[1:] if arguments is None else arguments
    if not names or names[0].startswith("-"):
        print((cluster.checks.__doc__ or "").strip(), file=sys.stderr)
        return 0 if names in (["-h"], ["--help"]) else 2
    code = 0
    for name in names:
        try:
            found = find_problems(read_documents(Path(name)))
        except InputError as error:
            found = [str(error)]
        for sentence in found:
            print(f"{name}: {sentence}", file=sys.stderr)
        code = 2 if found else code
    return code


if __name__ == "__main__":
    sys.exit(main())
