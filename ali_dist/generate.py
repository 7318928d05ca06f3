"""python -m ali_dist.generate: pictures of samples, reconstructions, interpolations and changes of condition."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ali_dist.cli import (
    CommandParser,
    device_from_arguments,
    make_run_parser,
    storage_from_arguments,
    whole_number_type,
)
from ali_dist.errors import InputError, exit_code
from ali_dist.inference.choices import DEFAULT_COUNTS, DEFAULT_STEPS
from ali_dist.launchers.signals import interrupt_on_sigterm
from ali_dist.process_end import run_to_the_end
from ali_dist.storage import is_local

if TYPE_CHECKING:
    from ali_dist.inference.generation import GalleryWriter
    from ali_dist.inference.load import LoadedRun

_DESCRIPTION = """\
Draw what a trained model has learned, as PNG files. Reconstructions and interpolations need the run's own
data, or those of --data; so do samples where --attributes leaves attributes of a conditional model open.

Beside reconstructions and interpolations, a .json has the ids and names of the images that were encoded, in order (of
an interpolation, two after each other)."""
_EPILOG = """\
what:
  samples          G(z), z from the prior; for 2-D mixtures: points as .npy, and a figure
  reconstructions  images of the holdout split beside G(z), z ~ q(z|x)
  interpolations   paths between the latents of two images, which stand at the ends
  attributes       conditional models: the same z along a row, one condition after another

examples:
  python -m ali_dist.generate digits --what interpolations --spherical
  python -m ali_dist.generate runs/celeba-conditional --what samples --attributes Smiling=1,Male=0 --single"""
_APPLIES_TO = {
    "use_mean": ("reconstructions", "interpolations"),
    "spherical": ("interpolations",),
    "vary": ("attributes",),
    "data": ("samples", "reconstructions", "interpolations"),
}
"""Options that are not for every --what, and those that they are for."""


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = make_run_parser("generate", _DESCRIPTION, _EPILOG)
    what = parser.add_argument_group("what")
    what.add_argument("--what", choices=tuple(DEFAULT_COUNTS), default="samples", help="default: samples; see below")
    counts = ", ".join(f"{number} {name}" for name, number in DEFAULT_COUNTS.items())
    what.add_argument(
        "--count", type=whole_number_type(1, 1_000_000), help=f"samples, pairs or rows (default: {counts})"
    )
    what.add_argument(
        "--seed", type=whole_number_type(0, 2**31 - 1), default=0, help="seed of latents and of the choice of images"
    )
    what.add_argument("--use-mean", action="store_true", help="z = mu(x) in place of a draw z ~ q(z|x)")
    what.add_argument("--spherical", action="store_true", help="interpolate along great circles, not straight lines")
    what.add_argument(
        "--steps",
        type=whole_number_type(2, 1000),
        default=DEFAULT_STEPS,
        help=f"decoded images of an interpolation (default {DEFAULT_STEPS}, as in the paper)",
    )
    condition = parser.add_argument_group("conditions, for conditional models")
    condition.add_argument("--class", dest="class_text", metavar="K", help="name or number of a class")
    condition.add_argument(
        "--attributes", metavar="A=1,B=0", help="values of some attributes; others come from the data"
    )
    condition.add_argument("--vary", metavar="A,B", help="with --what attributes: those to turn over (default: all)")
    data = parser.add_argument_group("images that are encoded")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="default: the holdout split, or the training split where there is none")
    files = parser.add_argument_group("files")
    files.add_argument("--out", metavar="DIR", help="default: generated/ in the run's folder (for s3:// runs, here)")
    files.add_argument("--grid", action="store_true", help="one picture of all (the default)")
    files.add_argument("--single", action="store_true", help="one file for each image, at the data's size")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    with interrupt_on_sigterm():
        return exit_code("ali_dist.generate", lambda: _run_command(make_parser().parse_args(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    # Not above: --help and refusals come at once without torch.
    from ali_dist.inference.conditions import parse_condition
    from ali_dist.inference.generation import GalleryWriter
    from ali_dist.inference.load import load_run
    from ali_dist.inference.samples import open_samples_for
    from ali_dist.runs.datasets import holdout_names

    storage = storage_from_arguments(arguments)
    device = device_from_arguments(arguments)
    run = load_run(arguments.run, storage, weights=arguments.weights, device=device)
    splits = [arguments.split] if arguments.split else [*holdout_names(run.config.data), run.config.data.split]
    writer = GalleryWriter(
        run,
        device,
        condition=parse_condition(run, arguments.class_text, arguments.attributes),
        open_data=lambda: open_samples_for(run, arguments.data, splits, storage),
        folder=_output_folder(run, arguments.out),
        as_picture=arguments.grid or not arguments.single,
        as_files=arguments.single,
        count=arguments.count or DEFAULT_COUNTS[arguments.what],
        seed=arguments.seed,
        may_be_fewer=arguments.count is None,
    )
    for path in _write_gallery(writer, arguments):
        print(path)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and an output that is no folder on a disk."""
    for name, kinds in _APPLIES_TO.items():
        if getattr(arguments, name) and arguments.what not in kinds:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} applies to --what {' or '.join(kinds)}, not to {arguments.what}: leave it out.")
    if arguments.out and not is_local(arguments.out):
        raise InputError(f"--out is {arguments.out!r}, but pictures are written to a folder on a disk: give one.")


def _output_folder(run: LoadedRun, out: str | None) -> Path:
    """The folder that was named; else one in the run's folder or, where that is in S3, in the current one."""
    if out:
        return Path(out).expanduser()
    return Path(run.store.url) / "generated" if is_local(run.store.url) else Path("generated") / run.name


def _write_gallery(writer: GalleryWriter, arguments: argparse.Namespace) -> list[Path]:
    if arguments.what == "samples":
        return writer.write_samples()
    if arguments.what == "reconstructions":
        return writer.write_reconstructions(use_mean=arguments.use_mean)
    if arguments.what == "interpolations":
        return writer.write_interpolations(
            use_mean=arguments.use_mean, spherical=arguments.spherical, steps=arguments.steps
        )
    from ali_dist.inference.conditions import find_attributes

    places = find_attributes(writer.run.spec.attributes, arguments.vary) if arguments.vary else None
    return writer.write_conditions(places)


if __name__ == "__main__":
    run_to_the_end(main)
