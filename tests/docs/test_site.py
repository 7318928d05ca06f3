"""The documentation's site has every page, and its links lead to places in it. MkDocs itself is not needed here.

Run: `make test ARGS=tests/docs/test_site.py`; `make docs` builds the site.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The module of the hooks, which lies outside of every package."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nav_entries(nav: object) -> Iterator[str]:
    """The paths of the pages in the menu."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list | dict):
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from find_nav_entries(entry)


def test_the_menu_has_every_page_once(hooks: ModuleType) -> None:
    """A page that is new in docs/ is not forgotten, and one that was removed leaves no dead entry."""
    pages = {hooks.site_path(page) for page in hooks.list_pages(ROOT)}
    entries = list(find_nav_entries(SITE["nav"]))
    assert sorted(entries) == sorted(pages)
    assert {ROOT / page for page in hooks.list_pages(ROOT)} >= set(PAGES)


def test_every_link_leads_to_a_place_in_the_site(hooks: ModuleType) -> None:
    generated = hooks.make_generated_pages(ROOT)
    copied = {file.name for kind in ("png", "svg", "ipynb") for file in (ROOT / "docs").glob(f"*.{kind}")}
    places = {hooks.site_path(page) for page in hooks.list_pages(ROOT)} | generated.keys() | copied
    links = 0
    for page in hooks.list_pages(ROOT):
        text = hooks.rewrite_links((ROOT / page).read_text(encoding="utf-8"), page)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if "://" not in target:
                place = posixpath.normpath(posixpath.join(posixpath.dirname(hooks.site_path(page)), target))
                assert place in places, f"{page} links to {target}, which is not in the site"
                links += 1
    assert links > 100


def test_a_link_to_code_leads_to_a_page_that_shows_it(hooks: ModuleType) -> None:
    """Nobody who reads the site can see the project's folder."""
    text = (
        "[step](../ali_dist/training/step.py#L3), [readme](../README.md#license), [here](#a), [it](https://a.example/b)"
    )
    assert hooks.rewrite_links(text, "docs/design.md") == (
        "[step](source/ali_dist/training/step.py.md#L3), [readme](index.md#license), [here](#a), [it](https://a.example/b)"
    )
    shown = hooks.make_generated_pages(ROOT)["source/ali_dist/training/step.py.md"]
    assert (ROOT / "ali_dist/training/step.py").read_text(encoding="utf-8") in shown


def test_the_site_asks_no_other_host_for_anything() -> None:
    assert SITE["theme"]["font"] is False
    assert not {"extra", "extra_css", "extra_javascript"} & SITE.keys()


def test_a_dead_link_ends_make_docs() -> None:
    """MkDocs counts warnings only where it also prints them: with --quiet, --strict says nothing and passes."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs:")[2].partition("\n\n")[0]
    assert "mkdocs build --strict" in recipe
    assert "--quiet" not in recipe
    kinds = ("absolute_links", "anchors", "omitted_files", "unrecognized_links")
    assert SITE["validation"] == dict.fromkeys(kinds, "warn")
