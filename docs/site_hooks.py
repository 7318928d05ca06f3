"""Hooks of MkDocs, by which the pages read in the site as they do in the project's folder.

Pages link to each other and to code by paths in the project. In the site docs/ is the root, so README.md and its like
become pages of the root, each file of code that a page links to is shown on a page under source/, and links follow.
`tests/docs/test_site.py` checks this without MkDocs; `make docs` builds the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

PAGES_OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "cluster/README.md": "cluster.md",
}
"""Pages that lie outside of docs/, and their paths in the site."""

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_LANGUAGES = {".json": "json", ".py": "python", ".sh": "sh", ".toml": "toml", ".yaml": "yaml"}


def list_pages(root: Path) -> list[str]:
    """The pages of the site by their paths in the project."""
    return [*PAGES_OUTSIDE, *sorted(f"docs/{page.name}" for page in (root / "docs").glob("*.md"))]


def site_path(path: str) -> str:
    """The path in the site of a file, which is given by its path in the project."""
    if path in PAGES_OUTSIDE:
        return PAGES_OUTSIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def find_targets(text: str, page: str) -> list[str]:
    """The files that a page links to, by their paths in the project; addresses and headings are left out."""
    targets = (match[2] for match in _LINK.finditer(text) if "://" not in match[2])
    return [_resolve(target, page) for target in targets]


def rewrite_links(text: str, page: str) -> str:
    """The text of a page with links between places in the site instead of places in the project."""
    folder = posixpath.dirname(site_path(page))

    def rewrite(match: re.Match[str]) -> str:
        if "://" in match[2]:
            return match[0]
        target = posixpath.relpath(site_path(_resolve(match[2], page)), folder or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    return _LINK.sub(rewrite, text)


def make_generated_pages(root: Path) -> dict[str, str]:
    """Path in the site to text, for the pages outside of docs/ and for each file of code that a page links to."""
    texts = {page: (root / page).read_text(encoding="utf-8") for page in list_pages(root)}
    generated = {site_path(page): rewrite_links(texts[page], page) for page in PAGES_OUTSIDE}
    for page, text in texts.items():
        for target in find_targets(text, page):
            path = site_path(target)
            if path.startswith("source/") and path not in generated:
                generated[path] = _show(target, root / target)
    return generated


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside of docs/, and those with code."""
    from mkdocs.structure.files import File

    for path, text in make_generated_pages(Path(config.docs_dir).parent).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page in docs/ point into the site; those of the others do already."""
    generated = page.file.generated_by is not None
    return markdown if generated else rewrite_links(markdown, f"docs/{page.file.src_uri}")


def _resolve(target: str, page: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _show(path: str, file: Path) -> str:
    """A page with the code of a file, or with the names of what is in a folder."""
    if file.is_dir():
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in file.iterdir())
        shown = "".join(f"- `{name}`\n" for name in names if name != "__pycache__/")
    else:
        language = _LANGUAGES.get(file.suffix, "text")
        fence = "`" * 8  # longer than any fence that a docstring may hold
        shown = f"{fence}{language}\n{file.read_text(encoding='utf-8')}{fence}\n"
    return f"# `{path}`\n\n{shown}"
