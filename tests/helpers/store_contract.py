"""What every store promises, as tests: a test class of a new backend derives from `StoreContract`."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest

from ali_dist.errors import InputError
from ali_dist.storage import open_store
from ali_dist.storage.base import ChangedObject, MissingObject, Store

BAD_KEYS = ["", "/etc/passwd", "../out", "a/../../out", "a//b", "./a", "a/", "a\0b"]


class StoreContract:
    """The tests that every backend passes; a subclass gives the fixture `store`, an empty store."""

    def test_what_is_put_is_what_is_read(self, store: Store, tmp_path: Path) -> None:
        content = os.urandom(70_000)
        source = tmp_path / "source.bin"
        source.write_bytes(content[::-1])
        store.put("train/a.bin", content)
        store.put("train/from file.bin", source)
        store.put("empty", b"")
        assert store.get("train/a.bin") == content
        assert store.get("train/from file.bin") == content[::-1]
        assert store.get("empty") == b""

    def test_a_range_is_exactly_the_bytes_asked_for(self, store: Store) -> None:
        content = os.urandom(10_000)
        store.put("a", content)
        for start, length in [(0, 1), (0, 10_000), (9_999, 1), (1234, 4321), (17, 0), (10_000, 0)]:
            assert store.get_range("a", start, length) == content[start : start + length]

    def test_a_range_beyond_the_end_is_refused_not_cut_short(self, store: Store) -> None:
        store.put("a", b"0123456789")
        for start, length in [(0, 11), (9, 2), (10, 1), (500, 1), (11, 0)]:
            with pytest.raises(InputError, match="its first .* bytes are needed"):
                store.get_range("a", start, length)

    def test_an_etag_pins_the_content(self, store: Store) -> None:
        store.put("a", b"old content")
        info = store.stat("a")
        assert info is not None
        assert info.size == 11
        assert store.get_range("a", 0, 3, etag=info.etag) == b"old"
        store.put("a", b"new content!")
        for length in (0, 3):
            with pytest.raises(ChangedObject, match="'a' in .* was replaced"):
                store.get_range("a", 0, length, etag=info.etag)
        assert store.get("a") == b"new content!"

    def test_a_missing_key_is_an_input_error_that_names_key_and_store(self, store: Store) -> None:
        store.put("dir/a", b"1")
        for key in ("b", "dir", "dir/a/b"):
            assert store.stat(key) is None
            for read in (store.get, lambda k: store.get_range(k, 0, 1), lambda k: store.get_range(k, 0, 0)):
                with pytest.raises(MissingObject) as caught:
                    read(key)
                assert repr(key) in str(caught.value)
                assert store.url in str(caught.value)

    def test_list_is_recursive_sorted_relative_and_filters_by_text_prefix(self, store: Store) -> None:
        keys = ["b", "a/2", "a/10", "a.txt", "a/deep/er/x", "ab/1", "Z", "é"]
        for key in keys:
            store.put(key, key.encode())
        listed = store.list()
        assert [info.key for info in listed] == sorted(keys)
        assert [info.size for info in listed] == [len(key.encode()) for key in sorted(keys)]
        assert [info.key for info in store.list("a/")] == ["a/10", "a/2", "a/deep/er/x"]
        assert [info.key for info in store.list("a")] == ["a.txt", "a/10", "a/2", "a/deep/er/x", "ab/1"]
        assert [info.key for info in store.list("a/deep/e")] == ["a/deep/er/x"]
        assert store.list("nothing/here") == []
        assert all(store.stat(info.key) == info for info in listed)

    def test_a_child_is_the_same_store_one_folder_down(self, store: Store) -> None:
        child = store.child("runs").child("one/two")
        child.put("x", b"1")
        store.put("runs/one/twofold", b"2")
        assert child.url == f"{store.url}/runs/one/two"
        assert store.get("runs/one/two/x") == b"1"
        assert [info.key for info in child.list()] == ["x"], "a neighbor whose name begins alike is not inside"

    def test_delete_removes_only_what_is_named_and_accepts_absent_keys(self, store: Store) -> None:
        for key in ("a/1", "a/2", "b"):
            store.put(key, b"x")
        store.delete(["a/1", "b", "never/there", "a"])
        assert [info.key for info in store.list()] == ["a/2"]
        store.delete([])

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_cannot_leave_the_store(self, store: Store, key: str) -> None:
        for use in (store.stat, store.get, lambda k: store.put(k, b""), lambda k: store.delete([k])):
            with pytest.raises(InputError, match="give a relative path"):
                use(key)
        if key not in ("", "a/"):
            for descend in (store.list, store.child):
                with pytest.raises(InputError, match="give a relative path"):
                    descend(key)

    def test_readers_during_puts_see_one_whole_version(self, store: Store) -> None:
        versions = [bytes([v]) * (200_000 + v) for v in range(4)]
        store.put("a", versions[0])
        done, seen = threading.Event(), []

        def read() -> None:
            while not done.is_set():
                seen.append(store.get("a"))

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(5):
            for version in versions:
                store.put("a", version)
        done.set()
        reader.join()
        assert seen
        assert all(content in versions for content in seen)

    def test_a_store_survives_pickling(self, store: Store) -> None:
        store.put("a", b"1")
        assert pickle.loads(pickle.dumps(store)).get("a") == b"1"

    def test_its_url_opens_the_same_store(self, store: Store) -> None:
        store.child("runs").put("a", b"1")
        assert open_store(store.url).get("runs/a") == b"1"
        assert open_store(store.child("runs").url).get("a") == b"1"
