"""python -m ali_dist.encode: features of a whole data set, by a trained encoder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ali_dist.cli import (
    CommandParser,
    device_from_arguments,
    make_run_parser,
    storage_from_arguments,
    whole_number_type,
)
from ali_dist.config.wording import format_count
from ali_dist.errors import InputError, exit_code
from ali_dist.inference.choices import FEATURES
from ali_dist.launchers.signals import interrupt_on_sigterm
from ali_dist.process_end import run_to_the_end
from ali_dist.report.terminal import show_progress

if TYPE_CHECKING:
    from ali_dist.inference.features import FeatureOptions
    from ali_dist.inference.load import LoadedRun
    from ali_dist.runs.datasets import DataSplit

_DESCRIPTION = """\
Encode a data set with a trained encoder: features float32 [samples, F], with labels, ids and, as `origins`, the names
of the samples (their files or keys) where the data have them, in the index's order.

They go into FILE.npz, all at once; into FILE.parquet, shard after shard, with the names of classes; or into a folder,
one .npz for each shard: an interrupted command goes on there when it is repeated, and several processes under torchrun
can share it. Memory holds a few shards at a time."""
_EPILOG = "features:\n" + "\n".join(f"  {name:<10} {text}" for name, text in FEATURES.items())
_EPILOG += """

examples:
  python -m ali_dist.encode demo --out features.npz
  python -m ali_dist.encode demo --split test --out features.parquet
  python -m ali_dist.encode s3://bucket/runs/svhn --features mu+layers --split test --out features"""


# Ends of names that are meant for files, and not for the folder that they would name.
_OTHER_FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".npy", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".feather")


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = make_run_parser("encode", _DESCRIPTION, _EPILOG)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="default: the split the run was trained on")
    what = parser.add_argument_group("what")
    what.add_argument("--features", choices=tuple(FEATURES), default="mu", help="default: mu; see below")
    what.add_argument("--sample", action="store_true", help="a draw z ~ q(z|x) in place of mu")
    what.add_argument("--seed", type=whole_number_type(0, 2**31 - 1), default=0, help="seed of --sample's draws")
    what.add_argument(
        "--out", required=True, metavar="FILE.npz|FILE.parquet|DIR|s3://...", help="where the features go"
    )
    what.add_argument(
        "--workers", type=whole_number_type(1, 64), default=2, help="threads that read and encode (default 2)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    interrupted = "Interrupted; with --out DIR, the same command goes on from here."
    with interrupt_on_sigterm():
        return exit_code("ali_dist.encode", lambda: _run_command(make_parser().parse_args(argv)), interrupted)


def _run_command(arguments: argparse.Namespace) -> None:
    # Not above: --help and refusals come at once without torch.
    from ali_dist.distributed import World
    from ali_dist.inference.feature_writer import SINGLE_FILES, open_feature_writer
    from ali_dist.inference.features import FeatureOptions, encode_shards
    from ali_dist.inference.load import load_run
    from ali_dist.inference.samples import open_samples_for, say_resize

    if arguments.out.lower().endswith(_OTHER_FILES):
        raise InputError(f"--out is {arguments.out!r}: features go into FILE.npz, FILE.parquet or a folder.")
    storage = storage_from_arguments(arguments)
    device = device_from_arguments(arguments)
    world = World.from_torchrun() or World()
    if world.size > 1 and arguments.out.endswith(SINGLE_FILES):
        raise InputError(f"--out is one file, but {world.size} processes would write it: give a folder.")
    run = load_run(arguments.run, storage, weights=arguments.weights, device=device)
    split = open_samples_for(run, arguments.data, [arguments.split or run.config.data.split], storage)
    say_resize(run, split)
    options = FeatureOptions(arguments.features, arguments.sample, arguments.seed)
    with open_feature_writer(arguments.out, split.index, _feature_settings(run, split, options), storage) as writer:
        missing = writer.missing_shards()
        # Ranks share shards by their numbers, not by their places in the list, which changes as other ranks write.
        own_shards = [shard for shard in missing if shard % world.size == world.rank]
        num_shards = sum(shard.samples > 0 for shard in split.index.shards)
        if len(missing) < num_shards:
            written = f"{num_shards - len(missing)} of {format_count(num_shards, 'shard')}"
            sys.stderr.write(f"{written} {'are' if num_shards > 1 else 'is'} there already.\n")
        with show_progress("Encoding", sum(split.index.shards[shard].samples for shard in own_shards)) as advance:
            for encoded in encode_shards(run, split, own_shards, options, device=device, workers=arguments.workers):
                writer.write_shard(encoded)
                advance(len(encoded.features))
        shape = writer.finish()
    if shape is None:
        print(f"Rank {world.rank} encoded {format_count(len(own_shards), 'shard')}; others are still at work.")
    else:
        samples = format_count(shape[0], "sample")
        print(f"{samples} of {split.store.url}: features float32 [{shape[0]}, {shape[1]}] in {writer.url}")


def _feature_settings(run: LoadedRun, split: DataSplit, options: FeatureOptions) -> dict[str, object]:
    """What decides the features, by name; the names are part of the format of `features.json`."""
    return {
        "run": run.name,
        "step": run.metadata.step,
        "images": run.metadata.images_seen,
        "training seconds": run.metadata.seconds,  # tells runs of the same name apart
        "weights": run.weights,
        "data": split.index.fingerprint,
        "features": options.features,
        "sample": options.sample,
        "seed": options.seed if options.sample else None,
    }


if __name__ == "__main__":
    run_to_the_end(main)
