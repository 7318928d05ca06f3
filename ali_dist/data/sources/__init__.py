"""Where data come from: built-in ones, and published ones in their original files."""

from ali_dist.data.sources.builtin import (
    MIXTURE_SAMPLES,
    BuiltIn,
    ensure_prepared,
    mixture_means,
    prepare_digits,
    prepare_mixture,
)
from ali_dist.data.sources.split import Track, untracked

__all__ = [
    "MIXTURE_SAMPLES",
    "BuiltIn",
    "Track",
    "ensure_prepared",
    "mixture_means",
    "prepare_digits",
    "prepare_mixture",
    "untracked",
]
