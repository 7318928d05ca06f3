"""The GPU tests, each result of which is a figure at once; slow tests come last, and only if there is time for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.check.task import FigureWriter, PartTask

ROOT = Path(__file__).resolve().parents[4]
SLOW_TEST_SECONDS = 60.0  # a guess, for a test that compiles networks
TEST_TIMEOUT_SECONDS = 90  # for pytest-timeout, where it is installed; a test's own marker has precedence


class _ResultPlugin:
    """A plugin of pytest that writes the result of every test as a figure."""

    def __init__(self, figures: FigureWriter) -> None:
        self._figures = figures

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
        self._figures.add("collected", tests=len(items))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("slow") is not None and not self._figures.has_time_for(item.name, SLOW_TEST_SECONDS):
            pytest.skip("not enough time was left for it")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._figures.add("failure", what=report.nodeid, why=_first_line(str(report.longrepr)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("/")[2]
        seconds = round(report.duration, 2)
        if report.failed:
            reason = _crash_message(report)
            self._figures.add("test", name=name, outcome="failed", reason=reason, seconds=seconds)
            self._figures.add("failure", what=name, why=reason)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            self._figures.add("test", name=name, outcome="skipped", reason=reason, seconds=seconds)
        elif report.when == "call":
            self._figures.add("test", name=name, outcome="passed", seconds=seconds)


def _crash_message(report: pytest.TestReport) -> str:
    """The first line of the message that a test failed with."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return _first_line(str(report.longrepr) if crash is None else crash.message)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:300]


def run_part(task: PartTask) -> None:
    """Run the tests beside this package in this process."""
    options = ["-p", "no:cacheprovider", "-o", f"timeout={TEST_TIMEOUT_SECONDS}", "--tb=short"]
    code = pytest.main([str(ROOT / "tests" / "gpu"), *options], plugins=[_ResultPlugin(task.figures)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        task.figures.add("failure", what="pytest", why=f"it ended with {pytest.ExitCode(code).name}")
