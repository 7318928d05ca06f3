"""Shards that are written in parallel: equal bytes from any number of processes; no work done twice after a kill."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.shards.sample import PreparedSample
from ali_dist.data.sources.base import SampleNumbers, SourceSplit
from ali_dist.data.sources.shapes import ShapeSamples
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, run
from tests.helpers.memory_store import MemoryStore

pytestmark = pytest.mark.timeout(200)
SHAPE = (3, 8, 8)
ROOT = Path(__file__).parents[3]


@dataclasses.dataclass
class CountedSamples:
    """Samples made of their numbers; records which were read, and spoils some."""

    numbers: list[int]
    already_read: list[int]
    bad: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def describe_sample(self, number: int) -> str:
        return f"sample {self.numbers[number]}"

    def read_sample(self, number: int) -> PreparedSample:
        n = self.numbers[number]
        self.already_read.append(n)
        if n in self.bad:
            raise ValueError("it is spoilt")
        return PreparedSample(np.full(SHAPE, n % 256, dtype=np.uint8), n // 256)


def counted_split(n: int = 600, bad: tuple[int, ...] = (), **settings: Any) -> tuple[SourceSplit, list[int]]:
    """A split of n samples, and the list of those that were read."""
    read: list[int] = []

    def select_samples(numbers: SampleNumbers) -> CountedSamples:
        return CountedSamples(numbers.tolist(), read, bad)

    split = SourceSplit(
        name="train",
        num_samples=n,
        shape=SHAPE,
        select_samples=select_samples,
        settings={"name": "counted", **settings},
        classes=("a", "b", "c"),
    )
    return split, read


def interrupt_after(num_samples: int) -> Callable[[str, int | None], Callable[[int], None]]:
    """Progress display that interrupts the command after so many samples."""
    seen = 0

    def count(samples: int) -> None:
        nonlocal seen
        seen += samples
        if seen >= num_samples:
            raise KeyboardInterrupt

    return lambda name, total: count


OPTIONS = WriteOptions(shard_mb=0.1)
PER_SHARD = 48  # a header and a block each for 192 pixels and for a class number: 2,048 bytes


def test_every_sample_is_written_once_with_its_label_in_mixed_order(tmp_path: Path) -> None:
    split, _ = counted_split()
    write_splits(LocalStore(tmp_path), [split], OPTIONS)
    store = LocalStore(tmp_path / "train")
    index = load_index(store)
    assert len(index.shards) > 8
    x, y = load_arrays(store, index)
    assert y is not None
    numbers = (x[:, 0, 0, 0].int() + 256 * y).tolist()
    assert sorted(numbers) == list(range(600))
    steps = np.abs(np.diff(numbers))
    assert np.median(steps) > 50, "neighbors in the source must not be neighbors in the shards"


def test_several_processes_write_the_same_bytes_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for jobs in (1, 3):
        arguments = ("shapes", tmp_path / str(jobs), "--samples", 300, "--shard-mb", 0.2, "--jobs", jobs)
        assert run(capsys, *arguments)[0] == 0
    assert content(tmp_path / "1") == content(tmp_path / "3")
    assert len(list((tmp_path / "1" / "train").glob("*.tar"))) > 4


@pytest.mark.parametrize("after", [1, 200, 600])
def test_what_an_interrupted_try_has_finished_is_not_read_again(tmp_path: Path, after: int) -> None:
    torn, read = counted_split()
    with pytest.raises(KeyboardInterrupt):
        write_splits(LocalStore(tmp_path / "torn"), [torn], OPTIONS, interrupt_after(after))
    finished = len(list((tmp_path / "torn" / "train" / "unfinished").glob("*.json")))
    assert finished == (after - 1) // PER_SHARD
    again, read_again = counted_split()
    write_splits(LocalStore(tmp_path / "torn"), [again], OPTIONS)
    assert len(set(read_again)) == len(read_again), "nothing is read twice"
    assert len(read_again) == 600 - finished * PER_SHARD
    assert set(read) | set(read_again) == set(range(600))
    whole, _ = counted_split()
    write_splits(LocalStore(tmp_path / "whole"), [whole], OPTIONS)
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


class UndeletableStore(MemoryStore):
    """A store from which nothing may be deleted."""

    def delete(self, keys: Sequence[str]) -> None:
        if keys:
            raise InputError(f"{self.url} refuses access (AccessDenied).")

    def child(self, prefix: str) -> MemoryStore:
        return UndeletableStore(super().child(prefix).url)


def test_data_are_complete_where_nothing_may_be_deleted_and_what_stays_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = UndeletableStore(f"memory://{tmp_path.name}")
    for wrote in (True, False):
        split, _ = counted_split()
        caplog.clear()
        assert write_splits(store, [split], OPTIONS)["train"] == (store.child("train"), wrote)
        (sentence,) = [record.getMessage() for record in caplog.records]
        assert "are complete, but up to 14 working files beside them could not be deleted: " in sentence
    assert load_index(store.child("train")).num_samples == 600


def test_shards_that_would_pass_for_a_part_of_the_data_must_be_deleted(tmp_path: Path) -> None:
    store = UndeletableStore(f"memory://{tmp_path.name}")
    store.child("train").put("unfinished.json", b"{}")
    store.child("train").put("00099.tar", b"of an earlier try")
    with pytest.raises(InputError, match="AccessDenied"):
        write_splits(store, [counted_split()[0]], OPTIONS)


def test_shards_of_a_try_with_other_settings_or_lost_ones_are_written_again(tmp_path: Path) -> None:
    store, whole = LocalStore(tmp_path / "torn"), counted_split(version=2)[0]
    write_splits(LocalStore(tmp_path / "whole"), [whole], OPTIONS)
    other, _ = counted_split(version=1)
    with pytest.raises(KeyboardInterrupt):
        write_splits(store, [other], OPTIONS, interrupt_after(500))
    again, read = counted_split(version=2)
    with pytest.raises(KeyboardInterrupt):
        write_splits(store, [again], OPTIONS, interrupt_after(400))
    assert len(read) == 400, "what was made with other settings counts for nothing"
    (tmp_path / "torn" / "train" / "00002.tar").unlink()
    (tmp_path / "torn" / "train" / "unfinished" / "00003.json").write_bytes(b"{}")
    last, read = counted_split(version=2)
    write_splits(store, [last], OPTIONS)
    assert 200 < len(read) < 400
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["00000.npz", "00000.tar", "unfinished/00000.json"])
def test_a_file_of_the_user_with_a_name_of_ours_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    file = tmp_path / "train" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"holds .*{name}.*did not write|did not write .*{name}"):
        write_splits(LocalStore(tmp_path), [counted_split()[0]], OPTIONS)
    assert content(tmp_path) == {f"train/{name}": b"mine"}


def test_a_source_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    def refuse() -> Iterator[SourceSplit]:
        raise InputError("There are no images.")
        yield

    with pytest.raises(InputError, match="There are no images"):
        write_splits(LocalStore(tmp_path / "out"), refuse(), OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_killed_command_leaves_no_process_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no chance to clean up."""
    arguments = ["--samples", "1500", "--size", "64", "--shard-mb", "1"]
    out = tmp_path / "torn"
    records = out / "train" / "unfinished"
    with KilledCommand(
        ["shapes", str(out), *arguments, "--jobs", "2"], lambda: len(list(records.glob("*.json"))) >= 3
    ) as left:
        assert not left, f"processes {left} live on without their command"
    finished = len(list(records.glob("*.json")))
    assert not (out / "train" / "index.json").exists()
    read: list[int] = []
    monkeypatch.setattr(ShapeSamples, "read_sample", recording(ShapeSamples.read_sample, read))
    assert run(capsys, "shapes", out, *arguments, "--jobs", 1, "--verify")[0] == 0
    per_shard = load_index(LocalStore(out / "train")).shards[0].samples
    assert len(read) <= 1650 - (finished - 1) * per_shard
    assert run(capsys, "shapes", tmp_path / "whole", *arguments, "--jobs", 1)[0] == 0
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_command_that_is_asked_to_stop_does_within_5_seconds_and_says_how_to_go_on(
    tmp_path: Path, number: int
) -> None:
    out = tmp_path / "torn"
    arguments = ["shapes", str(out), "--samples", "100000", "--size", "64", "--shard-mb", "1", "--jobs", "1"]
    command = [sys.executable, "-m", "ali_dist.prepare", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list((out / "train" / "unfinished").glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 75, said
    assert time.monotonic() - began < 5
    assert said.endswith("ali_dist.prepare: Stopped on request; run the same command to go on.\n")


def recording(read_sample: Callable[..., Any], numbers: list[int]) -> Callable[..., Any]:
    def wrapped(self: Any, number: int) -> Any:
        numbers.append(number)
        return read_sample(self, number)

    return wrapped


class KilledCommand:
    """A prepare command that is killed once `condition` holds; the block gets the pids of its processes still alive."""

    def __init__(self, arguments: list[str], condition: Callable[[], bool]) -> None:
        command = [sys.executable, "-m", "ali_dist.prepare", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
        self.condition = condition

    def __enter__(self) -> list[int]:
        deadline = time.monotonic() + 100
        while not self.condition() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.process.poll() is None, "the command ended before it could be killed"
        assert len(list(self.list_processes())) > 1, "it must work with several processes"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 30
        while (left := list(self.list_processes())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def __exit__(self, *error: object) -> None:
        for pid in self.list_processes():
            os.kill(pid, signal.SIGKILL)

    def list_processes(self) -> Iterator[int]:
        """The processes of the command's session that are not dead yet."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                yield int(stat.parent.name)


def test_the_processes_that_write_shards_do_not_load_torch() -> None:
    """Each of them imports the command again, and torch would cost each of them seconds."""
    script = "import sys, ali_dist.prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_process_that_is_killed_ends_the_command_with_a_reason(tmp_path: Path) -> None:
    split = dataclasses.replace(counted_split()[0], select_samples=lambda numbers: DeadlySamples(len(numbers)))
    with pytest.raises(InputError, match="was killed .* smaller --jobs"):
        write_splits(LocalStore(tmp_path), [split], dataclasses.replace(OPTIONS, jobs=2))


@dataclasses.dataclass
class DeadlySamples:
    """Samples that kill the process which reads them, as the kernel does when memory runs out."""

    size: int

    def __len__(self) -> int:
        return self.size

    def describe_sample(self, number: int) -> str:
        return str(number)

    def read_sample(self, number: int) -> PreparedSample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_sample_stops_or_is_left_out_counted_and_named(tmp_path: Path, jobs: int) -> None:
    bad = (3, 77, 599)
    options = dataclasses.replace(OPTIONS, jobs=jobs)
    with pytest.raises(InputError, match=r"sample (3|77|599) cannot be used: it is spoilt; .* --skip-bad"):
        write_splits(LocalStore(tmp_path / "x"), [counted_split(bad=bad)[0]], options)
    write_splits(LocalStore(tmp_path / "x"), [counted_split(bad=bad)[0]], dataclasses.replace(options, skip_bad=True))
    store = LocalStore(tmp_path / "x" / "train")
    index = load_index(store)
    assert index.num_samples == 597
    assert index.extra["skipped"] == 3
    assert sorted(index.extra["skipped_samples"]) == sorted(f"sample {n}: it is spoilt" for n in bad)
    x, y = load_arrays(store, index)
    assert y is not None
    assert sorted((x[:, 0, 0, 0].int() + 256 * y).tolist()) == [n for n in range(600) if n not in bad]


def test_leaving_bad_samples_out_is_asked_for_each_time(tmp_path: Path) -> None:
    """A shard that an earlier try finished without its bad samples is not taken over when they must be good."""
    store, bad = LocalStore(tmp_path), (1,)
    skipping = dataclasses.replace(OPTIONS, skip_bad=True)
    with pytest.raises(KeyboardInterrupt):
        write_splits(store, [counted_split(bad=bad)[0]], skipping, interrupt_after(599))
    with pytest.raises(InputError, match="sample 1 cannot be used"):
        write_splits(store, [counted_split(bad=bad)[0]], OPTIONS)


def test_a_shard_all_of_which_is_bad_is_left_out_and_a_split_of_such_is_refused(tmp_path: Path) -> None:
    skipping = dataclasses.replace(OPTIONS, skip_bad=True)
    probe, first_shard = counted_split()
    with pytest.raises(KeyboardInterrupt):
        write_splits(LocalStore(tmp_path / "probe"), [probe], OPTIONS, interrupt_after(PER_SHARD))
    write_splits(LocalStore(tmp_path / "a"), [counted_split(bad=tuple(first_shard))[0]], skipping)
    index = load_index(LocalStore(tmp_path / "a" / "train"))
    assert index.num_samples == 600 - PER_SHARD
    assert index.shards[0].key == "00001.tar"
    assert len(load_arrays(LocalStore(tmp_path / "a" / "train"), index)[0]) == index.num_samples
    with pytest.raises(InputError, match="There are no samples to write"):
        write_splits(LocalStore(tmp_path / "b"), [counted_split(20, bad=tuple(range(20)))[0]], skipping)
