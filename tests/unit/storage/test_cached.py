"""The disk cache in front of a store: the same bytes, fetched once, whatever happens to its files."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ali_dist.errors import StorageError
from ali_dist.storage import OPENERS, open_store
from ali_dist.storage.base import ObjectInfo, Store
from ali_dist.storage.block_files import BlockFiles
from ali_dist.storage.cached import CachedStore, drop_cached, with_cache, without_filling
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import WatchedStore
from tests.helpers.memory_store import SCHEME, open_memory
from tests.helpers.store_contract import StoreContract

KIB = 1024
BLOCK = 64 * KIB  # of objects up to 2 MiB
SIZE = 1_000_000
BLOCKS = 16
CONTENT = random.Random(0).randbytes(SIZE)


@pytest.fixture(autouse=True)
def memory_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPENERS, SCHEME, open_memory)


class TestCachedStore(StoreContract):
    """It is a store like all others."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return with_cache(open_store(f"memory://{tmp_path.name}/data"), str(tmp_path / "cache"), 1.0)


@pytest.fixture
def remote(tmp_path: Path) -> WatchedStore:
    store = open_store(f"memory://{tmp_path.name}/watched")
    store.put("a.tar", CONTENT)
    return WatchedStore(store)


def open_cached(remote: WatchedStore, tmp_path: Path, gigabytes: float = 1.0) -> tuple[CachedStore, str]:
    """A store that has just been opened, with the etag of the object."""
    store = with_cache(remote, str(tmp_path / "cache"), gigabytes)
    assert isinstance(store, CachedStore)
    (info,) = store.list()
    return store, info.etag


