"""Check files that start clusters: `python -m cluster.checks FILE...`."""

from __future__ import annotations

import sys
from pathlib import Path

import cluster.checks
from ali_dist.errors import WRONG_INPUT, InputError
from cluster.checks import check_documents, read_documents


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 if nothing is wrong with the files, otherwise 2."""
    names = sys.argv[1:] if arguments is None else arguments
    if not names or names[0].startswith("-"):
        print((cluster.checks.__doc__ or "").strip(), file=sys.stderr)
        return 0 if names in (["-h"], ["--help"]) else WRONG_INPUT
    code = 0
    for name in names:
        try:
            sentences = [str(finding) for finding in check_documents(read_documents(Path(name)))]
        except InputError as error:
            sentences = [str(error)]
        for sentence in sentences:
            print(f"{name}: {sentence}", file=sys.stderr)
            code = WRONG_INPUT
    return code


if __name__ == "__main__":
    sys.exit(main())
