"""python -m ali_dist.encode: features of a whole data set, by a trained encoder."""

from __future__ import annotations

import argparse
import sys

from ali_dist.cli import device_from_arguments, make_run_parser, storage_from_arguments, whole_number_type
from ali_dist.distributed import World
from ali_dist.errors import InputError, exit_code
from ali_dist.inference.feature_writer import open_feature_writer
from ali_dist.inference.features import FEATURES, FeatureOptions, encode_shards
from ali_dist.inference.load import LoadedRun, load_run
from ali_dist.inference.samples import open_samples_for
from ali_dist.report.terminal import show_progress
from ali_dist.runs.datasets import DataSplit

_DESCRIPTION = """\
Encode a data set with a trained encoder: features float32 [samples, F], with labels and ids, in the index's order.

Into FILE.npz, all at once; or into a folder, one .npz for each shard, which can be interrupted and gone on with, and
which several processes under torchrun can share. Memory holds a few shards at a time."""
_EPILOG = "features:\n" + "\n".join(f"  {name:<10} {text}" for name, text in FEATURES.items())


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_run_parser("encode", _DESCRIPTION, _EPILOG)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="default: the split the run was trained on")
    what = parser.add_argument_group("what")
    what.add_argument("--features", choices=tuple(FEATURES), default="mu", help="default: mu; see below")
    what.add_argument("--sample", action="store_true", help="one z ~ q(z|x) in place of mu")
    what.add_argument("--seed", type=whole_number_type(0, 2**31 - 1), default=0, help="of --sample's draws")
    what.add_argument("--out", required=True, metavar="FILE.npz|DIR|s3://...", help="where features go")
    what.add_argument(
        "--workers", type=whole_number_type(1, 64), default=2, help="threads that read and encode (default 2)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    interrupted = "Interrupted; with --out DIR, the same command goes on from here."
    return exit_code("ali_dist.encode", lambda: _run_command(_parse_arguments(argv)), interrupted)


def _run_command(arguments: argparse.Namespace) -> None:
    storage, device, world = (
        storage_from_arguments(arguments),
        device_from_arguments(arguments),
        World.from_torchrun() or World(),
    )
    if world.size > 1 and arguments.out.endswith(".npz"):
        raise InputError(f"--out is one file, but {world.size} processes would write it: give a folder.")
    saved = load_run(arguments.run, storage, weights=arguments.weights, device=device)
    part = open_samples_for(saved, arguments.data, [arguments.split or saved.config.data.split], storage)
    options = FeatureOptions(arguments.features, arguments.sample, arguments.seed)
    with open_feature_writer(arguments.out, part.index, _feature_settings(saved, part, options), storage) as files:
        missing = files.missing()
        # By number, not by place among the missing, of which another rank may have written some by now.
        mine = [shard for shard in missing if shard % world.size == world.rank]
        shards = sum(shard.samples > 0 for shard in part.index.shards)
        if len(missing) < shards:
            sys.stderr.write(f"{shards - len(missing)} of {shards} shards are there already.\n")
        with show_progress("Encoding", sum(part.index.shards[shard].samples for shard in mine)) as advance:
            for encoded in encode_shards(saved, part, mine, options, device=device, workers=arguments.workers):
                files.put(encoded)
                advance(len(encoded.features))
        shape = files.finish()
    if shape is None:
        print(f"Rank {world.rank} encoded {len(mine)} shards; others are still at work.")
    else:
        print(f"{shape[0]} samples of {part.store.url}: features float32 [{shape[0]}, {shape[1]}] in {files.url}")


def _feature_settings(saved: LoadedRun, part: DataSplit, options: FeatureOptions) -> dict[str, object]:
    """What decides the features, by name."""
    return {
        "run": saved.name,
        "step": saved.state.step,
        "images": saved.state.images_seen,
        "training seconds": saved.state.seconds,  # tells runs of the same name apart
        "weights": saved.weights,
        "data": part.index.fingerprint,
        "features": options.features,
        "sample": options.sample,
        "seed": options.seed if options.sample else None,
    }


if __name__ == "__main__":
    sys.exit(main())
