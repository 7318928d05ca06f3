"""python -m ali_dist.prepare: write data sets as shards, or index shards that are there; and check them."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ali_dist.cli import CommandParser
from ali_dist.config.loading import did_you_mean
from ali_dist.data.preparation.summary import NETWORK_SIDES, count, describe_side, summary_lines
from ali_dist.data.preparation.tar_import import IMPORT, import_tars
from ali_dist.data.preparation.tar_places import WEBDATASET
from ali_dist.data.preparation.tar_sources import TAR_SOURCES, read_import_options, read_tar_options
from ali_dist.data.preparation.tar_splits import index_tars
from ali_dist.data.preparation.tar_stream import is_remote, show_url
from ali_dist.data.preparation.write_splits import WriteOptions, WrittenSplits, write_splits
from ali_dist.data.shards.index import INDEX_KEY, load_index
from ali_dist.data.sources.base import StartTracking, keep_classes
from ali_dist.data.sources.images import check_side
from ali_dist.data.sources.registry import SOURCES, SourceOption, parse_names
from ali_dist.errors import InputError, exit_code
from ali_dist.launchers.signals import stop_at_once
from ali_dist.process_end import run_to_the_end
from ali_dist.report.terminal import show_progress_bars
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from ali_dist.storage.local import LocalStore

_MAX_LISTED_PROBLEMS = 10
_MAX_RAW_SIZE = 64  # pixels of a side up to which images are stored raw by default; larger ones are compressed

_ONLY = SourceOption(
    keyword="only",
    value_type=parse_names,
    metavar="A,B",
    help="keep the samples of these classes only, such as the normal ones for anomalies",
)
_WRITE_OPTIONS = (
    SourceOption(
        keyword="encoding",
        choices=("raw", "png", "jpg"),
        help="how images are stored (default raw, above 64x64 png)",
    ),
    SourceOption(keyword="shard_mb", flag="--shard-mb", value_type=float, help="megabytes of a shard (default 32)"),
    SourceOption(keyword="jobs", value_type=int, help="processes at work (default: one for each core)"),
    SourceOption(
        keyword="skip_bad",
        flag="--skip-bad",
        value_type=None,
        help="leave out, count and list images that cannot be read; of tars, all samples that do not fit",
    ),
)
"""How splits are written, from whatever source; the keywords are those of `WriteOptions`."""


_EXAMPLES = """\
examples:
  python -m ali_dist.prepare folder data/mine --from PICTURES --size 64
  python -m ali_dist.prepare cifar10 s3://bucket/cifar10 --from FOLDER --verify
  python -m ali_dist.prepare webdataset s3://bucket/my-images
  python -m ali_dist.prepare webdataset-import 'https://host/{000..009}.tar' data/mine --size 64"""
_OWN_IMAGES = ("folder", "parquet", "npz", WEBDATASET, IMPORT)
"""Sources of data that no preset knows."""


def _options_by_source() -> dict[str, tuple[SourceOption, ...]]:
    written = {name: source.options for name, source in SOURCES.items()}
    return {**written, **{name: source.options for name, source in TAR_SOURCES.items()}}


def _list_options() -> dict[str, tuple[SourceOption, str]]:
    """Every option by keyword, with its help: what it means, and for which sources if not for all."""
    meanings: dict[str, dict[str, list[str]]] = {}
    options: dict[str, SourceOption] = {}
    for name, own_options in _options_by_source().items():
        for option in own_options:
            known = options.setdefault(option.keyword, option)
            if known.choices != option.choices:  # each source checks its own
                options[option.keyword] = dataclasses.replace(known, choices=(), metavar="WHAT")
            meanings.setdefault(option.keyword, {}).setdefault(option.help, []).append(name)
    described = {
        keyword: (option, "; ".join(f"{', '.join(names)}: {text}" for text, names in meanings[keyword].items()))
        for keyword, option in options.items()
    }
    return {**described, **{option.keyword: (option, option.help) for option in (_ONLY, *_WRITE_OPTIONS)}}


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    summaries = {
        **{name: source.summary for name, source in SOURCES.items()},
        **{name: source.summary for name, source in TAR_SOURCES.items()},
    }
    sources = "\n".join(f"  {name:<18}{summary}" for name, summary in summaries.items())
    parser = CommandParser(
        "ali_dist.prepare",
        "Write a data set as WebDataset shards with an index, or index shards that are there.\n"
        "Repeating a command does nothing where its data is complete, and goes on where it was stopped.",
        f"sources:\n{sources}\n\n{_EXAMPLES}",
    )
    parser.add_argument("source", metavar="SOURCE", help="see below")
    parser.suggestions["source"] = list(summaries)
    parser.add_argument(
        "places",
        metavar="OUT",
        nargs="+",
        help=f"folder or s3://bucket/prefix; {IMPORT} takes the tars before it: files, folders, patterns or http(s) "
        "urls, with lists like {000..009}, several joined by ::",
    )
    for keyword, (option, text) in _list_options().items():
        if option.value_type is None:
            parser.add_argument(option.command_flag, dest=keyword, action="store_true", default=None, help=text)
        else:
            parser.add_argument(
                option.command_flag,
                dest=keyword,
                type=option.value_type,
                choices=option.choices or None,
                metavar=option.metavar,
                help=text,
            )
    parser.add_argument("--verify", action="store_true", help="after writing, read everything back and check it")
    parser.add_argument("--endpoint-url", help="S3 endpoint; default: AWS_ENDPOINT_URL or AWS")
    parser.add_argument("--anonymous", action="store_true", help="read public buckets without credentials")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input or damaged data, 75 stopped."""
    if_interrupted = "Interrupted; run the same command to go on."
    return exit_code("ali_dist.prepare", lambda: _run_until_stopped(argv), if_interrupted)


