"""The documentation keeps its word: links, commands, options, settings, tests and paths in it exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ali_dist.config.loading import setting_infos
from tests.docs.pages import EXTENDING, PAGES, ROOT, check_command_lines, fenced_blocks, inline_code, without_blocks

README_LINES = 120


def page_name(page: Path) -> str:
    """The name of a page in the names of tests."""
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


def test_the_readme_is_short() -> None:
    """What does not fit into 120 lines belongs to a page in docs/."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES, f"README.md has {len(lines)} lines"


@every_page
def test_relative_links_point_to_something(page: Path) -> None:
    """A moved file or a renamed heading leaves no dead link behind."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{page.name} links to {target}, but there is no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page != EXTENDING], ids=page_name)
def test_command_lines_are_accepted_by_their_parsers(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules, options, choices and settings are those that there are; test_extending.py checks its own page."""
    check_command_lines(page, monkeypatch)


@every_page
def test_settings_that_are_mentioned_exist(page: Path) -> None:
    """A renamed setting is found wherever a page speaks of it, with or without the dashes."""
    text = page.read_text(encoding="utf-8")
    sections = {key.partition(".")[0] for key in setting_infos()}
    mentioned = set(re.findall(r"--([a-z]+\.[a-z_0-9]+)", text))
    for span in inline_code(text):
        first = span.split()[0]
        is_file = first.endswith((".py", ".json", ".jsonl", ".html", ".yaml", ".safetensors"))
        if re.fullmatch(rf"(?:{'|'.join(sections)})\.[a-z_0-9]+", first) and not is_file:
            mentioned.add(first)
    unknown = mentioned - setting_infos().keys() - {"section.key"}
    assert not unknown, f"{page.name} speaks of {sorted(unknown)}, which are no settings"


@every_page
def test_make_targets_that_are_mentioned_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    commands = inline_code(text) + [line for _, block in fenced_blocks(text) for line in block.splitlines()]
    for command in commands:
        if match := re.match(r"make ([a-z0-9-]+)", command):
            assert re.search(rf"^{match[1]}:", makefile, re.MULTILINE), f"{page.name}: there is no make {match[1]}"


@every_page
def test_paths_of_the_project_that_are_mentioned_exist(page: Path) -> None:
    """A path is written from the project's root, or from ali_dist/; capitals such as NAME stand for anything."""
    text = page.read_text(encoding="utf-8")
    shown = without_blocks(text) if page == EXTENDING else text  # its examples begin with the names of new files
    from_root = re.findall(r"(?<![\w/.-])(?:ali_dist|tuning|cluster|tests|docs)/[\w./-]*\w", shown)
    spans = [span for span in inline_code(text) if re.fullmatch(r"[a-z_]+/[\w/]+\.py", span)]
    for path in [*from_root, *spans]:
        if re.search(r"[A-Z]{2}", path.removesuffix("README.md")):
            continue
        exists = any((base / path).exists() for base in (ROOT, ROOT / "ali_dist", page.parent))
        assert exists, f"{page.name} speaks of {path}, which does not exist"


@every_page
def test_tests_that_are_mentioned_exist(page: Path) -> None:
    """A guarantee names the test that holds it, and the test is there under that name."""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"def {name}\(", source), f"{page.name} names {path}::{name}, which does not exist"
