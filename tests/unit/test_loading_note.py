"""Who waits at a terminal while a package loads is told so once; a log is not. Python collects no cycles meanwhile."""

from __future__ import annotations

import gc
import io
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ali_dist.loading_note import collector_paused, say_if_loading

SECONDS = 0.02


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package that is being imported."""
    module = ModuleType("a_slow_package")
    monkeypatch.setattr(module, "__spec__", SimpleNamespace(_initializing=True))
    monkeypatch.setitem(sys.modules, "a_slow_package", module)
    return module


def said(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    thread = say_if_loading("a_slow_package", "Loading it.", after=SECONDS)
    if thread.ident is not None:
        thread.join(10)
        assert not thread.is_alive(), "it looks on although there is nothing more to say"
    return stream.getvalue()


def test_what_loads_for_longer_than_a_moment_is_said_once(monkeypatch, package):
    assert said(monkeypatch, Terminal()) == "Loading it.\n"


def test_what_is_loaded_is_not_mentioned(monkeypatch, package):
    package.__spec__._initializing = False
    assert said(monkeypatch, Terminal()) == ""


def test_a_log_is_not_told(monkeypatch, package):
    assert said(monkeypatch, io.StringIO()) == ""


def test_a_real_import_is_seen_while_it_goes_on(monkeypatch, tmp_path):
    """What Python itself notes of an import is not public, and may change."""
    (tmp_path / "a_really_slow_package.py").write_text(
        "import sys\nfrom ali_dist.loading_note import _is_loading\n"
        "sys.seen_while_loading = _is_loading('a_really_slow_package')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "seen_while_loading", None, raising=False)
    __import__("a_really_slow_package")
    assert sys.seen_while_loading is True
    monkeypatch.delitem(sys.modules, "a_really_slow_package")


def test_the_collector_goes_on_after_a_pause_and_after_an_error():
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="bad"), collector_paused():
        raise ValueError("bad")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