def _run_until_stopped(argv: list[str] | None) -> int:
    with stop_at_once("Stopped on request; run the same command to go on.", heeds_ctrl_c=False):
        return _run_command(make_parser().parse_args(argv))


def _run_command(arguments: argparse.Namespace) -> int:
    source = arguments.source
    names = (*SOURCES, *TAR_SOURCES)
    if source not in names:
        hint = did_you_mean(source, names).removesuffix("?")
        raise InputError(f"There is no source {source!r}{hint}; sources: {', '.join(names)}.")
    options = _read_options(arguments)
    *tars, out = _read_places(source, arguments.places)
    if source == WEBDATASET and is_remote(out):
        raise InputError(f"Tars at {show_url(out)} cannot be indexed in place: import them with {IMPORT}.")
    store = open_store(out, endpoint_url=arguments.endpoint_url, anonymous=arguments.anonymous)
    with show_progress_bars() as start_bar:
        if source == WEBDATASET:
            written = _index_tars(store, options, arguments, start_bar)
        elif source == IMPORT:
            written = import_tars(tars[0], store, read_import_options(options), start_bar)
        else:
            written = _write_source(source, store, options, start_bar)
    for name, (split, is_new) in written.items():
        _print_split(name, split, is_new)
    place = options.get("index_place", out)
    for line in _describe_use(arguments, written) or _suggest_training(source, place, written):
        _print_line(line)
    if not arguments.verify:
        return 0
    with show_progress_bars() as start_bar:
        return _verify_splits({name: split for name, (split, _) in written.items()}, start_bar)


def _read_places(source: str, places: list[str]) -> list[str]:
    """The places that were given, if they are as many as the source takes: OUT, and for an import the tars before."""
    expected = ["TARS", "OUT"] if source == IMPORT else ["OUT"]
    if len(places) != len(expected):
        raise InputError(
            f"{source} takes {' and '.join(expected)}, but {len(places)} places are given ({', '.join(places)}): quote "
            f"a pattern or a list, so that the shell leaves it alone."
        )
    return places


def _print_split(name: str, split: Store, is_new: bool) -> None:
    index = load_index(split)
    for line in summary_lines(name, index, split.url, is_new=is_new):
        _print_line(line)
    if skipped := index.extra.get("skipped_samples", []):
        verb = "sample was" if len(skipped) == 1 else "samples were"
        _print_line(f"{name}: {len(skipped)} bad {verb} left out (listed in {split.url}/{INDEX_KEY}):")
        _print_first(skipped)


def _describe_use(arguments: argparse.Namespace, written: WrittenSplits) -> list[str]:
    """Sentences on what training will find hard about the data as a whole."""
    source = SOURCES.get(arguments.source)
    if not written or (source is not None and source.built_in):  # presets know what to do with what is built in
        return []
    index = load_index(next(split for split, _ in written.values()))
    lines = describe_side(index)
    can_hold_out = source is not None and any(option.keyword == "holdout" for option in source.options)
    says_so = source is not None and source.lists_folder  # of folders, which may have splits of their own
    if can_hold_out and not says_so and set(written) == {"train"} and not arguments.splits and arguments.holdout != 0:
        lines.append(
            f"Nothing is held out, because {count(index.num_samples, 'sample is', 'samples are')} too few: nothing can "
            f"be measured on samples that were not seen."
        )
    return lines


def _suggest_training(source: str, out: str, written: WrittenSplits) -> list[str]:
    """The command that trains on somebody's own images, which networks take as they are; else nothing.

    Args:
        source: What was prepared; data that have presets of their own are not meant.
        out: Where the index is.
        written: The splits.
    """
    if not written or source not in _OWN_IMAGES:
        return []
    shape = load_index(next(split for split, _ in written.values())).shape
    if shape not in {(channels, side, side) for channels in (1, 3) for side in NETWORK_SIDES}:
        return []
    return ["Next:", f"  python -m ali_dist.train --preset images --data.url {shlex.quote(out)}"]


