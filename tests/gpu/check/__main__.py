"""Measure everything on this machine: `python -m tests.gpu.check --budget SECONDS --out FOLDER`, or `make gpu`.

It needs a checkout, Python 3.11 or newer and PyTorch with numpy, scikit-learn, safetensors, tensorboard, matplotlib,
pillow, pyyaml, pytest and hypothesis, but no network and no installation. Each part is a process with a time limit of
its own, and FOLDER/results.json is written after every figure. Without a GPU, or with --device cpu, all parts run on
tiny settings, which tests the check itself.

Exit codes: 0 if all parts that ran succeeded, 1 if a part failed or was cut off, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.gpu.check.plan import LEAST_USEFUL_SECONDS, PARTS, Part, allot_seconds
from tests.gpu.check.running import CUT_OFF, FAILED, NOT_BEGUN, PartOutcome, run_child, write_results
from tests.gpu.check.table import format_progress, format_table

ROOT = Path(__file__).resolve().parents[3]
RESULTS_FORMAT = 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not LEAST_USEFUL_SECONDS < seconds <= 86_400:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {LEAST_USEFUL_SECONDS:.0f} to 86400"
        )
    return seconds


def _parse_parts(text: str) -> list[Part]:
    known = {part.name: part for part in PARTS}
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of the parts {', '.join(known)}")
    return [part for part in PARTS if part.name in names]


def _make_parser() -> argparse.ArgumentParser:
    about = "\n".join(f"  {part.name:<9}{part.description}" for part in PARTS)
    parser = _Parser(
        prog="python -m tests.gpu.check",
        description=(__doc__ or "").strip(),
        epilog=f"parts, in order of worth:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=_parse_seconds, default=500.0, help="seconds for everything together (500)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results (gpu-check)")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one"
    )
    parser.add_argument("--parts", type=_parse_parts, default=list(PARTS), metavar="A,B", help="only these parts")
    return parser


def _choose_device(name: str) -> str | None:
    """Choose between cuda and cpu; returns None where the user names a GPU and there is none."""
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        return None
    return "cuda" if has_gpu and name != "cpu" else "cpu"


def run_check(
    parts: Sequence[Part], budget: float, device: str, out: Path, began: float, stop_requested: Callable[[], bool]
) -> dict[str, Any]:
    """Run the parts in order and keep results.json up to date.

    Args:
        parts: What to run.
        budget: Seconds for all parts together, counted from `began`.
        device: cuda or cpu.
        out: An existing folder, which gets results.json, check.log and pictures.
        began: In seconds of `time.monotonic`.
        stop_requested: Whether the user has asked the check to stop.

    Returns:
        The results, as results.json has them.
    """
    results: dict[str, Any] = {
        "format": RESULTS_FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _describe_command(sys.argv[1:]),
        "device": device,
        "budget": budget,
        "parts": {},
    }

    def save_outcome(name: str, outcome: PartOutcome) -> None:
        results["seconds"] = round(time.monotonic() - began, 1)
        results["parts"][name] = dataclasses.asdict(outcome)
        write_results(out / "results.json", results)

    (out / "check.log").write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as work:
        for number, part in enumerate(parts):
            seconds = allot_seconds(parts[number:], budget - (time.monotonic() - began))
            outcome = PartOutcome(NOT_BEGUN, f"only {seconds:.0f} s were left for it", limit=round(seconds, 1))
            if stop_requested():
                outcome.reason = "stopped on request"
            elif seconds >= LEAST_USEFUL_SECONDS:
                print(f"{part.name}: {part.description}, {seconds:.0f} s at most", file=sys.stderr, flush=True)
                outcome = _run_part(part, seconds, device, out, Path(work), stop_requested, save_outcome)
            save_outcome(part.name, outcome)
            print(f"{part.name}: {outcome.status} {outcome.reason}".rstrip(), file=sys.stderr, flush=True)
    return results


def _describe_command(words: Sequence[str]) -> str:
    """The command as others can run it: without the folder of the results, which is a path of this machine."""
    told = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before != "--out" and word.partition("=")[0] != "--out"
    ]
    return shlex.join(["python", "-m", "tests.gpu.check", *told])


def _run_part(
    part: Part,
    seconds: float,
    device: str,
    out: Path,
    work: Path,
    stop_requested: Callable[[], bool],
    save_outcome: Callable[[str, PartOutcome], None],
) -> PartOutcome:
    """Run one part for `seconds` at most; save its outcome and print its progress whenever it has new figures."""
    figure_file = work / f"{part.name}.jsonl"
    printed = 0

    def save_and_print(outcome: PartOutcome) -> None:
        nonlocal printed
        save_outcome(part.name, outcome)
        for figure in outcome.figures[printed:]:
            if text := format_progress(figure):
                print(f"  {text}", file=sys.stderr, flush=True)
        printed = len(outcome.figures)

    command = [sys.executable, "-m", "tests.gpu.check.parts", part.name, "--device", device]
    command += ["--deadline", str(time.monotonic() + seconds), "--figures", str(figure_file)]
    command += ["--work", str(work), "--out", str(out.resolve())]
    return run_child(
        command,
        figure_file,
        out / "check.log",
        seconds,
        cwd=ROOT,
        stop_requested=stop_requested,
        on_new_figures=save_and_print,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see the top of the module."""
    began = time.monotonic()
    options = _make_parser().parse_args(arguments)
    device = _choose_device(options.device)
    if device is None:
        print("tests.gpu.check: --device is cuda, but torch sees no GPU here: use cpu or auto.", file=sys.stderr)
        return 2
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"tests.gpu.check: --out {options.out} cannot be made ({error.strerror}): name another folder.",
            file=sys.stderr,
        )
        return 2
    stop_event = threading.Event()

    def handle_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop_event.set()

    handlers = {number: signal.signal(number, handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        results = run_check(options.parts, options.budget, device, options.out, began, stop_event.is_set)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(format_table(results), flush=True)
    return int(any(part["status"] in (FAILED, CUT_OFF) for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
