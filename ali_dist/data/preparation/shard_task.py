"""One shard of a source: written, and noted with all that the index needs, so that a killed command goes on after it.

While a split is under way its folder holds `unfinished.json` (made with which settings), and one record in
`unfinished/` for each shard that is done. Both go when index.json is there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ali_dist.data.shards.index import Shard
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import LabelledSample, SampleFormat, write_shard
from ali_dist.data.sources.base import ShardSamples
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

MARK_KEY = "unfinished.json"
RECORDS = "unfinished/"


class FinishedShard(NamedTuple):
    """A shard that is done: None if all its samples were bad; what they count; one sentence for each bad one."""

    shard: Shard | None
    statistics: Statistics
    bad: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """How every shard of a split is written: where, in what form, and whether bad samples are left out."""

    store: Store
    form: SampleFormat
    skip_bad: bool

    def write(self, number: int, part: ShardSamples, count: Callable[[int], None]) -> FinishedShard:
        """Read a part, write it as the shard of that number, and note it.

        Args:
            number: of the shard.
            part: its samples.
            count: called with the number of samples just read.

        Raises:
            InputError: a sample cannot be used, and bad ones are not left out; names it.
        """
        bad: list[str] = []
        samples = list(self._good(part, bad, count))
        if samples:
            shard, statistics = write_shard(self.store, number, samples, self.form)
            done = FinishedShard(shard, statistics, tuple(bad))
        else:
            done = FinishedShard(None, Statistics(self.form.shape, self.form.dtype), tuple(bad))
        self.store.put(_record_key(number), _record_to_json(done))
        return done

    def _good(self, part: ShardSamples, bad: list[str], count: Callable[[int], None]) -> Iterator[LabelledSample]:
        for number in range(len(part)):
            try:
                yield part.read(number)
            except ValueError as error:
                if not self.skip_bad:
                    raise InputError(
                        f"{part.name(number)} cannot be used: {error}; put it right or remove it, or leave such "
                        f"samples out with --skip-bad."
                    ) from error
                bad.append(f"{part.name(number)}: {error}")
            count(1)

    def done_before(self, number: int, sizes: dict[str, int]) -> FinishedShard | None:
        """What an earlier try noted of a shard; None if it has to be written.

        Args:
            number: of the shard.
            sizes: bytes of everything in the split's folder, by key.
        """
        key = _record_key(number)
        if key not in sizes:
            return None
        try:
            done = _record_from_json(self.store.get(key), self.form)
        except (ValueError, TypeError, KeyError):
            return None  # not a record of this program: the shard is written again
        if done.bad and not self.skip_bad:
            return None
        shard = done.shard
        whole = shard is None or (sizes.get(shard.key) == shard.bytes and shard.sidecar_key in sizes)
        return done if whole else None


def _record_key(number: int) -> str:
    return f"{RECORDS}{number:05d}.json"


def _record_to_json(done: FinishedShard) -> bytes:
    shard = None if done.shard is None else dataclasses.asdict(done.shard)
    return json.dumps({"shard": shard, "statistics": done.statistics.to_record(), "bad": done.bad}).encode()


def _record_from_json(data: bytes, form: SampleFormat) -> FinishedShard:
    content: dict[str, Any] = json.loads(data)
    statistics = Statistics(form.shape, form.dtype)
    statistics.restore(content["statistics"])
    shard = None if content["shard"] is None else Shard(**content["shard"])
    return FinishedShard(shard, statistics, tuple(content["bad"]))
