"""The GPU tests, each result as soon as it is there; slow ones come last and are not begun without time for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.check.task import Figures, Task

ROOT = Path(__file__).resolve().parents[4]
SLOW_SECONDS = 60.0  # of a test that compiles networks
ONE_TEST_SECONDS = 90  # after which pytest-timeout, where it is installed, fails a test; its marker comes first


class _Recorder:
    """A plugin of pytest that hands on what becomes of every test."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
        self._figures.add("collected", tests=len(items))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("slow") is not None and not self._figures.fits(item.name, SLOW_SECONDS):
            pytest.skip("not enough time was left for it")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._figures.add("failure", what=report.nodeid, why=_first_line(str(report.longrepr)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name, where = report.nodeid.rpartition("/")[2], {"seconds": round(report.duration, 2)}
        if report.failed:
            why = _crash(report)
            self._figures.add("test", name=name, outcome="failed", reason=why, **where)
            self._figures.add("failure", what=name, why=why)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._figures.add("test", name=name, outcome="skipped", reason=reason.removeprefix("Skipped: "), **where)
        elif report.when == "call":
            self._figures.add("test", name=name, outcome="passed", **where)


def _crash(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return _first_line(str(report.longrepr) if crash is None else crash.message)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:300]


def run(task: Task) -> None:
    """Run the tests beside this package in this process."""
    options = ["-p", "no:cacheprovider", "-o", f"timeout={ONE_TEST_SECONDS}", "--tb=short"]
    code = pytest.main([str(ROOT / "tests" / "gpu"), *options], plugins=[_Recorder(task.figures)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        task.figures.add("failure", what="pytest", why=f"it ended with {pytest.ExitCode(code).name}")
