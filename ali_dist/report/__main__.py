"""`python -m ali_dist.report` compares runs; the command stands above this package, in `compare.py`."""

from __future__ import annotations

import sys

from ali_dist.compare import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
