"""Measure everything on this machine: `python -m tests.gpu.check --budget SECONDS --out FOLDER`, or `make gpu`.

Needs a checkout, Python 3.11 or newer and PyTorch with numpy, scikit-learn, safetensors, tensorboard, matplotlib,
pillow, pyyaml, pytest and hypothesis, but no network and no installation. Each part is a process with a time limit of
its own, and FOLDER/results.json is written after every figure. Without a GPU, or with --device cpu, all parts run on
tiny settings, which checks the check.

Exit codes: 0 all that ran succeeded, 1 a part failed or was cut off, 2 wrong arguments.
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

from tests.gpu.check.plan import PARTS, TOO_LITTLE, Part, limit
from tests.gpu.check.running import CUT, FAILED, NOT_BEGUN, Outcome, run_child, write_results
from tests.gpu.check.table import progress_line, table

ROOT = Path(__file__).resolve().parents[3]
FORMAT = 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not TOO_LITTLE < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {TOO_LITTLE:.0f} to 86400")
    return seconds


def _parts(text: str) -> list[Part]:
    known = {part.name: part for part in PARTS}
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of the parts {', '.join(known)}")
    return [part for part in PARTS if part.name in names]


def _parser() -> argparse.ArgumentParser:
    about = "\n".join(f"  {part.name:<9}{part.about}" for part in PARTS)
    parser = _Parser(
        prog="python -m tests.gpu.check",
        description=(__doc__ or "").strip(),
        epilog=f"parts, in order of worth:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=_seconds, default=500.0, help="seconds for everything together (500)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results (gpu-check)")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one"
    )
    parser.add_argument("--parts", type=_parts, default=list(PARTS), metavar="A,B", help="only these parts")
    return parser


def _device(name: str) -> str | None:
    """cuda or cpu; None where a GPU was asked for and there is none."""
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        return None
    return "cpu" if name == "cpu" or not there else "cuda"


def check(
    parts: Sequence[Part], budget: float, device: str, out: Path, began: float, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Run the parts in order and keep results.json up to date; the results.

    Args:
        parts: What to run.
        budget: Seconds for all of it, counted from `began`.
        device: cuda or cpu.
        out: Folder that is there; gets results.json, check.log and pictures.
        began: In seconds of `time.monotonic`.
        stopped: Whether the user has asked for an end.
    """
    results: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "tests.gpu.check", *sys.argv[1:]]),
        "device": device,
        "budget": budget,
        "parts": {},
    }

    def keep(name: str, outcome: Outcome) -> None:
        results["seconds"] = round(time.monotonic() - began, 1)
        results["parts"][name] = dataclasses.asdict(outcome)
        write_results(out / "results.json", results)

    (out / "check.log").write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as work:
        for number, part in enumerate(parts):
            seconds = limit(parts[number:], budget - (time.monotonic() - began))
            outcome = Outcome(NOT_BEGUN, f"only {seconds:.0f} s were left for it", limit=round(seconds, 1))
            if stopped():
                outcome.reason = "stopped on request"
            elif seconds >= TOO_LITTLE:
                print(f"{part.name}: {part.about}, {seconds:.0f} s at most", file=sys.stderr, flush=True)
                outcome = _run(part, seconds, device, out, Path(work), stopped, keep)
            keep(part.name, outcome)
            print(f"{part.name}: {outcome.status} {outcome.reason}".rstrip(), file=sys.stderr, flush=True)
    return results


def _run(
    part: Part,
    seconds: float,
    device: str,
    out: Path,
    work: Path,
    stopped: Callable[[], bool],
    keep: Callable[[str, Outcome], None],
) -> Outcome:
    lines = work / f"{part.name}.jsonl"
    told = 0

    def keep_and_tell(outcome: Outcome) -> None:
        nonlocal told
        keep(part.name, outcome)
        for figure in outcome.figures[told:]:
            if text := progress_line(figure):
                print(f"  {text}", file=sys.stderr, flush=True)
        told = len(outcome.figures)

    command = [sys.executable, "-m", "tests.gpu.check.parts", part.name, "--device", device]
    command += ["--deadline", str(time.monotonic() + seconds), "--lines", str(lines)]
    command += ["--work", str(work), "--out", str(out.resolve())]
    return run_child(command, lines, out / "check.log", seconds, cwd=ROOT, stopped=stopped, keep=keep_and_tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code, see the top."""
    began = time.monotonic()
    options = _parser().parse_args(arguments)
    device = _device(options.device)
    if device is None:
        print("tests.gpu.check: --device is cuda, but torch sees no GPU here: use cpu or auto.", file=sys.stderr)
        return 2
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"tests.gpu.check: --out {options.out} cannot be made ({error.strerror}): name another.", file=sys.stderr)
        return 2
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        results = check(options.parts, options.budget, device, options.out, began, stop.is_set)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(table(results), flush=True)
    return int(any(part["status"] in (FAILED, CUT) for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
