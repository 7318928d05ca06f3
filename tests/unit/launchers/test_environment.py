"""Environment variables for a library are there while it works, and gone afterwards."""

from __future__ import annotations

import os

import pytest

from ali_dist.launchers.environment import temporary_environment


def test_variables_have_their_former_values_afterwards_even_after_an_error(monkeypatch):
    monkeypatch.setenv("ALI_TEST_SET", "before")
    monkeypatch.delenv("ALI_TEST_UNSET", raising=False)
    before = dict(os.environ)

    def fail_within() -> None:
        with temporary_environment({"ALI_TEST_SET": "within", "ALI_TEST_UNSET": "within"}):
            assert (os.environ["ALI_TEST_SET"], os.environ["ALI_TEST_UNSET"]) == ("within", "within")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert dict(os.environ) == before


def test_a_default_yields_to_what_the_user_has_set(monkeypatch):
    monkeypatch.setenv("ALI_TEST_SET", "user's")
    monkeypatch.delenv("ALI_TEST_UNSET", raising=False)
    with temporary_environment(defaults={"ALI_TEST_SET": "ours", "ALI_TEST_UNSET": "ours"}):
        assert (os.environ["ALI_TEST_SET"], os.environ["ALI_TEST_UNSET"]) == ("user's", "ours")
    assert (os.environ["ALI_TEST_SET"], "ALI_TEST_UNSET" in os.environ) == ("user's", False)
