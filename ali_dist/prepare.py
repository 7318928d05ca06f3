"""python -m ali_dist.prepare: write data sets as shards, or index shards that are there; and check them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ali_dist.config.loading import did_you_mean
from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import INDEX_KEY, check_listing, load_index
from ali_dist.data.sources.base import StartTracking, keep_classes
from ali_dist.data.sources.registry import SOURCES
from ali_dist.errors import InputError, exit_code
from ali_dist.storage import open_store
from ali_dist.storage.base import Store

_MOST_PROBLEMS = 10
_TARS = "webdataset"  # the one source that is not written, but indexed
_NAMES = (*SOURCES, _TARS)
_RAW_UP_TO = 64  # pixels of a side above which images are compressed unless told otherwise
_WRITING = ("encoding", "shard_mb", "jobs", "skip_bad")  # how splits are written, whatever they are
_ANY = ("only", *_WRITING)  # options of every source that is written
Written = dict[str, tuple[Store, bool]]


# Options that are not for every source, in the order of --help.
_OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"flag": "--from", "metavar": "PATH", "help": "where the original files are"},
    "splits": {"metavar": "A,B", "help": "write these splits only"},
    "holdout": {
        "type": float,
        "help": "share of the training images held out: as valid (default as in the paper), "
        "for a folder as test (default 0.1)",
    },
    "only": {"metavar": "A,B", "help": "keep the samples of these classes only, such as the normal ones for anomalies"},
    "size": {"type": int, "help": "pixels of a side: shapes 32 (default) or 64; imagenet64, folder any (default 64)"},
    "grey": {"action": "store_true", "help": "one channel instead of three"},
    "labels": {"choices": ("classes", "attributes"), "help": "what shapes are labelled with (default classes)"},
    "layout": {"choices": ("grid", "ring"), "help": "mixture: 25 Gaussians (default), or 8"},
    "samples": {"type": int, "help": "to train on: mixture 100000, shapes 20000 by default; a tenth more to test on"},
    "seed": {"type": int, "help": "of drawn shapes (default 0)"},
    "encoding": {"choices": ("raw", "png", "jpg"), "help": "how images are stored (default raw, above 64x64 png)"},
    "shard_mb": {"type": float, "help": "megabytes of a shard (default 32)"},
    "jobs": {"type": int, "help": "processes at work (default: one for each core)"},
    "skip_bad": {"action": "store_true", "help": "leave out, count and list images that cannot be read"},
}


class _PrepareParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m ali_dist.prepare --help.")


def _make_parser() -> argparse.ArgumentParser:
    summaries = {**{name: source.summary for name, source in SOURCES.items()}, _TARS: "tars in OUT, indexed in place"}
    sources = "\n".join(f"  {name:<12}{summary}" for name, summary in summaries.items())
    parser = _PrepareParser(
        prog="python -m ali_dist.prepare",
        description="Write a data set as WebDataset shards with an index, or index shards that are there.\n"
        "Repeating a command does nothing where its data is complete, and goes on where it was stopped.",
        epilog=f"sources:\n{sources}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="see below")
    parser.add_argument("out", metavar="OUT", help="folder or s3://bucket/prefix")
    for name, option in _OPTIONS.items():
        settings = {key: value for key, value in option.items() if key != "flag"}
        parser.add_argument(option.get("flag", _option_flag(name)), dest=name, default=None, **settings)
    parser.add_argument("--verify", action="store_true", help="then read everything again and check it")
    parser.add_argument("--endpoint-url", help="S3 endpoint; default: AWS_ENDPOINT_URL or AWS")
    return parser


def _option_flag(name: str) -> str:
    return str(_OPTIONS[name].get("flag", f"--{name.replace('_', '-')}"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input or damaged data."""
    again = "Interrupted; run the same command to go on."
    return exit_code("ali_dist.prepare", lambda: _run_command(_make_parser().parse_args(argv)), again)


