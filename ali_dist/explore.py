"""python -m ali_dist.explore: a page on this machine, on which one moves through a model's latent space."""

from __future__ import annotations

import argparse
import errno
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ali_dist.cli import (
    CommandParser,
    device_from_arguments,
    make_run_parser,
    parse_path,
    storage_from_arguments,
    whole_number_type,
)
from ali_dist.errors import InputError, StorageError, exit_code
from ali_dist.launchers.signals import interrupt_on_sigterm
from ali_dist.process_end import run_to_the_end
from ali_dist.report.terminal import show_progress
from ali_dist.storage import open_store

if TYPE_CHECKING:
    import torch

    from ali_dist.exploration.explorer import Explorer
    from ali_dist.exploration.pool import ImagePool
    from ali_dist.exploration.web_runtime import Runtime
    from ali_dist.inference.trained_model import TrainedModel

_IMAGES = 2000
_DESCRIPTION = """\
Explore a trained model of images in the browser: sliders along the principal components of z, and along what classes or
attributes add to it; your own pictures, reconstructed; walks from one picture to another; and the nearest images of the
data. Nothing but the page of --static is written.

The page is served on 127.0.0.1 alone, to whoever has the address that is printed. The model is on the CPU unless
--device says otherwise. RUN may be an exported model, too. Ctrl-C ends it.

With --static, the page is one file instead, which computes in the browser and needs no server and no network."""
_EPILOG = """\
examples:
  python -m ali_dist.explore demo
  python -m ali_dist.explore s3://bucket/runs/celeba --images 500 --port 8123
  python -m ali_dist.explore exported --data data/digits --split test
  python -m ali_dist.explore demo --static demo.html   (needs pip install 'ali-dist[onnx]', npm install onnxruntime-web)

from another machine:
  ssh -L 8123:127.0.0.1:8123 HOST, with --port 8123 there; then open the address here"""


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = make_run_parser("explore", _DESCRIPTION, _EPILOG)
    parser.set_defaults(device="cpu")
    data = parser.add_argument_group("images that are encoded")
    data.add_argument("--data", metavar="URL", help="folder or s3:// with shards; default: the run's own")
    data.add_argument("--split", help="default: the holdout split, or the training split where there is none")
    data.add_argument(
        "--images",
        type=whole_number_type(2, 100_000),
        default=_IMAGES,
        help=f"how many, drawn from the whole split (default {_IMAGES})",
    )
    page = parser.add_argument_group("page")
    page.add_argument("--port", type=whole_number_type(1024, 65535), help="default: any free one")
    page.add_argument("--static", metavar="OUT", type=parse_path, help="write the page to this file instead")
    page.add_argument(
        "--runtime",
        metavar="FOLDER",
        type=parse_path,
        help="what --static needs; default: node_modules/onnxruntime-web",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 ended by Ctrl-C or SIGTERM, 1 failed, 2 wrong input.

    It is 130 where it was interrupted before the page was there.
    """
    with interrupt_on_sigterm():
        return exit_code("ali_dist.explore", lambda: _run_command(make_parser().parse_args(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    # Not above: --help and refusals come at once without torch.
    from ali_dist.exploration.explorer import Explorer
    from ali_dist.inference.trained_model import load_model

    runtime = _check_page_options(arguments)
    device = device_from_arguments(arguments)
    model = load_model(
        arguments.run,
        weights=arguments.weights,
        device=device,
        endpoint_url=arguments.endpoint_url,
        anonymous=arguments.anonymous,
    )
    _require_pictures(model)
    if runtime is None:
        pool, problem = _read_images(model, arguments, device)
        _serve(Explorer(model, pool), problem, arguments.port)
        return
    from ali_dist.exploration.static_page import build_static_page, check_model

    check_model(model.run)
    pool, _ = _read_images(model, arguments, device)
    with show_progress("Recording the networks", None):
        content = build_static_page(Explorer(model, pool), runtime)
    _write_page(arguments.static, content)


def _check_page_options(arguments: argparse.Namespace) -> Runtime | None:
    """Refuse options that do not go together and places that cannot be written, before anything is loaded.

    Returns:
        What runs the networks of a page that is written; None for one that is served.
    """
    out: Path | None = arguments.static
    if out is None:
        if arguments.runtime is not None:
            raise InputError("--runtime says what a page without a server carries: give --static OUT.html, too.")
        return None
    if arguments.port is not None:
        raise InputError("--port is for a page that is served, and --static writes one: leave one of them out.")
    if arguments.device == "cuda":
        raise InputError("--device is cuda, but --static records the networks on the CPU: leave one of them out.")
    arguments.device = "cpu"
    _check_place(out)
    from ali_dist.exploration.web_runtime import read_runtime
    from ali_dist.inference.graphs import check_onnx_packages

    check_onnx_packages("--static", "leave it out, and the page is served")
    return read_runtime(arguments.runtime)


def _check_place(out: Path) -> None:
    """Refuse what is no new or old page on a disk."""
    if "://" in str(out) or str(out).startswith("s3:/"):
        raise InputError(f"--static is {str(out)!r}, but a page is written to a disk: give a file there.")
    if out.is_dir():
        raise InputError(f"--static is {str(out)!r}, which is a folder: name a file in it.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--static is {str(out)!r}, but must end in .html, so that browsers take it for a page.")
    if not out.parent.is_dir():
        raise InputError(f"--static is {str(out)!r}, but there is no folder {str(out.parent)!r}: make it first.")


def _write_page(out: Path, content: bytes) -> None:
    """Write the page in one step: who opens it meanwhile never reads half of it."""
    open_store(str(out.parent)).put(out.name, content)
    print(out)
    sys.stderr.write(f"The page has {len(content) / 1e6:.1f} MB: open it in a browser, here or elsewhere.\n")


def _require_pictures(model: TrainedModel) -> None:
    from ali_dist.report.galleries import has_pictures

    spec = model.run.spec
    if not has_pictures(spec):
        what = f"images of {spec.shape[0]} channels" if spec.is_images else f"points of {spec.shape[0]} coordinates"
        raise InputError(
            f"Run {model.name!r} is of {what}, and only images of 1 or 3 channels can be explored: measure it with "
            "`python -m ali_dist.evaluate`, or use ali_dist.load."
        )


def _read_images(
    model: TrainedModel, arguments: argparse.Namespace, device: torch.device
) -> tuple[ImagePool | None, str]:
    """The images of the data, encoded; or None, and why they cannot be read.

    Raises:
        InputError, StorageError: They cannot be read, and were asked for by name.
    """
    from ali_dist.exploration.pool import read_pool
    from ali_dist.inference.samples import open_samples_for, say_resize
    from ali_dist.runs.datasets import holdout_names

    config = model.run.config
    splits = [arguments.split] if arguments.split else [*holdout_names(config.data), config.data.split]
    try:
        split = open_samples_for(model.run, arguments.data, splits, storage_from_arguments(arguments))
        say_resize(model.run, split)
        count = min(arguments.images, split.index.num_samples)
        with show_progress("Encoding images of the data", count) as advance:
            return read_pool(model.run, split, count, device=device, advance=advance), ""
    except (InputError, StorageError) as error:
        if arguments.data or arguments.split:
            raise
        sys.stderr.write(f"Going on without the data: {error}\n")
        return None, str(error)


def _serve(explorer: Explorer, problem: str, port: int | None) -> None:
    from ali_dist.exploration.page import build_page
    from ali_dist.exploration.server import ExplorerServer

    try:
        server = ExplorerServer(explorer, build_page(explorer, problem), port or 0)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise InputError(
            f"--port is {port}, which is taken ({error.strerror}): give another one, or none for any that is free."
        ) from error
    with server:
        try:
            print(f"Open {server.url} in a browser on this machine; Ctrl-C ends it.", flush=True)
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print("Ended.")
            gc.freeze()  # so that Python ends at once: it would look through all of torch's objects first


if __name__ == "__main__":
    run_to_the_end(main)
