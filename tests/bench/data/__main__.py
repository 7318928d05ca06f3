"""How fast samples are read, beside `webdataset`: `python -m tests.bench.data [--quick] [--sides 32,64] [options]`.

For each side, encoding and place (a folder, or an S3 server on loopback in another process), our readers and the usual
pipelines of webdataset read the same files in turns. Images per CPU-second count all threads and child processes of
the reader; ratios are taken within a round. Then: what decoding an image takes, and planning an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ali_dist.cli import parse_comma_list, parse_path, whole_number_type
from ali_dist.data.order import DataOrder
from ali_dist.data.shards.codec import encode_sample, read_image
from ali_dist.errors import InputError, exit_code
from tests.bench.data.readers import STOCK, choose_readers, decode_with_pillow
from tests.bench.data.splits import (
    ENCODINGS,
    PLACES,
    Encoding,
    count_images,
    draw_picture,
    open_split,
    start_server,
    write_split,
)
from tests.bench.data.table import format_markdown, format_text
from tests.bench.data.turns import summarize, take_reading_turns
from tests.bench.step import describe_conditions
from tests.helpers.documents import replace_marked

SIDES = (32, 64, 128)
PARTS = ("read", "decode", "plan")
PLAN_SAMPLES, PLAN_SHARDS, PLAN_LANES = 10_000_000, 1_000, 64


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure_reading(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let readers take turns on every side, encoding and place."""
    rows = []
    with start_server() as server, tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            for encoding in options.encodings:
                case_folder = Path(folder) / f"{encoding}-{side}"
                index = write_split(case_folder, encoding, side, count_images(encoding, side, options.scale))
                for place in options.places:
                    split = open_split(case_folder, index, place, server)
                    turns = take_reading_turns(choose_readers(split, options.epochs), options.rounds, split.server)
                    stored = sum(shard.bytes for shard in index.shards)
                    case = {"side": side, "encoding": encoding, "place": place}
                    rows += summarize(turns, STOCK, **case, samples=index.num_samples, stored_bytes=stored)
                    _say(f"{encoding} {side} px from {place}: done")
    return rows


def measure_decoding(sides: Sequence[int], encodings: Sequence[Encoding], rounds: int) -> list[dict[str, Any]]:
    """Time decoding alone, one image at a time in one thread, in CPU microseconds an image."""
    decoders: dict[str, Callable[[bytes], Any]] = {
        "Pillow": decode_with_pillow,
        "ours": lambda payload: read_image(payload)[0],
    }
    rows = []
    rng = np.random.default_rng(0)
    for side in sides:
        for encoding in (name for name in encodings if name != "raw"):
            payloads = [encode_sample(draw_picture(rng, side), encoding) for _ in range(64)]
            times: dict[str, list[float]] = {name: [] for name in decoders}
            for _ in range(2 * rounds):
                for name, decode in decoders.items():
                    began = time.process_time()
                    for payload in payloads * 3:
                        decode(payload)
                    times[name].append((time.process_time() - began) / (3 * len(payloads)) * 1e6)
            for name, own in times.items():
                speeds = [base / mine for base, mine in zip(times["Pillow"], own, strict=True)]
                rows.append(
                    {
                        "side": side,
                        "encoding": encoding,
                        "decoder": name,
                        "microseconds": median(own),
                        "ratio": median(speeds),
                        "ratio_min": min(speeds),
                        "ratio_max": max(speeds),
                    }
                )
    return rows


def measure_plan(rounds: int) -> dict[str, Any]:
    """Time the plan of one epoch: the windows of every lane with their runs, in CPU milliseconds."""
    order = DataOrder(
        shard_samples=(PLAN_SAMPLES // PLAN_SHARDS,) * PLAN_SHARDS,
        sample_bytes=7_682,
        seed=0,
        lanes=PLAN_LANES,
        global_batch_size=1024,
        window_bytes=32_000_000,
    )
    times = []
    windows = 0
    for epoch in range(max(3, rounds)):
        began = time.process_time()
        windows = sum(len(order.windows(epoch, lane)) for lane in range(order.lanes))
        times.append((time.process_time() - began) * 1e3)
    return {
        "samples": PLAN_SAMPLES,
        "shards": PLAN_SHARDS,
        "lanes": PLAN_LANES,
        "windows": windows,
        "milliseconds": median(times),
        "most_milliseconds": max(times),
    }


def run_bench(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what `options` choose; the result is JSON-able."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    result: dict[str, Any] = {
        "command": options.command,
        "conditions": describe_conditions(torch.device("cpu"), "uint8"),
    }
    if "read" in options.parts:
        result["reading"] = measure_reading(options)
    if "decode" in options.parts:
        result["decoding"] = measure_decoding(options.sides, options.encodings, options.rounds)
    if "plan" in options.parts:
        result["plan"] = measure_plan(options.rounds)
    return {**result, "load": [round(load, 1), round(os.getloadavg()[0], 1)]}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=parse_comma_list, default=PARTS, help=f"some of {','.join(PARTS)} (all)")
    parser.add_argument("--sides", type=parse_comma_list, default=SIDES, help="pixels of a side (32,64,128)")
    parser.add_argument("--encodings", type=parse_comma_list, default=ENCODINGS, help="some of raw,png,jpg (all)")
    parser.add_argument("--places", type=parse_comma_list, default=PLACES, help="folder, http or both (both)")
    parser.add_argument("--rounds", type=whole_number_type(1), default=3, help="turns of every reader (3)")
    parser.add_argument("--epochs", type=whole_number_type(1), default=1, help="epochs in a turn (1)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the images, two rounds")
    parser.add_argument("--json", metavar="FILE", type=parse_path, help="write conditions and all rounds there")
    parser.add_argument("--table", metavar="FILE.md", type=parse_path, help="write tables between its two markers")
    parser.add_argument("--marker", default="data", help="name in the markers '<!-- NAME: begin -->' and end (data)")
    return parser


def _check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"--{option} has {name!r}, but must be some of {', '.join(known)}.")


def _run_command(words: Sequence[str]) -> None:
    options = _make_parser().parse_args(words)
    options.command = " ".join(["python -m tests.bench.data", *words])
    _check_names("parts", options.parts, PARTS)
    _check_names("encodings", options.encodings, ENCODINGS)
    _check_names("places", options.places, PLACES)
    _check_names("sides", [str(side) for side in options.sides], [str(side) for side in SIDES])
    options.sides = [int(side) for side in options.sides]
    options.scale = 1.0
    if options.quick:
        options.scale, options.rounds = 0.25, 2
    document = None if options.table is None else options.table.read_text(encoding="utf-8")
    if document is not None:  # found out before the measurement, not behind it
        replace_marked(document, options.marker, "", "the tables are")
    result = run_bench(options)
    print(format_text(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if document is not None:
        options.table.write_text(
            replace_marked(document, options.marker, format_markdown(result), "the tables are"), encoding="utf-8"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see `ali_dist.errors.exit_code`."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code("tests.bench.data", lambda: _run_command(words), "Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
