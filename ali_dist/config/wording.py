"""Numbers in sentences."""

from __future__ import annotations


def format_count(count: int, noun: str) -> str:
    """`1 sample`, `2,345 samples`: a number with its noun, which takes an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
