"""Write one shard of a source and record all that the index needs of it, so that a killed command can go on after it.

While a split is being written, its folder holds `unfinished.json` (the settings that it is made with) and, in
`unfinished/`, one record for each shard that is finished. Both are removed once index.json is there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ali_dist.data.shards.index import Shard
from ali_dist.data.shards.sample import NamedCounts, PreparedSample
from ali_dist.data.shards.statistics import Statistics
from ali_dist.data.shards.writer import SampleFormat, write_shard
from ali_dist.data.sources.base import ShardSamples
from ali_dist.errors import InputError
from ali_dist.storage.base import Store

UNFINISHED_KEY = "unfinished.json"
RECORD_PREFIX = "unfinished/"


class FinishedShard(NamedTuple):
    """A shard that is finished.

    Attributes:
        shard: The shard; None if all its samples were bad.
        statistics: What its samples count.
        bad_samples: One sentence for each sample that was left out.
        treatments: What was done to the others.
    """

    shard: Shard | None
    statistics: Statistics
    bad_samples: tuple[str, ...]
    treatments: NamedCounts


@dataclass(frozen=True, slots=True)
class ShardTask:
    """How every shard of a split is written.

    Attributes:
        store: The split's own folder.
        sample_format: What all samples have in common.
        skip_bad: Whether bad samples are left out instead of ending the command.
    """

    store: Store
    sample_format: SampleFormat
    skip_bad: bool

    def write_samples(self, number: int, samples: ShardSamples, advance: Callable[[int], None]) -> FinishedShard:
        """Read samples, write them as the shard of that number, and record it.

        Args:
            number: Number of the shard.
            samples: Its samples.
            advance: Called with the number of samples just read.

        Raises:
            InputError: A sample cannot be used, and bad ones are not left out; the message names it.
        """
        bad: list[str] = []
        good = list(self._read_good_samples(samples, bad, advance))
        treatments = NamedCounts()
        for sample in good:
            treatments.add_all(sample.treatments, sample.origin)
        shard, statistics = (
            write_shard(self.store, number, good, self.sample_format) if good else (None, self._empty_statistics())
        )
        finished = FinishedShard(shard, statistics, tuple(bad), treatments)
        self.store.put(_record_key(number), _record_to_json(finished))
        return finished

    def _read_good_samples(
        self, samples: ShardSamples, bad: list[str], advance: Callable[[int], None]
    ) -> Iterator[PreparedSample]:
        """Read the samples one by one; a sentence on each bad one goes to `bad`."""
        for number in range(len(samples)):
            try:
                yield samples.read_sample(number)
            except ValueError as error:
                name = samples.describe_sample(number)
                if not self.skip_bad:
                    raise InputError(
                        f"{name} cannot be used: {error}; repair or remove it, or leave such samples out "
                        f"with --skip-bad."
                    ) from error
                bad.append(f"{name}: {error}")
            advance(1)

    def find_finished(self, number: int, sizes: dict[str, int]) -> FinishedShard | None:
        """Find what an earlier try recorded of a shard; None if the shard has to be written.

        Args:
            number: Number of the shard.
            sizes: Size in bytes of every object in the split's folder, by key.
        """
        key = _record_key(number)
        if key not in sizes:
            return None
        try:
            finished = self._parse_record(self.store.get(key))
        except (ValueError, TypeError, KeyError):
            return None  # it is not a record of this program: the shard is written again
        if finished.bad_samples and not self.skip_bad:
            return None
        shard = finished.shard
        is_whole = shard is None or (sizes.get(shard.key) == shard.bytes and shard.sidecar_key in sizes)
        return finished if is_whole else None

    def _parse_record(self, data: bytes) -> FinishedShard:
        content: dict[str, Any] = json.loads(data)
        statistics = self._empty_statistics()
        statistics.add_record(content["statistics"])
        shard = None if content["shard"] is None else Shard(**content["shard"])
        treatments = NamedCounts()
        treatments.add_json(content["treatments"])
        return FinishedShard(shard, statistics, tuple(content["bad"]), treatments)

    def _empty_statistics(self) -> Statistics:
        return Statistics(self.sample_format.shape, self.sample_format.dtype)


def _record_key(number: int) -> str:
    return f"{RECORD_PREFIX}{number:05d}.json"


def _record_to_json(finished: FinishedShard) -> bytes:
    shard = None if finished.shard is None else dataclasses.asdict(finished.shard)
    record = {
        "shard": shard,
        "statistics": finished.statistics.to_record(),
        "bad": finished.bad_samples,
        "treatments": finished.treatments.to_json(),
    }
    return json.dumps(record).encode()