def _print_line(line: str) -> None:
    """Print a line on stdout, with escapes for what its encoding lacks; stderr does that by itself."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def _read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by keyword.

    Raises:
        InputError: An option does not apply to the source or has an impossible value, or `--from` is missing.
    """
    name = arguments.source
    source = SOURCES.get(name)
    own_options = _options_by_source()[name]
    options = _list_options()
    given = {keyword: value for keyword in options if (value := getattr(arguments, keyword)) is not None}
    applicable = {option.keyword for option in own_options}
    if source is not None:
        applicable |= {option.keyword for option in (_ONLY, *_WRITE_OPTIONS)}
        if not source.has_images:
            applicable.remove("encoding")
    for keyword in given:
        if keyword not in applicable:
            raise InputError(f"{options[keyword][0].command_flag} does not apply to {name}: leave it out.")
    for option in own_options:
        if option.choices and (value := given.get(option.keyword)) is not None and value not in option.choices:
            hint = did_you_mean(value, option.choices).removesuffix("?")
            raise InputError(
                f"{option.command_flag} is {value!r}, which {name} does not know{hint}; it must be one of "
                f"{', '.join(option.choices)}."
            )
    if source is not None and source.original_files and "path" not in given:
        raise InputError(f"{name} needs --from PATH: {source.original_files}.")
    check_side(given.get("size", 1))
    if not 0 < given.get("shard_mb", 1.0) < math.inf:
        raise InputError(f"--shard-mb is {given['shard_mb']:g}, but must be more than 0.")
    if given.get("jobs", 1) < 1:
        raise InputError(f"--jobs is {given['jobs']}, but must be at least 1.")
    return given


def _write_source(source: str, store: Store, options: dict[str, Any], start_bar: StartTracking) -> WrittenSplits:
    if SOURCES[source].lists_folder:
        _refuse_nested_folders(store, options["path"])
    write_options = {
        "encoding": "raw" if options.get("size", 0) <= _MAX_RAW_SIZE else "png",
        "jobs": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        **{option.keyword: options[option.keyword] for option in _WRITE_OPTIONS if option.keyword in options},
    }
    of_source = {option.keyword for option in SOURCES[source].options}
    splits = SOURCES[source].make_splits(**{key: value for key, value in options.items() if key in of_source})
    if "only" in options:
        splits = (keep_classes(split, options["only"]) for split in splits)
    return write_splits(store, splits, WriteOptions(**write_options), start_bar)


def _refuse_nested_folders(store: Store, path: Path) -> None:
    """Refuse to write into the folder that is read, where the next call would find what this one wrote."""
    if not isinstance(store, LocalStore) or not path.is_dir():
        return
    out, source = store.root.resolve(), path.resolve()
    if out == source or source in out.parents:
        relation = "is" if out == source else "lies in"
    elif out in source.parents:
        relation = "holds"
    else:
        return
    raise InputError(
        f"{store.url} {relation} the folder of images {path}, so that each would be taken for a part of the other: "
        f"choose a folder beside it, such as {source.with_name(source.name + '-prepared')}."
    )


def _index_tars(
    tars: Store, options: dict[str, Any], arguments: argparse.Namespace, start_bar: StartTracking
) -> WrittenSplits:
    access = {"endpoint_url": arguments.endpoint_url, "anonymous": arguments.anonymous}
    out = tars
    if "index_place" in options:  # a place to write to: requests are signed there
        out = open_store(options["index_place"], endpoint_url=arguments.endpoint_url)
    indexed = index_tars(tars, out, read_tar_options(options), start_bar, **access)
    for keys, one, several in (
        (indexed.left_out, "tar belongs to no split and was left out", "tars belong to no split and were left out"),
        (
            indexed.compressed,
            f"compressed tar cannot be read in place and was left out ({IMPORT} reads such)",
            f"compressed tars cannot be read in place and were left out ({IMPORT} reads such)",
        ),
        (indexed.hidden, "hidden file was left out", "hidden files were left out"),
    ):
        if keys:
            _print_line(f"{count(len(keys), one, several)}:")
            _print_first([ascii(key) for key in keys])
    return indexed.written


def _verify_splits(splits: dict[str, Store], start_bar: StartTracking) -> int:
    from ali_dist.data.shards.verify import verify_split

    problems: list[str] = []
    for name, split in splits.items():
        index = load_index(split)
        report = verify_split(split, index, start_bar(name, index.num_samples))
        print(
            f"{name}: {report.num_samples} samples in {count(report.num_shards, 'shard')} checked, "
            f"{count(len(report.problems), 'problem')}"
        )
        problems += report.problems
    _print_first(problems)
    return 2 if problems else 0


def _print_first(lines: list[str]) -> None:
    """Print the first few of what may be many lines on stderr."""
    for line in lines[:_MAX_LISTED_PROBLEMS]:
        print(line, file=sys.stderr)
    if len(lines) > _MAX_LISTED_PROBLEMS:
        print(f"... and {len(lines) - _MAX_LISTED_PROBLEMS} more.", file=sys.stderr)


if __name__ == "__main__":
    run_to_the_end(main)
