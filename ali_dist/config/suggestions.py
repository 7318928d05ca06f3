"""The nearest valid name for one that is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """', did you mean X?' for a misspelt name, else an empty string."""
    by_name = {n.lower(): n for n in known}  # a wrong case is the nearest mistake of all
    by_tail = {n.rpartition(".")[2]: n for n in by_name}
    name = name.lower()
    tail = name.rpartition(".")[2]
    if name in by_name:
        close = [name]
    elif tail in by_tail:  # the right word in the wrong section, e.g. model.lr_d
        close = [by_tail[tail]]
    else:
        close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)
        close = close or [by_tail[t] for t in difflib.get_close_matches(tail, by_tail, n=1, cutoff=0.75)]
    return f"; did you mean {by_name[close[0]]}?" if close else ""
