"""What libraries warn of is a sentence for the user."""

from __future__ import annotations

import warnings

from ali_dist.report.library_warnings import say_warnings


def test_a_warning_is_said_once_in_one_line_and_printed_again_afterwards() -> None:
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        with say_warnings(said.append):
            for text in ("The sky\n  is falling.", "The sky\n  is falling.", "w" * 1000):
                warnings.warn(text, UserWarning, stacklevel=1)
        assert warnings.showwarning is before
    first, second = said
    assert first.startswith("A library warns: The sky is falling. (UserWarning, test_library_warnings.py:")
    assert "w…" in second
    assert len(second) < 300
