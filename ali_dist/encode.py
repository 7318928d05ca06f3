"""python -m ali_dist.encode: features of a whole data set, by a trained encoder."""

from __future__ import annotations

import argparse
import sys

from ali_dist.errors import InputError, exit_code
from ali_dist.training.command_line import device_of, progress, run_parser, storage_of, whole_number
from ali_dist.training.distributed import World
from ali_dist.training.encoding import FEATURES, Options, encode_shards
from ali_dist.training.feature_files import open_feature_files
from ali_dist.training.given_data import open_given
from ali_dist.training.inputs import Part
from ali_dist.training.saved import Saved, open_saved

_DESCRIPTION = """\
Encode a data set with a trained encoder: features float32 [samples, F], with labels and ids, in the index's order.

Into FILE.npz, all at once; or into a folder, one .npz for each shard, which can be interrupted and gone on with, and
which several processes under torchrun can share. Memory holds a few shards at a time."""
_EPILOG = "features:\n" + "\n".join(f"  {name:<10} {text}" for name, text in FEATURES.items())


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = run_parser("encode", _DESCRIPTION, _EPILOG)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="default: the split the run was trained on")
    what = parser.add_argument_group("what")
    what.add_argument("--features", choices=tuple(FEATURES), default="mu", help="default: mu; see below")
    what.add_argument("--sample", action="store_true", help="one z ~ q(z|x) in place of mu")
    what.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0, help="of --sample's draws")
    what.add_argument("--out", required=True, metavar="FILE.npz|DIR|s3://...", help="where features go")
    what.add_argument("--workers", type=whole_number(1, 64), default=2, help="threads that read and encode (default 2)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    interrupted = "Interrupted; with --out DIR, the same command goes on from here."
    return exit_code("ali_dist.encode", lambda: _run(_parse(argv)), interrupted)


def _run(arguments: argparse.Namespace) -> None:
    storage, device, world = storage_of(arguments), device_of(arguments), World.from_torchrun() or World()
    if world.size > 1 and arguments.out.endswith(".npz"):
        raise InputError(f"--out is one file, but {world.size} processes would write it: give a folder.")
    saved = open_saved(arguments.run, storage, weights=arguments.weights, device=device)
    part = open_given(saved, arguments.data, [arguments.split or saved.config.data.split], storage)
    options = Options(arguments.features, arguments.sample, arguments.seed)
    with open_feature_files(arguments.out, part.index, _settings(saved, part, options), storage) as files:
        missing = files.missing()
        # By number, not by place among the missing, of which another rank may have written some by now.
        mine = [shard for shard in missing if shard % world.size == world.rank]
        shards = sum(shard.samples > 0 for shard in part.index.shards)
        if len(missing) < shards:
            sys.stderr.write(f"{shards - len(missing)} of {shards} shards are there already.\n")
        with progress("Encoding", sum(part.index.shards[shard].samples for shard in mine)) as advance:
            for encoded in encode_shards(saved, part, mine, options, device=device, workers=arguments.workers):
                files.put(encoded)
                advance(len(encoded.features))
        shape = files.finish()
    if shape is None:
        print(f"Rank {world.rank} encoded {len(mine)} shards; others are still at work.")
    else:
        print(f"{shape[0]} samples of {part.store.url}: features float32 [{shape[0]}, {shape[1]}] in {files.url}")


def _settings(saved: Saved, part: Part, options: Options) -> dict[str, object]:
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
