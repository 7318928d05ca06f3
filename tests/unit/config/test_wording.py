"""Numbers in sentences."""

from __future__ import annotations

import pytest

from ali_dist.config.wording import format_count


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (1234, "1,234 samples")]
)
def test_a_noun_agrees_with_its_number(count: int, text: str) -> None:
    assert format_count(count, "sample") == text
