"""The bench of reading: every reader gives the whole split, requests are counted, and the tables are legible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.data import __main__ as bench
from tests.bench.data import readers
from tests.bench.data.splits import count_images, open_split, start_server, write_split

pytestmark = pytest.mark.timeout(120)


def test_every_reader_gives_every_image_once_an_epoch_and_requests_are_counted(tmp_path: Path) -> None:
    index = write_split(tmp_path / "split", "jpg", 32, 2 * readers.BATCH)
    with start_server() as server:
        split = open_split(tmp_path / "split", index, "http", server)
        for name, read in readers.choose_readers(split, epochs=1).items():
            server.ask("count")
            assert read() in (index.num_samples, readers.STREAM_EPOCHS * index.num_samples), name
            requests, sent = server.ask("count")
            assert requests >= len(index.shards), name
            assert sent > sum(shard.bytes for shard in index.shards) / 2, name


def test_the_disk_cache_asks_the_server_in_its_first_epochs_only(tmp_path: Path) -> None:
    index = write_split(tmp_path / "split", "jpg", 32, 2 * readers.BATCH)
    with start_server() as server:
        read = readers.choose_readers(open_split(tmp_path / "split", index, "http", server), epochs=1)[readers.CACHED]
        read()
        assert server.ask("count")[0] >= len(index.shards)
        read()
        assert server.ask("count")[0] == 1, "opening asks for the listing, and nothing else is asked for"


def test_a_split_has_whole_batches() -> None:
    assert all(count_images("png", side, scale) % readers.BATCH == 0 for side in bench.SIDES for scale in (0.01, 1))


def test_the_command_writes_its_tables_between_the_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "count_images", lambda *_: 2 * readers.BATCH)
    page, result = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text("before\n<!-- data: begin -->\n<!-- data: end -->\nafter\n")
    words = ["--quick", "--sides", "32", "--encodings", "raw", "--places", "folder"]
    assert bench.main([*words, "--table", str(page), "--json", str(result)]) == 0
    reading = json.loads(result.read_text())["reading"]
    assert [row["reader"] for row in reading] == [readers.STOCK, readers.STREAM, readers.STOCK_WORKERS, readers.RAM]
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in reading)
    text = page.read_text()
    assert text.startswith("before\n")
    assert "| 32 | raw | folder | webdataset |" in text
    assert "Planning an epoch of 10,000,000 samples" in text
    assert bench.main(["--sides", "31"]) == 2
    assert "--sides has '31'" in capsys.readouterr().err
