"""hashes.txt names the files of what constraints.txt pins, all of them, and a wrong file is refused.

Run: `make test ARGS=tests/unit/project/test_hashes.py`
"""

from __future__ import annotations

import importlib.metadata
import platform
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.hashes import PATH, format_hashes, read_requirements
from tests.unit.project.test_tooling import read_pins

BY_TORCH_ALONE = re.compile(r"cuda-.*|nvidia-.*|triton")
"""What constraints.txt leaves to torch, which requires exact versions of it."""


def read_hashed() -> dict[str, str]:
    """Name to version, from hashes.txt, each line of which is checked."""
    lines = [line for line in PATH.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(matches), "a line is not name==version --hash=sha256:..."
    hashed = {match[1]: match[2] for match in matches if match}
    assert len(hashed) == len(lines), "a package is named twice"
    return hashed


def test_the_hashed_versions_are_the_pinned_ones() -> None:
    """Whoever changes a pin and forgets the hashes is told; `python -m tests.helpers.hashes` writes them."""
    pins = read_pins()
    for name, version in read_hashed().items():
        assert BY_TORCH_ALONE.fullmatch(name) or pins.get(name) == version, f"{name}=={version} is not what is pinned"


@pytest.mark.skipif(
    (platform.system(), platform.machine(), platform.python_version_tuple()[:2]) != ("Linux", "x86_64", ("3", "11")),
    reason="hashes.txt is for Linux x86-64 with Python 3.11",
)
def test_whatever_is_required_has_a_hash() -> None:
    """With `--no-deps`, a package that a requirement of ours needs and that has no hash would be missing."""
    hashed = read_hashed()
    open_ends = [(requirement, "") for requirement in map(Requirement, read_requirements())]
    seen: set[tuple[str, str]] = set()
    while open_ends:
        requirement, extra = open_ends.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        assert name in hashed, f"{requirement} has no hash"
        assert requirement.specifier.contains(hashed[name], prereleases=True), f"{requirement}: {hashed[name]}"
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                needed = importlib.metadata.requires(name) or []
                open_ends += [(Requirement(text), wanted) for text in needed]
    assert len(seen) > 50


def report(url: str, hashes: dict[str, str]) -> dict[str, object]:
    """What pip reports about one package, without what is not read."""
    item = {"metadata": {"name": "Two_Words", "version": "1.0"}}
    return {"install": [{**item, "download_info": {"url": url, "archive_info": {"hashes": hashes}}}]}


def test_a_line_has_the_hash_and_no_address() -> None:
    text = format_hashes(report("https://index.example/packages/two_words-1.0-py3-none-any.whl", {"sha256": "ab"}))
    assert text.splitlines()[-1] == "two-words==1.0 --hash=sha256:ab"
    assert "index.example" not in text


@pytest.mark.parametrize(("file", "hashes"), [("a-1.0.tar.gz", {"sha256": "ab"}), ("a-1.0.whl", {"md5": "ab"})])
def test_what_would_be_built_or_has_no_hash_is_refused(file: str, hashes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no wheel with a sha256"):
        format_hashes(report(f"https://index.example/{file}", hashes))
