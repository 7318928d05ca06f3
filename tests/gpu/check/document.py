"""Put measured GPU figures into the documentation: `python -m tests.gpu.check.document RESULTS.json DOCUMENT.md`.

The text between the two markers in DOCUMENT.md is replaced; what stands outside of them stays as it is.
Exit codes: 0 done, 2 wrong arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ali_dist.errors import InputError, exit_code
from tests.gpu.check.table import (
    Results,
    figures,
    hardware,
    metric_lines,
    metrics_of,
    mode,
    ours,
    roofs,
    share_of_roof,
    versions,
)

BEGIN, END = "<!-- gpu figures: begin -->", "<!-- gpu figures: end -->"


def replace_figures(document: str, results: Results) -> str:
    """`document` with the figures of `results` between its markers.

    Raises:
        InputError: The markers are not there, once each and in this order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after or END in before:
        raise InputError(
            f"The document must have the lines '{BEGIN}' and '{END}' once each, in this order: put them where the "
            "figures are to stand."
        )
    return f"{before}{BEGIN}\n{markdown(results)}\n{END}{after}"


def markdown(results: Results) -> str:
    """All that was measured, as Markdown."""
    if results.get("device") != "cuda":
        raise InputError("These results are of a CPU on tiny settings, which say nothing: give those of a GPU.")
    sections = (_head, _roof, _cells, _profiles, _loops, _quality)
    return "\n".join(line for section in sections for line in section(results)).rstrip()


def _head(results: Results) -> Iterator[str]:
    yield f"Measured on {results['date'][:10]} with `{results['command']}`, in {results['seconds']:.0f} s."
    yield ""
    yield f"{hardware(results)}. {versions(results)}."
    yield ""
    outcomes = [figure["outcome"] for figure in figures(results, "test")]
    tests = ", ".join(f"{outcomes.count(how)} {how}" for how in ("passed", "failed", "skipped"))
    yield f"GPU tests: {tests}."
    for name, part in results["parts"].items():
        if part["status"] != "ok":
            yield f"The part `{name}`: {part['status']} ({part['reason']})."
    yield ""


def _rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _roof(results: Results) -> Iterator[str]:
    found = roofs(results)
    what = {
        "matmul": ("one large bf16 matrix product", 1e12, "TFLOP/s"),
        "copy": ("copy on the device, bytes read and written", 1e9, "GB/s"),
        "gather": ("gather of 1,024 pictures of 32×32 from a resident data set, likewise", 1e9, "GB/s"),
        "from host": ("copy from pinned host memory", 1e9, "GB/s"),
    }
    rows = [(text, f"{found[name] / size:,.1f} {unit}") for name, (text, size, unit) in what.items() if name in found]
    yield from _rows(("roof of this device", "measured"), rows)


def _cells(results: Results) -> Iterator[str]:
    rows = []
    for cell in figures(results, "cell"):
        best = ours(cell)
        name = f"{cell['settings']['preset']}, batch {cell['settings']['batch']}"
        for row in cell["rows"]:
            speed = f"{row['images_per_second']:,.0f}"
            ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
            bold = "**" if row is best else ""
            rows.append(
                (
                    name,
                    f"{cell['conditions']['precision']}, {mode(cell)}",
                    f"{bold}{row['step']}{bold}",
                    f"{bold}{speed}{bold}",
                    f"{row['seconds_per_update'] * 1e3:.2f}",
                    ratio,
                    share_of_roof(row, results),
                    peak,
                )
            )
    headings = ("networks", "computed", "update", "images/s", "ms", "against the usual", "of the roof", "memory")
    if rows:
        yield from _rows(headings, rows)


def _profiles(results: Results) -> Iterator[str]:
    rows = [
        (
            f"{found['preset']}, batch {found['batch']}, {found['precision']}, {found['step']}",
            *(f"{found[what] * 1e3:.2f} ms" for what in ("seconds", "busy", "gaps")),
            f"{found['events']:,.0f}",
            f"{found['top'][0]['name'][:60]}, {found['top'][0]['seconds'] / found['busy']:.0%}".replace("|", "/"),
        )
        for found in figures(results, "profile")
        if found["top"]
    ]
    if rows:
        yield from _rows(
            ("one update", "time", "kernels at work", "gaps", "kernels", "longest kernel, its share"), rows
        )


def _loops(results: Results) -> Iterator[str]:
    rows = [
        (
            f"{loop['preset']}, batch {loop['batch']}, {loop['precision']}, {loop['update']}",
            loop["residency"],
            f"{loop['images_per_second']:,.0f}",
            f"{loop['data_wait']:.1%}",
        )
        for loop in figures(results, "loop")
    ]
    if rows:
        yield from _rows(("whole run on drawn shapes at 32 px", "data in", "images/s", "waiting for data"), rows)


def _quality(results: Results) -> Iterator[str]:
    rows = [
        (
            f"{run['preset']} at {run['size']} px, {run['precision']}",
            f"{run['images']:,} of {run['of']:,}",
            f"{run['seconds']:.0f} s",
            "; ".join(metric_lines(metrics_of(run, results))),
        )
        for run in figures(results, "quality")
    ]
    if rows:
        yield from _rows(("short run", "images", "time", "metrics"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)

    def act() -> None:
        if len(words) != 2:
            raise InputError("give two files: RESULTS.json of tests.gpu.check, and the document, docs/performance.md.")
        source, target = map(Path, words)
        try:
            results = json.loads(source.read_text(encoding="utf-8"))
            document = target.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{source} and {target} cannot both be read ({error}): give two files that are."
            ) from error
        target.write_text(replace_figures(document, results), encoding="utf-8")

    return exit_code("tests.gpu.check.document", act)


if __name__ == "__main__":
    sys.exit(main())
