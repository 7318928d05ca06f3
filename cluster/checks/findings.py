"""How a finding is said, and what all kinds of files are asked: names that are nearly right, gaps, secrets.

A finding is one sentence with the key, its value, what was expected and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

PLACEHOLDER = "CHANGE-ME"

# Names, of keys and of environment variables, whose value nobody but its owner may read.
SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|credentials?|access_key|access_key_id|secret_access_key|session_token)$"
)
_SECRET_TEXT = (
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"\b\w*(TOKEN|SECRET|PASSWORD|ACCESS_KEY)=(?![\"']?[$<])[\"']?\w{4}"), "a secret as a variable"),
)


def describe_finding(key: str, value: object, expected: str, fix: str) -> str:
    """One sentence; `value` is what stands there, None where nothing does."""
    shown = "missing" if value is None else repr(value)
    if len(shown) > 100:
        shown = f"{shown[:96]} ..."
    return f"{key} is {shown}, but {expected}: {fix}."


def describe_unknown(where: str, name: object, known: Iterable[str], whose: str) -> str:
    """The sentence for a key that nobody reads, with the one that was probably meant."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"take it out, or use one of {', '.join(names[:12])}."
    key = f"{where}.{name}" if where else name
    return f"{key} is a key that {whose} does not know: {fix}"


def walk_leaves(document: object, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is neither mapping nor list, with its dotted key."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from walk_leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from walk_leaves(value, f"{where}[{number}]")
    else:
        yield where, document


def find_gaps(document: object) -> Iterator[str]:
    """What the user has yet to fill in: each value once, however often it is used."""
    seen = set()
    for key, value in walk_leaves(document):
        if isinstance(value, str) and PLACEHOLDER in value and value not in seen:
            seen.add(value)
            yield describe_finding(
                key, value, "this is yours to say", f"put your own value in the place of {PLACEHOLDER}"
            )


def find_secrets(document: object) -> Iterator[str]:
    """Secrets that stand in the file itself; the sentences do not repeat them."""
    for key, value in walk_leaves(document):
        if not isinstance(value, str):
            continue
        kinds = [kind for pattern, kind in _SECRET_TEXT if pattern.search(value)]
        # A path to a secret is none, and what follows file_mounts is a path.
        if not kinds and SECRET_NAME.search(key.rpartition(".")[2]) and not re.match(r"[~./$]|$", value):
            kinds = [] if key.startswith("file_mounts") else ["a secret"]
        for kind in kinds:
            expected = f"{kind} in a file is read by everybody who reads the file"
            fix = "use an instance profile, a Kubernetes Secret or a file mount, and make a new one: this one is known"
            yield describe_finding(key, f"{value[:3]}...", expected, fix)


def as_mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one, for rules that look further down."""
    return value if isinstance(value, Mapping) else {}


def as_sequence(value: object) -> list[Any]:
    """The value if it is a list, else an empty one, for rules that look further down."""
    return value if isinstance(value, list) else []
