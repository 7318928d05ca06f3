"""python -m ali_dist.export: a trained model as a folder that can be taken away."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali_dist.cli import CommandParser, add_storage_options, parse_path, storage_from_arguments
from ali_dist.errors import InputError, exit_code
from ali_dist.inference.choices import GRAPH_SUFFIXES
from ali_dist.launchers.signals import interrupt_on_sigterm
from ali_dist.process_end import run_to_the_end

if TYPE_CHECKING:
    from ali_dist.inference.load import LoadedRun

CARD = "README.md"
_DESCRIPTION = """\
Export a trained encoder and decoder as a folder in the layout of the Hugging Face Hub: weights as safetensors,
config.json, preprocessing, and a model card with the data's fingerprint and the metrics. `ali_dist.load` opens it
without the run. The folder names no place of this machine. With --push it is uploaded to the Hub, too."""
_EPILOG = """\
formats:
  safetensors  the weights alone, for ali_dist.load
  torch        also encoder.pt2 and decoder.pt2, which torch.export.load opens without ali_dist
  onnx         also encoder.onnx and decoder.onnx; needs pip install 'ali-dist[onnx]'

examples:
  python -m ali_dist.export runs/demo exported --format torch
  python -m ali_dist.export runs/demo exported --push me/digits   (needs pip install 'ali-dist[hub]')"""


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("ali_dist.export", _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "run", metavar="RUN", help="run folder, a checkpoint in one, or a name under runs/; or s3://..."
    )
    parser.add_argument("out", metavar="OUT", type=parse_path, help="folder on a disk; an older export is replaced")
    parser.add_argument(
        "--format",
        choices=("safetensors", *GRAPH_SUFFIXES),
        default="safetensors",
        help="default: safetensors; see below",
    )
    parser.add_argument("--discriminator", action="store_true", help="export the discriminator's weights, too")
    parser.add_argument(
        "--license", metavar="NAME", default="unknown", help="license of the weights, for the card (unknown)"
    )
    parser.add_argument(
        "--weights", choices=("auto", "ema", "raw"), default="auto", help="auto: the average (ema) if the run has one"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the Hub, made if need be")
    parser.add_argument("--public", action="store_true", help="let a repository that --push makes be public (private)")
    add_storage_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 storage failed, 2 wrong input, 130 interrupted."""
    with interrupt_on_sigterm():
        return exit_code("ali_dist.export", lambda: _run_command(make_parser().parse_args(argv)))


def _run_command(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    # Not above: --help comes at once without torch.
    from ali_dist.inference.graphs import check_format
    from ali_dist.inference.hub import check_push, push_export
    from ali_dist.inference.load import load_run

    _check_place(out)
    if arguments.push is not None:
        check_push(arguments.push)
    elif arguments.public:
        raise InputError("--public says what --push makes: give --push OWNER/NAME, too.")
    run = load_run(arguments.run, storage_from_arguments(arguments), weights=arguments.weights)
    if arguments.format != "safetensors":
        check_format(run, arguments.format)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        names = _write_files(Path(scratch), run, arguments)
        _move_into_place(Path(scratch), out, names)
    for name in names:
        print(out / name)
    if arguments.push is not None:
        message = f"Export of {run.name} after {run.metadata.images_seen:,} images"
        print(push_export(out, arguments.push, names, message=message, is_public=arguments.public))
    sys.stderr.write(f"Next, in Python:\n  model = ali_dist.load({str(out)!r}); images = model.sample(16)\n")


def _check_place(out: Path) -> None:
    """Refuse a folder that holds something else, and what is no folder of this machine."""
    if "://" in str(out) or str(out).startswith("s3:/"):
        raise InputError(f"OUT is {str(out)!r}, but a model is exported to a folder on a disk: give one.")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _is_export(out)):
        raise InputError(f"OUT is {str(out)!r}, which holds something else than an exported model: give a new folder.")


def _is_export(folder: Path) -> bool:
    from ali_dist.inference.exported import CONFIG

    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type") == "ali_dist")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _write_files(folder: Path, run: LoadedRun, arguments: argparse.Namespace) -> list[str]:
    from ali_dist.inference.exported import write_export
    from ali_dist.inference.graphs import check_difference, write_graphs
    from ali_dist.inference.model_card import write_card

    metrics, split = _read_metrics(run)
    names = write_export(folder, run, metrics, with_discriminator=arguments.discriminator)
    difference = None
    if arguments.format != "safetensors":
        graphs, difference = write_graphs(folder, run, arguments.format)
        check_difference(run, arguments.format, difference, "export safetensors")
        names += graphs
    card = write_card(run, metrics, split=split, license_name=arguments.license, files=names, difference=difference)
    (folder / CARD).write_text(card, encoding="utf-8")
    return [CARD, *names]


def _move_into_place(scratch: Path, out: Path, names: list[str]) -> None:
    """Put the files where they belong; graphs of an older export go, because they are of other weights."""
    out.mkdir(exist_ok=True)
    for suffix in GRAPH_SUFFIXES.values():
        for name in ("encoder", "decoder"):
            (out / f"{name}{suffix}").unlink(missing_ok=True)
    for name in names:
        os.replace(scratch / name, out / name)


def _read_metrics(run: LoadedRun) -> tuple[Mapping[str, float], str]:
    """The metrics of the exported weights, and the split that they are of: from the run's summary, if it is theirs."""
    if run.store.stat("summary.json") is not None:
        try:
            summary: dict[str, Any] = json.loads(run.store.get("summary.json"))
            is_of_these = summary["images"] == run.metadata.images_seen and summary["weights"] == run.weights
            if is_of_these and summary.get("metrics"):
                report = (summary.get("evaluation") or {}).get("report") or {}
                return {key: float(value) for key, value in summary["metrics"].items()}, str(report.get("split", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sys.stderr.write(f"summary.json in {run.store.url} is damaged, so the card has no metrics of it.\n")
    return run.metadata.metrics, run.metadata.metrics_split


if __name__ == "__main__":
    run_to_the_end(main)
