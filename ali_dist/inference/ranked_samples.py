"""The samples of a split that stand out by a score, called by the names that the user knows them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.reader import load_origins
from ali_dist.names import printable_name
from ali_dist.runs.datasets import DataSplit

RANKED = 10
"""Samples at either end of a ranking."""
_PRINTED = 5

Ranking = dict[str, list[dict[str, Any]]]


def rank_samples(
    split: DataSplit, ids: NDArray[np.int64], values: NDArray[np.float64], classes: NDArray[np.int64]
) -> Ranking:
    """Find the samples with the largest and with the smallest values.

    Args:
        split: The split that the samples are of.
        ids: Their ids in the split's index, [N].
        values: Their scores [N].
        classes: Their class numbers [N].

    Returns:
        `most` and `least`, up to `RANKED` each, the extreme ones first: the id, its origin (None where the data do not
        note it), its place in the shards, its class and its score. JSON-able.
    """
    order = np.argsort(values, kind="stable")
    ends = {"most": order[::-1][:RANKED], "least": order[:RANKED]}
    names = split.index.classes
    ranking: Ranking = {}
    for end, rows in ends.items():
        origins = load_origins(split.store, split.index, ids[rows])
        ranking[end] = [
            {
                "id": sample,
                "origin": origin,
                "place": _describe_place(split, sample),
                "class": names[number] if number < len(names) else str(number),
                "score": value,
            }
            for sample, origin, number, value in zip(
                ids[rows].tolist(), origins, classes[rows].tolist(), values[rows].tolist(), strict=True
            )
        ]
    return ranking


def format_ranking(title: str, ranking: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Lines that show the first few of either end."""
    lines = []
    for end, samples in ranking.items():
        lines.append(f"{end.capitalize()} {title}:")
        for sample in samples[:_PRINTED]:
            texts = (str(what) for what in (sample["class"], sample["origin"] or sample["place"]))
            lines.append("  ".join([f"  {sample['score']:10.4g}", *map(printable_name, texts)]))
    return lines


def _describe_place(split: DataSplit, sample: int) -> str:
    for shard in split.index.shards:
        if sample < shard.samples:
            return f"sample {sample} of {shard.key}"
        sample -= shard.samples
    raise ValueError("The split has no sample of that id.")
