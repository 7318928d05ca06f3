"""For all tests: one thread for each process, none of this machine's AWS settings, and a real S3 server if asked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.helpers.swift import SwiftServer

# Tests run beside each other and start ranks of their own. OpenMP's threads wait for each other by spinning, so that
# more of them than cores take many times as long as one for each process.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the setting of pytest-timeout where that is not installed, as on a bare machine, to no effect."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds that a test may take; it needs pytest-timeout")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of pytest-timeout where that is not installed."""
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): what a test may take; it needs pytest-timeout")


@pytest.fixture(autouse=True)
def _no_aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the AWS_* variables and profiles, so that only what a test sets itself is in force."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """A real S3 server on the loopback interface, for the whole session."""
    with SwiftServer(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture
def swift_env(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> SwiftServer:
    """The server, with its AWS_* variables in force in this process and in those that it starts."""
    for name, value in swift.env.items():
        monkeypatch.setenv(name, value)
    return swift