def _run_command(arguments: argparse.Namespace) -> int:
    source = arguments.source
    if source not in _NAMES:
        hint = did_you_mean(source, _NAMES).removesuffix("?")
        raise InputError(f"There is no source {source!r}{hint}; sources: {', '.join(_NAMES)}.")
    options = _read_options(arguments)
    store = open_store(arguments.out, endpoint_url=arguments.endpoint_url)
    with _show_progress() as track:
        written = _index_tars(store, track) if source == _TARS else _write_source(source, store, options, track)
    for name, (split, wrote) in written.items():
        index = load_index(split)
        done = "written" if wrote else "already there"
        print(f"{name}: {index.num_samples} samples in {len(index.shards)} shards, {done} in {split.url}")
        if skipped := index.extra.get("skipped_samples", []):
            print(f"{name}: {len(skipped)} bad samples were left out (listed in {split.url}/{INDEX_KEY}):")
            _print_first(skipped)
    if not arguments.verify:
        return 0
    with _show_progress() as track:
        return _verify_splits({name: split for name, (split, _) in written.items()}, track)


def _read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, if they apply to the source and make sense."""
    name, source = arguments.source, SOURCES.get(arguments.source)
    applies = () if source is None else (*source.options, *_ANY)
    given = {option: value for option in _OPTIONS if (value := getattr(arguments, option)) is not None}
    for option in given:
        if option not in applies or (name, option) == ("mixture", "encoding"):
            raise InputError(f"{_option_flag(option)} does not apply to {name}: leave it out.")
    if source is not None and source.files and "path" not in given:
        raise InputError(f"{name} needs --from PATH: {source.files}.")
    if not 0 < given.get("shard_mb", 1.0) < math.inf:
        raise InputError(f"--shard-mb is {given['shard_mb']:g}, but must be more than 0.")
    for option in ("jobs", "size"):
        if given.get(option, 1) < 1:
            raise InputError(f"--{option} is {given[option]}, but must be at least 1.")
    if "path" in given:
        given["path"] = Path(os.path.expanduser(given["path"]))
    for option in ("splits", "only"):
        if option in given:
            given[option] = tuple(name.strip() for name in given[option].split(","))
    return given


def _write_source(source: str, store: Store, options: dict[str, Any], track: StartTracking) -> Written:
    how = {
        "encoding": "raw" if options.get("size", 0) <= _RAW_UP_TO else "png",
        "jobs": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        **{name: value for name, value in options.items() if name in _WRITING},
    }
    splits = SOURCES[source].splits(**{name: value for name, value in options.items() if name not in _ANY})
    if "only" in options:
        splits = (keep_classes(split, options["only"]) for split in splits)
    return write_splits(store, splits, WriteOptions(**how), track)


def _index_tars(store: Store, track: StartTracking) -> Written:
    from ali_dist.data.shards.webdataset import index_webdataset, list_tar_folders

    folders = list_tar_folders(store)
    if not folders:
        raise InputError(f"There are no .tar files in {store.url}: give the folder or prefix that holds the shards.")
    splits = {folder or "data": store.child(folder) if folder else store for folder in folders}
    written = {name: (split, not _is_indexed(split)) for name, split in splits.items()}
    for name, (split, new) in written.items():
        if new:
            index_webdataset(split, track(name, None))
    return written


def _is_indexed(split: Store) -> bool:
    """Whether a folder has an index of exactly the tars that are in it."""
    if split.stat(INDEX_KEY) is None:
        return False
    try:
        index = load_index(split)
        check_listing(split, index)
    except InputError:
        return False  # of an earlier state of the folder
    tars = {info.key for info in split.list() if info.key.endswith(".tar") and "/" not in info.key}
    return tars == {shard.key for shard in index.shards}


def _verify_splits(splits: dict[str, Store], track: StartTracking) -> int:
    from ali_dist.data.shards.verify import verify_split

    problems: list[str] = []
    for name, split in splits.items():
        index = load_index(split)
        report = verify_split(split, index, track(name, index.num_samples))
        print(
            f"{name}: {report.num_samples} samples in {report.num_shards} shards checked, "
            f"{len(report.problems)} problems"
        )
        problems += report.problems
    _print_first(problems)
    return 2 if problems else 0


def _print_first(lines: list[str]) -> None:
    """The first few of what may be many, on stderr."""
    for line in lines[:_MOST_PROBLEMS]:
        print(line, file=sys.stderr)
    if len(lines) > _MOST_PROBLEMS:
        print(f"... and {len(lines) - _MOST_PROBLEMS} more.", file=sys.stderr)


@contextmanager
def _show_progress() -> Iterator[StartTracking]:
    """Progress lines on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda name, total: lambda samples: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:

        def track(name: str, total: int | None) -> Callable[[int], None]:
            task = bar.add_task(name, total=total)
            return lambda samples: bar.advance(task, samples)

        yield track


if __name__ == "__main__":
    sys.exit(main())
