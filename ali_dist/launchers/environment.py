"""Environment variables that a library reads while it works for us, and that are not ours to change for good."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def temporary_environment(
    values: Mapping[str, str] | None = None, *, defaults: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Within the block, environment variables of this process have these values; afterwards their former ones.

    Args:
        values: Set whatever the user has set.
        defaults: Set only where the user has set nothing.
    """
    changes = {name: value for name, value in (defaults or {}).items() if name not in os.environ} | dict(values or {})
    previous = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
