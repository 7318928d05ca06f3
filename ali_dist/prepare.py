"""python -m ali_dist.prepare: write built-in data as shards, or index shards that are there; and check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ali_dist.data.index import INDEX_KEY, check_listing, load_index
from ali_dist.data.storage import StorageError, Store, open_store
from ali_dist.errors import InputError
from ali_dist.settings import suggest

SOURCES = ("digits", "mixture", "webdataset")
_MOST_PROBLEMS = 10
Track = Callable[[str, int | None], Callable[[int], None]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m ali_dist.prepare --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m ali_dist.prepare",
        description="Write a data set as WebDataset shards with an index, or index shards that are there. "
        "Repeating a command does nothing where its data is complete.",
    )
    parser.add_argument("source", metavar="SOURCE", help=f"{', '.join(SOURCES)} (tars that lie in OUT)")
    parser.add_argument("out", metavar="OUT", help="folder or s3://bucket/prefix")
    parser.add_argument("--layout", choices=("grid", "ring"), help="mixture: 25 Gaussians (default), or 8")
    parser.add_argument("--samples", type=int, help="mixture: points to train on (default 100000)")
    parser.add_argument("--encoding", choices=("raw", "png", "jpg"), help="digits: how images are stored (default raw)")
    parser.add_argument("--shard-mb", type=float, help="digits, mixture: megabytes of a shard (default 32)")
    parser.add_argument("--verify", action="store_true", help="then read everything again and check it")
    parser.add_argument("--endpoint-url", help="S3 endpoint; default: AWS_ENDPOINT_URL or AWS")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input or damaged data."""
    try:
        arguments = _parser().parse_args(argv)
        return _run(arguments)
    except (InputError, StorageError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("Interrupted; run the same command to go on.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    source = arguments.source
    if source not in SOURCES:
        hint = suggest(source, SOURCES).removesuffix("?")
        raise InputError(f"There is no source {source!r}{hint}; sources: {', '.join(SOURCES)}.")
    options = _options(arguments)
    store = open_store(arguments.out, endpoint_url=arguments.endpoint_url)
    with _progress() as track:
        splits, wrote = _index_tars(store, track) if source == "webdataset" else _write(source, store, options, track)
    for name, split in splits.items():
        index = load_index(split)
        done = "written" if wrote else "already there"
        print(f"{name}: {index.num_samples} samples in {len(index.shards)} shards, {done} in {split.url}")
    if not arguments.verify:
        return 0
    with _progress() as track:
        return _verify(splits, track)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, if they apply to the source."""
    applies = {"digits": ("encoding", "shard_mb"), "mixture": ("layout", "samples", "shard_mb"), "webdataset": ()}
    names = ("layout", "samples", "encoding", "shard_mb")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    for name in given:
        if name not in applies[arguments.source]:
            raise InputError(f"--{name.replace('_', '-')} does not apply to {arguments.source}: leave it out.")
    if not given.get("shard_mb", 1.0) > 0:
        raise InputError(f"--shard-mb is {given['shard_mb']:g}, but must be more than 0.")
    return given


def _write(source: str, store: Store, options: dict[str, Any], track: Track) -> tuple[dict[str, Store], bool]:
    from ali_dist.data.sources import prepare_digits, prepare_mixture

    prepare: Callable[..., bool] = prepare_digits if source == "digits" else prepare_mixture
    wrote = prepare(store, track=track, **options)
    return {split: store.child(split) for split in ("train", "test")}, wrote


def _index_tars(store: Store, track: Track) -> tuple[dict[str, Store], bool]:
    from ali_dist.data.foreign import index_webdataset, tar_folders

    folders = tar_folders(store)
    if not folders:
        raise InputError(f"There are no .tar files in {store.url}: give the folder or prefix that holds the shards.")
    splits = {folder or "data": store.child(folder) if folder else store for folder in folders}
    todo = {name: split for name, split in splits.items() if not _is_indexed(split)}
    for name, split in todo.items():
        index_webdataset(split, track(name, None))
    return splits, bool(todo)


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


def _verify(splits: dict[str, Store], track: Track) -> int:
    from ali_dist.data.verify import verify

    problems: list[str] = []
    for name, split in splits.items():
        index = load_index(split)
        report = verify(split, index, track(name, index.num_samples))
        print(f"{name}: {report.samples} samples in {report.shards} shards checked, {len(report.problems)} problems")
        problems += report.problems
    for problem in problems[:_MOST_PROBLEMS]:
        print(problem, file=sys.stderr)
    if len(problems) > _MOST_PROBLEMS:
        print(f"... and {len(problems) - _MOST_PROBLEMS} more.", file=sys.stderr)
    return 2 if problems else 0


@contextmanager
def _progress() -> Iterator[Track]:
    """Progress lines on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda name, total: lambda samples: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def track(name: str, total: int | None) -> Callable[[int], None]:
            task = bar.add_task(name, total=total)
            return lambda samples: bar.advance(task, samples)

        yield track


if __name__ == "__main__":
    sys.exit(main())