def files_of(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def fetched_bytes(remote: WatchedStore) -> int:
    return sum(length for _, _, length in remote.reads)


def test_folders_are_not_cached_and_neither_is_anything_without_a_place_for_it(tmp_path: Path) -> None:
    folder = LocalStore(tmp_path)
    assert with_cache(folder, str(tmp_path / "cache"), 1.0) is folder
    remote = open_store("memory://a")
    assert with_cache(remote, None, 1.0) is remote


def test_ranges_are_right_and_each_byte_is_fetched_once(remote: WatchedStore, tmp_path: Path) -> None:
    store, etag = open_cached(remote, tmp_path)
    rng = random.Random(1)
    for _ in range(300):
        start = rng.randrange(SIZE)
        length = rng.randrange(1, min(SIZE - start, 200_000) + 1)
        assert store.get_range("a.tar", start, length, etag=etag) == CONTENT[start : start + length]
    assert store.get("a.tar") == CONTENT
    spans = sorted((start, start + length) for _, start, length in remote.reads)
    assert spans[0][0] == 0
    assert spans[-1][1] == SIZE
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    remote.reads.clear()
    again, etag = open_cached(remote, tmp_path)
    assert again.get_range("a.tar", 5, SIZE - 5, etag=etag) == CONTENT[5:]
    assert again.get("a.tar") == CONTENT
    assert remote.reads == []


def test_what_is_missing_side_by_side_is_one_request(remote: WatchedStore, tmp_path: Path) -> None:
    store, etag = open_cached(remote, tmp_path)
    store.get_range("a.tar", 5 * BLOCK, 1, etag=etag)
    store.get_range("a.tar", BLOCK + 1, 8 * BLOCK, etag=etag)
    assert remote.reads == [("a.tar", 5 * BLOCK, BLOCK), ("a.tar", BLOCK, 4 * BLOCK), ("a.tar", 6 * BLOCK, 4 * BLOCK)]


def test_another_content_key_or_server_is_another_object(remote: WatchedStore, tmp_path: Path) -> None:
    remote.inner.put("b.tar", CONTENT)
    folder = str(tmp_path / "cache")
    for endpoint in ("http://one", "http://two"):
        store = CachedStore(remote, folder, 10**9, endpoint)
        for info in store.list():
            assert store.get_range(info.key, 0, SIZE, etag=info.etag) == CONTENT
    assert fetched_bytes(remote) == 4 * SIZE
    remote.inner.put("a.tar", CONTENT[::-1])
    fresh, etag = CachedStore(remote, folder, 10**9, "http://one"), ""
    etag = next(info.etag for info in fresh.list() if info.key == "a.tar")
    assert fresh.get_range("a.tar", 0, SIZE, etag=etag) == CONTENT[::-1]


def test_an_object_that_was_replaced_since_the_listing_is_read_as_it_is(remote: WatchedStore, tmp_path: Path) -> None:
    store, _ = open_cached(remote, tmp_path)
    remote.inner.put("a.tar", b"new")
    assert store.get("a.tar") == b"new"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip_a_byte,
    "cut short": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "zeros, as after a power cut": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": lambda path: path.unlink(),
    "a pipe": make_pipe,
    "a folder": make_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_fetched_again_and_never_an_error(
    remote: WatchedStore, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store, etag = open_cached(remote, tmp_path)
    store.get("a.tar")
    files = files_of(tmp_path)
    assert len(files) == BLOCKS
    remote.reads.clear()
    damage(files[3])
    for _ in range(2):
        assert store.get_range("a.tar", 0, SIZE, etag=etag) == CONTENT
    assert remote.reads[0] == ("a.tar", 3 * BLOCK, BLOCK)
    assert damage is make_folder or len(remote.reads) == 1


def test_damaged_files_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = BlockFiles(tmp_path, 10**9)
    for name in ("aa-1", "aa-2"):
        files.write(name, memoryview(CONTENT[:1000]))
        flip_a_byte(next(tmp_path.rglob(name)))
        assert files.read(name, 1000) is None
    assert files.damaged == 2
    assert "damaged so far: 2" in caplog.messages[-1]


def test_what_a_reader_finds_damaged_is_fetched_again(remote: WatchedStore, tmp_path: Path) -> None:
    store, etag = open_cached(remote, tmp_path)
    store.get("a.tar")
    remote.reads.clear()
    assert drop_cached(store, "a.tar", BLOCK, 2 * BLOCK)
    assert not drop_cached(store, "a.tar", BLOCK, 2 * BLOCK)
    assert not drop_cached(remote, "a.tar")
    assert store.get_range("a.tar", 0, SIZE, etag=etag) == CONTENT
    assert remote.reads == [("a.tar", BLOCK, 2 * BLOCK)]
    assert drop_cached(store, "a.tar")
    assert files_of(tmp_path) == []


def test_reads_here_and_there_fetch_no_more_than_they_ask_for(remote: WatchedStore, tmp_path: Path) -> None:
    sparse = without_filling(open_cached(remote, tmp_path)[0])
    (info,) = sparse.list()
    assert sparse.get_range("a.tar", 70_000, 10, etag=info.etag) == CONTENT[70_000:70_010]
    assert remote.reads == [("a.tar", 70_000, 10)]
    assert files_of(tmp_path) == []
    open_cached(remote, tmp_path)[0].get("a.tar")
    remote.reads.clear()
    assert sparse.get_range("a.tar", 70_000, 10, etag=info.etag) == CONTENT[70_000:70_010]
    assert remote.reads == []


def test_threads_that_need_a_block_at_once_fetch_it_once(remote: WatchedStore, tmp_path: Path) -> None:
    store, etag = open_cached(remote, tmp_path)
    remote.before = lambda key, start: time.sleep(0.01)
    wrong: list[int] = []

    def read(start: int) -> None:
        if store.get_range("a.tar", start, 300_000, etag=etag) != CONTENT[start : start + 300_000]:
            wrong.append(start)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(0, 700_000, 50_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert fetched_bytes(remote) == 15 * BLOCK  # all but the last one


def test_a_thread_that_fails_does_not_fail_the_others(remote: WatchedStore, tmp_path: Path) -> None:
    store, etag = open_cached(remote, tmp_path)
    is_first, may_fail = itertools.count(), threading.Event()

    def fail_first(key: str, start: int) -> None:
        if next(is_first) == 0:
            may_fail.wait(5)
            raise StorageError("lost")

    remote.before = fail_first
    failed: list[StorageError] = []

    def read_and_fail() -> None:
        with pytest.raises(StorageError) as caught:
            store.get_range("a.tar", 0, 10, etag=etag)
        failed.append(caught.value)

    read: list[bytes] = []
    first = threading.Thread(target=read_and_fail)
    first.start()
    while not remote.reads:
        time.sleep(0.001)
    second = threading.Thread(target=lambda: read.append(store.get_range("a.tar", 5, 10, etag=etag)))
    second.start()
    may_fail.set()
    first.join()
    second.join()
    assert len(failed) == 1
    assert read == [CONTENT[5:15]]


def test_the_least_recently_used_blocks_make_room(tmp_path: Path) -> None:
    limit = 64 * 1000
    files = BlockFiles(tmp_path, limit)
    for number in range(200):
        files.write(f"aa-{number}", memoryview(CONTENT[:996]))
        assert files.read("aa-0", 996) is not None, "it is used all the time"
        assert sum(path.stat().st_size for path in tmp_path.rglob("aa-*")) <= limit
    kept = {int(path.name[3:]) for path in tmp_path.rglob("aa-*")}
    assert kept == {0, *range(200 - len(kept) + 1, 200)}
    assert len(kept) > 55


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(bytes(100_000))
    files = BlockFiles(tmp_path, 64 * 1000)
    for number in range(200):
        files.write(f"aa-{number}", memoryview(CONTENT[:996]))
    assert (tmp_path / "mine").exists()


def test_a_bound_of_less_than_a_block_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    BlockFiles(tmp_path, 900).write("aa-0", memoryview(CONTENT[:996]))
    assert "data.cache_gb is less than one block" in caplog.text


def test_what_killed_writers_have_left_is_removed_after_a_while(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path, 64 * 1000)
    files.write("aa-0", memoryview(CONTENT[:996]))
    folder = next(tmp_path.rglob("aa-0")).parent
    for name in (".partial-old", ".partial-new"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".partial-old", (0, 0))
    BlockFiles(tmp_path, 64 * 1000).write("aa-1", memoryview(CONTENT[:996]))
    assert sorted(path.name for path in folder.iterdir()) == [".partial-new", "aa-0", "aa-1"]


def read_at_random(remote: Store, folder: str, seed: int, seconds: float) -> None:
    """Read for a while through a cache that is too small, and fail if a byte is wrong."""
    store = CachedStore(remote, folder, 700_000)
    (info,) = store.list()
    rng, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        start = rng.randrange(SIZE - 1)
        length = rng.randrange(1, min(SIZE - start, 200_000) + 1)
        assert store.get_range("a.tar", start, length, etag=info.etag) == CONTENT[start : start + length]


def test_processes_that_write_and_are_killed_never_disturb_each_other(tmp_path: Path) -> None:
    remote = open_store(f"memory://{tmp_path.name}/shared")
    remote.put("a.tar", CONTENT)
    fork, folder = multiprocessing.get_context("fork"), str(tmp_path / "cache")
    lasting = [fork.Process(target=read_at_random, args=(remote, folder, seed, 1.5)) for seed in range(2)]
    for process in lasting:
        process.start()
    for seed in range(2, 8):
        killed = fork.Process(target=read_at_random, args=(remote, folder, seed, 60))
        killed.start()
        time.sleep(0.15)
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
    for process in lasting:
        process.join()
    assert [process.exitcode for process in lasting] == [0, 0]
    whole = [path for path in files_of(tmp_path) if not path.name.startswith(".partial-")]
    assert whole
    assert sum(path.stat().st_size for path in whole) <= 700_000 + 3 * BLOCK


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 40 kB: the disk is full, as far as it can see."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_once_and_costs_nothing_but_the_cache(
    remote: WatchedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, small_files: None
) -> None:
    store, etag = open_cached(remote, tmp_path)
    for _ in range(3):
        assert store.get_range("a.tar", 5, 500_000, etag=etag) == CONTENT[5:500_005]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"Nothing more is kept in data.cache_dir {tmp_path / 'cache'} (file too ")
    assert files_of(tmp_path) == []


def test_a_folder_that_cannot_be_used_is_said_once(
    remote: WatchedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    store, etag = open_cached(remote, tmp_path)
    for _ in range(3):
        assert store.get_range("a.tar", 5, 500_000, etag=etag) == CONTENT[5:500_005]
    assert len(caplog.messages) == 1
    assert "Nothing more is kept in data.cache_dir" in caplog.messages[0]


def test_a_pickled_store_finds_its_blocks_and_lists_anew(remote: WatchedStore, tmp_path: Path) -> None:
    store = with_cache(remote.inner, str(tmp_path / "cache"), 1.0)
    store.list()
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.get("a.tar") == CONTENT
    assert files_of(tmp_path) == [], "nothing is known of the object before a listing"
    (info,) = again.list()
    assert info == ObjectInfo("a.tar", SIZE, info.etag)
    assert again.get("a.tar") == CONTENT
    assert len(files_of(tmp_path)) == BLOCKS
