"""Put measured GPU figures into the documentation: `python -m tests.gpu.check.document RESULTS.json DOCUMENT.md`.

The text between the two markers in DOCUMENT.md is replaced, and everything outside of them stays as it is.
Exit codes: 0 if it is done, 2 for wrong arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ali_dist.errors import InputError, exit_code
from tests.gpu.check.table import (
    Results,
    best_exact_row,
    collect_roofs,
    describe_hardware,
    describe_mode,
    describe_versions,
    find_metrics,
    format_metrics,
    format_share_of_roof,
    select_figures,
)
from tests.helpers.documents import replace_marked

MARKER = "gpu figures"


def replace_figures(document: str, results: Results) -> str:
    """Put the figures of `results` between the markers of `document`; returns the new document.

    Raises:
        InputError: The document does not have the two markers once each, in this order.
    """
    return replace_marked(document, MARKER, format_markdown(results), "the figures are")


def format_markdown(results: Results) -> str:
    """Format everything that was measured as Markdown.

    Raises:
        InputError: The results are not of a GPU.
    """
    if results.get("device") != "cuda":
        raise InputError("These results are of a CPU on tiny settings and say nothing: give the results of a GPU.")
    sections = (_format_head, _format_roofs, _format_cells, _format_profiles, _format_loops, _format_quality)
    return "\n".join(line for section in sections for line in section(results)).rstrip()


def _format_head(results: Results) -> Iterator[str]:
    yield f"Measured on {results['date'][:10]} with `{results['command']}`, in {results['seconds']:.0f} s."
    yield ""
    yield f"{describe_hardware(results)}. {describe_versions(results)}."
    yield ""
    outcomes = [figure["outcome"] for figure in select_figures(results, "test")]
    tests = ", ".join(f"{outcomes.count(how)} {how}" for how in ("passed", "failed", "skipped"))
    yield f"GPU tests: {tests}."
    for name, part in results["parts"].items():
        if part["status"] != "ok":
            yield f"The part `{name}`: {part['status']} ({part['reason']})."
    yield ""


def _format_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _format_roofs(results: Results) -> Iterator[str]:
    roofs = collect_roofs(results)
    descriptions = {
        "matmul": ("one large bf16 matrix product", 1e12, "TFLOP/s"),
        "copy": ("copy on the device, bytes read and written", 1e9, "GB/s"),
        "gather": ("gather of 1,024 pictures of 32×32 from a resident data set, likewise", 1e9, "GB/s"),
        "from host": ("copy from pinned host memory", 1e9, "GB/s"),
    }
    rows = [
        (text, f"{roofs[name] / size:,.1f} {unit}")
        for name, (text, size, unit) in descriptions.items()
        if name in roofs
    ]
    yield from _format_rows(("roof of this device", "measured"), rows)


def _format_cells(results: Results) -> Iterator[str]:
    rows = []
    for cell in select_figures(results, "cell"):
        best = best_exact_row(cell)
        name = f"{cell['settings']['preset']}, batch {cell['settings']['batch']}"
        for row in cell["rows"]:
            speed = f"{row['images_per_second']:,.0f}"
            ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
            bold = "**" if row is best else ""
            rows.append(
                (
                    name,
                    f"{cell['conditions']['precision']}, {describe_mode(cell)}",
                    f"{bold}{row['step']}{bold}",
                    f"{bold}{speed}{bold}",
                    f"{row['seconds_per_update'] * 1e3:.2f}",
                    ratio,
                    format_share_of_roof(row, results),
                    peak,
                )
            )
    headings = ("networks", "computed", "update", "images/s", "ms", "against the usual", "of the roof", "memory")
    if rows:
        yield from _format_rows(headings, rows)


def _format_profiles(results: Results) -> Iterator[str]:
    rows = [
        (
            f"{profile['preset']}, batch {profile['batch']}, {profile['precision']}, {profile['step']}",
            *(f"{profile[name] * 1e3:.2f} ms" for name in ("seconds", "busy", "gaps")),
            f"{profile['events']:,.0f}",
            f"{profile['top'][0]['name'][:60]}, {profile['top'][0]['seconds'] / profile['busy']:.0%}".replace("|", "/"),
        )
        for profile in select_figures(results, "profile")
        if profile["top"]
    ]
    if rows:
        yield from _format_rows(
            ("one update", "time", "kernels at work", "gaps", "kernels", "longest kernel, its share"), rows
        )


def _format_loops(results: Results) -> Iterator[str]:
    rows = [
        (
            f"{loop['preset']}, batch {loop['batch']}, {loop['precision']}, {loop['update']}",
            loop["residency"],
            f"{loop['images_per_second']:,.0f}",
            f"{loop['data_wait']:.1%}",
        )
        for loop in select_figures(results, "loop")
    ]
    if rows:
        yield from _format_rows(("whole run on drawn shapes at 32 px", "data in", "images/s", "waiting for data"), rows)


def _format_quality(results: Results) -> Iterator[str]:
    rows = [
        (
            f"{run['preset']} at {run['size']} px, {run['precision']}",
            f"{run['images']:,} of {run['of']:,}",
            f"{run['seconds']:.0f} s",
            "; ".join(format_metrics(find_metrics(run, results))),
        )
        for run in select_figures(results, "quality")
    ]
    if rows:
        yield from _format_rows(("short run", "images", "time", "metrics"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    paths = sys.argv[1:] if arguments is None else list(arguments)

    def update_document() -> None:
        if len(paths) != 2:
            raise InputError("Give two files: RESULTS.json of tests.gpu.check, and the document, docs/performance.md.")
        source, target = map(Path, paths)
        try:
            results = json.loads(source.read_text(encoding="utf-8"))
            document = target.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{source} and {target} cannot both be read ({error}): give RESULTS.json and a document of text."
            ) from error
        target.write_text(replace_figures(document, results), encoding="utf-8")

    return exit_code("tests.gpu.check.document", update_document)


if __name__ == "__main__":
    sys.exit(main())
