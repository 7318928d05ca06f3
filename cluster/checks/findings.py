"""What a check reports, and the two checks that hold for every kind of file: placeholders and secrets.

Every check is a function `check_X(document)` that yields a `Finding` for each thing that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

PLACEHOLDER = "CHANGE-ME"

# Names of keys and environment variables whose value only their owner may read.
SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|credentials?|access_key|access_key_id|secret_access_key|session_token)$"
)
_SECRET_TEXTS = (
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"\b\w*(TOKEN|SECRET|PASSWORD|ACCESS_KEY)=(?![\"']?[$<])[\"']?\w{4}"), "a secret as a variable"),
)
_LONGEST_VALUE = 100  # characters of a value that a sentence repeats
_MOST_CHOICES = 12  # known keys that a sentence lists


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a file. As text it is one sentence.

    Args:
        key: The dotted key that is wrong, such as `provider.region`.
        problem: What is wrong with it: the predicate of the sentence.
        fix: What to do about it: an instruction, or a question such as "did you mean 'region'?".
    """

    key: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key} {self.problem}: {self.fix}{'' if self.fix.endswith('?') else '.'}"

    @classmethod
    def wrong_value(cls, key: str, value: object, expected: str, fix: str) -> Finding:
        """The value of a key is wrong, or (None) missing where one is needed."""
        shown = "missing" if value is None else repr(value)
        if len(shown) > _LONGEST_VALUE:
            shown = f"{shown[: _LONGEST_VALUE - 4]} ..."
        return cls(key, f"is {shown}, but {expected}", fix)

    @classmethod
    def unknown_key(cls, parent: str, name: object, known: Iterable[str], reader: str) -> Finding:
        """A key is not among those that `reader` knows; the fix names the one that was probably meant."""
        names = sorted(known)
        nearest = get_close_matches(str(name), names, n=1)
        choices = ", ".join(names[:_MOST_CHOICES])
        fix = f"did you mean {nearest[0]!r}?" if nearest else f"take it out, or use one of {choices}"
        return cls(f"{parent}.{name}" if parent else str(name), f"is a key that {reader} does not know", fix)


def check_placeholders(document: object) -> Iterator[Finding]:
    """Values that the user has yet to fill in: each once, however often YAML's aliases repeat it."""
    reported = set()
    for key, value in walk_leaves(document):
        if isinstance(value, str) and PLACEHOLDER in value and value not in reported:
            reported.add(value)
            fix = f"put your own value in the place of {PLACEHOLDER}"
            yield Finding.wrong_value(key, value, "only you can know this value", fix)


def check_secrets(document: object) -> Iterator[Finding]:
    """Secrets that are written into the file itself. The sentences do not repeat them."""
    for key, value in walk_leaves(document):
        if not isinstance(value, str):
            continue
        kinds = [kind for pattern, kind in _SECRET_TEXTS if pattern.search(value)]
        # The path of a file that holds a secret is not a secret, and every value in file_mounts is a path.
        is_path = key.startswith("file_mounts") or re.match(r"[~./$]|$", value)
        if not kinds and not is_path and SECRET_NAME.search(key.rpartition(".")[2]):
            kinds = ["a secret"]
        for kind in kinds:
            expected = f"{kind} in a file is known to everybody who can read the file"
            fix = (
                "use an instance profile, a Kubernetes Secret or a file mount, and replace this secret, "
                "which is no longer safe"
            )
            yield Finding.wrong_value(key, f"{value[:3]}...", expected, fix)


def walk_leaves(document: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below `key` that is neither a mapping nor a list, with its own dotted key."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from walk_leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from walk_leaves(value, f"{key}[{number}]")
    else:
        yield key, document


def as_mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one, for checks that look further down."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    """The value if it is a list, else an empty one, for checks that look further down."""
    return value if isinstance(value, list) else []
