"""python -m ali_dist.generate: samples, reconstructions, interpolations and changes of condition as pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ali_dist.cli import device_from_arguments, make_run_parser, storage_from_arguments, whole_number_type
from ali_dist.errors import InputError, exit_code
from ali_dist.inference.conditions import find_attributes, parse_condition
from ali_dist.inference.generation import DEFAULT_COUNTS, GalleryWriter
from ali_dist.inference.load import LoadedRun, load_run
from ali_dist.inference.samples import open_samples_for

_DESCRIPTION = "Draw what a trained model has learnt, as PNG files."
_EPILOG = """\
what:
  samples          G(z), z from the prior; of 2-D mixtures: points as .npy, and a figure
  reconstructions  images of the holdout split beside G(z), z ~ q(z|x)
  interpolations   ways between the latents of two images, which stand at the ends
  attributes       conditional models: the same z along a row, one condition after another

Examples:
  python -m ali_dist.generate digits --what interpolations --spherical
  python -m ali_dist.generate runs/celeba-conditional --what samples --attributes Smiling=1,Male=0 --single"""


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_run_parser("generate", _DESCRIPTION, _EPILOG)
    what = parser.add_argument_group("what")
    what.add_argument("--what", choices=tuple(DEFAULT_COUNTS), default="samples", help="default: samples; see below")
    counts = ", ".join(f"{number} {name}" for name, number in DEFAULT_COUNTS.items())
    what.add_argument(
        "--count", type=whole_number_type(1, 1_000_000), help=f"samples, pairs or rows (default: {counts})"
    )
    what.add_argument("--seed", type=whole_number_type(0, 2**31 - 1), default=0, help="of latents and chosen images")
    what.add_argument("--use-mean", action="store_true", help="z = mu(x) in place of a draw z ~ q(z|x)")
    what.add_argument("--spherical", action="store_true", help="interpolate along great circles, not straight lines")
    what.add_argument(
        "--steps", type=whole_number_type(2, 1000), default=9, help="images of an interpolation (default 9)"
    )
    label = parser.add_argument_group("conditions, for conditional models")
    label.add_argument("--class", dest="of_class", metavar="K", help="name or number of a class")
    label.add_argument("--attributes", metavar="A=1,B=0", help="values of some attributes; others come from the data")
    label.add_argument("--vary", metavar="A,B", help="with --what attributes: those to turn (default: all)")
    data = parser.add_argument_group("images that are encoded")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="default: the holdout split, or the training split where there is none")
    files = parser.add_argument_group("files")
    files.add_argument("--out", metavar="DIR", help="default: generated/ in the run's folder (for s3:// runs, here)")
    files.add_argument("--grid", action="store_true", help="one picture of all (the default)")
    files.add_argument("--single", action="store_true", help="one file for each image, at the data's size")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    return exit_code("ali_dist.generate", lambda: _run_command(_parse_arguments(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    storage, device = storage_from_arguments(arguments), device_from_arguments(arguments)
    saved = load_run(arguments.run, storage, weights=arguments.weights, device=device)
    splits = [arguments.split] if arguments.split else [saved.config.data.holdout, saved.config.data.split]
    album = GalleryWriter(
        saved,
        device,
        parse_condition(saved, arguments.of_class, arguments.attributes),
        lambda: open_samples_for(saved, arguments.data, splits, storage),
        _output_folder(saved, arguments.out),
        grid=arguments.grid or not arguments.single,
        single=arguments.single,
        count=arguments.count or DEFAULT_COUNTS[arguments.what],
        seed=arguments.seed,
    )
    for path in _draw_pictures(album, arguments):
        print(path)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and places that are no folders."""
    applies = {
        "use_mean": ("reconstructions", "interpolations"),
        "spherical": ("interpolations",),
        "vary": ("attributes",),
        "data": ("samples", "reconstructions", "interpolations"),
    }
    for name, kinds in applies.items():
        if getattr(arguments, name) and arguments.what not in kinds:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} applies to --what {' or '.join(kinds)}, not to {arguments.what}: leave it out.")
    if arguments.out and "://" in arguments.out:
        raise InputError(f"--out is {arguments.out!r}, but pictures are written to a folder on a disk: give one.")


def _output_folder(saved: LoadedRun, out: str | None) -> Path:
    if out:
        return Path(out).expanduser()
    local = not saved.store.url.startswith("s3://")
    return Path(saved.store.url) / "generated" if local else Path("generated") / saved.name


def _draw_pictures(album: GalleryWriter, arguments: argparse.Namespace) -> list[Path]:
    if arguments.what == "samples":
        return album.samples()
    if arguments.what == "reconstructions":
        return album.reconstructions(use_mean=arguments.use_mean)
    if arguments.what == "interpolations":
        return album.interpolations(use_mean=arguments.use_mean, spherical=arguments.spherical, steps=arguments.steps)
    vary = find_attributes(album.saved.facts.attributes, arguments.vary) if arguments.vary else None
    return album.attributes(vary)


if __name__ == "__main__":
    sys.exit(main())
