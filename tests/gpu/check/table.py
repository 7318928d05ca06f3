"""Results as text: at most 100 lines that fit a terminal. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Figure = dict[str, Any]
Results = dict[str, Any]

MOST_LINES = 100
MOST_NAMES = 8  # of failed tests, and of what was not begun
MOST_KERNELS = 15
MOST_COLUMNS = 118


def select_figures(results: Results, kind: str) -> list[Figure]:
    """Select all figures of one kind, in the order in which they were measured."""
    return [f for part in results["parts"].values() for f in part["figures"] if f["kind"] == kind]


def find_machine(results: Results) -> Figure:
    """Find the figure that describes hardware and versions; empty where no part got so far."""
    return next(iter(select_figures(results, "machine")), {})


def describe_hardware(results: Results) -> str:
    """Describe the device in words."""
    machine = find_machine(results)
    if not machine:
        return f"device {results['device']}"
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    if "gpu" not in machine:
        return cpu
    return f"{machine['gpu']}, {machine['gpu_memory'] / 2**30:.0f} GiB; {cpu}"


def describe_versions(results: Results) -> str:
    """Describe the software in words; what is not known is left out."""
    machine = find_machine(results)
    names = ("torch", "CUDA", "cuDNN", "NCCL", "driver", "Python", "revision")
    return ", ".join(f"{name} {machine[name.lower()]}" for name in names if machine.get(name.lower()) is not None)


def collect_roofs(results: Results) -> dict[str, float]:
    """Collect the measured limits: `matmul` in operations a second; `copy`, `gather`, `from host` in bytes a second."""
    roofs = {
        f["kind"]: f["bytes_per_second"]
        for kind in ("copy", "gather", "from host")
        for f in select_figures(results, kind)
    }
    for product in select_figures(results, "matmul"):
        roofs["matmul"] = product["flops"]
    return roofs


def format_share_of_roof(row: Figure, results: Results) -> str:
    """Format the share of the matrix product's rate that a step reaches; a dash where one of the two is unknown."""
    roof = collect_roofs(results).get("matmul")
    operations = row.get("flops_per_image")
    if not roof or not operations:
        return "-"
    return f"{operations * row['images_per_second'] / roof:.1%}"


def best_exact_row(cell: Figure) -> Figure | None:
    """The row of the cheapest exact rule of a cell, which a run would take: the first after the usual steps."""
    rows = [row for row in cell["rows"] if not row["step"].startswith("usual")]
    return rows[0] if rows else None


def describe_mode(cell: Figure) -> str:
    """Say whether the networks of the cell are eager or compiled."""
    return "compiled" if cell["settings"]["compile"] else "eager"


def format_table(results: Results) -> str:
    """Format what a reader wants to see first, in `MOST_LINES` lines of `MOST_COLUMNS` columns at most."""
    lines = [*_format_head(results), *_format_parts(results)]
    for section in (_format_tests, _format_roofs, _format_cells, _format_loops, _format_quality, _format_profiles):
        body = list(section(results))
        if body:
            lines += ["", *body]
    if len(lines) > MOST_LINES:
        lines = [
            *lines[: MOST_LINES - 1],
            f"({len(lines) - MOST_LINES + 1} more lines: all figures are in results.json)",
        ]
    return "\n".join(line[:MOST_COLUMNS].rstrip() for line in lines)


def format_progress(figure: Figure) -> str:
    """Format a figure as a line of progress; empty for a figure that says little by itself."""
    if figure["kind"] == "cell":
        speeds = (f"{row['step']} {row['images_per_second']:,.0f} img/s" for row in figure["rows"])
        return "; ".join(speeds)[:MOST_COLUMNS]
    if figure["kind"] == "loop":
        return f"{figure['preset']} {figure['asked']}: {figure['images_per_second']:,.0f} img/s"
    if figure["kind"] == "failure":
        return f"{figure['what']} failed: {figure['why']}"
    if figure["kind"] == "not begun":
        return f"{figure['what']}: not begun, it needs about {figure['needs']} s and {figure['left']} s were left"
    return ""


def _format_head(results: Results) -> Iterator[str]:
    yield f"ali_dist on {describe_hardware(results)}"
    seconds = f"{results.get('seconds', 0):.0f} of {results['budget']:.0f} s"
    yield f"{describe_versions(results)}; {results['date'][:10]}; {seconds}"
    if results["device"] == "cpu":
        yield "Tiny settings on a CPU: this shows that the check works, and says nothing about speed or quality."
    yield ""


def _format_parts(results: Results) -> Iterator[str]:
    yield f"{'part':<9}{'':<11}{'s':>6}{'limit':>7}"
    for name, part in results["parts"].items():
        yield f"{name:<9}{part['status']:<11}{part['seconds']:>6.0f}{part['limit']:>7.0f}  {part['reason']}"
    missed = select_figures(results, "not begun")
    if missed:
        named = ", ".join(figure["what"] for figure in missed[:MOST_NAMES])
        yield f"Not begun for want of time: {named}{_format_more(missed)}."


def _format_more(items: Sequence[object]) -> str:
    return f" and {len(items) - MOST_NAMES} more" if len(items) > MOST_NAMES else ""


def _format_tests(results: Results) -> Iterator[str]:
    tests = select_figures(results, "test")
    if not tests:
        return
    counts = Counter(test["outcome"] for test in tests)
    collected = sum(figure["tests"] for figure in select_figures(results, "collected"))
    yield f"Tests: {', '.join(f'{counts[how]} {how}' for how in ('passed', 'failed', 'skipped'))} of {collected}"
    failed = [test for test in tests if test["outcome"] == "failed"]
    for test in failed[:MOST_NAMES]:
        yield f"  failed: {test['name'].rpartition('::')[2]}: {test['reason']}"
    if len(failed) > MOST_NAMES:
        yield f"  {_format_more(failed).strip()}"
    reasons = Counter(test["reason"] for test in tests if test["outcome"] == "skipped")
    for reason, count in reasons.most_common(3):
        yield f"  skipped {count}: {reason}"


def _format_roofs(results: Results) -> Iterator[str]:
    roofs = collect_roofs(results)
    if "matmul" in roofs:
        side = select_figures(results, "matmul")[0]["side"]
        yield f"Roof: bf16 product of {side} x {side} matrices {_format_rate(roofs['matmul'], 'FLOP/s')}"
    for name, text in (
        ("copy", "copy on the device"),
        ("gather", "gather of a batch"),
        ("from host", "copy from host"),
    ):
        if name in roofs:
            share = f" ({roofs[name] / roofs['copy']:.1%} of the copy)" if name == "gather" and "copy" in roofs else ""
            yield f"      {text} {_format_rate(roofs[name], 'B/s')}{share}"


def _format_rate(value: float, unit: str) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.1f} {prefix}{unit}"
    return f"{value:,.0f} {unit}"


def _format_cells(results: Results) -> Iterator[str]:
    cells = select_figures(results, "cell")
    if not cells:
        return
    yield "Update: images/s of the usual style and of our exact way, its share of the roof, and ratios to the usual"
    yield (
        f"{'preset':<8}{'batch':>5} {'prec.':<6}{'mode':<9}{'usual':>7}{'ours':>8} {'way':<16}{'ms':>8}{'roof':>7}"
        f"{'MB':>8}{'ratio':>7}{'layers':>8}{'coupled':>8}{'altern.':>8}"
    )
    for cell in cells:
        yield _format_cell(cell, results)


def _format_cell(cell: Figure, results: Results) -> str:
    settings, best = cell["settings"], best_exact_row(cell)
    rows = {row["step"]: row for row in cell["rows"]}
    head = f"{settings['preset']:<8}{settings['batch']:>5} {cell['conditions']['precision']:<6}{describe_mode(cell):<9}"
    head += f"{cell['rows'][0]['images_per_second']:>7,.0f}"
    if best is None:
        return head
    peak = "-" if best["peak_bytes"] is None else f"{best['peak_bytes'] / 1e6:,.0f}"
    others = [rows.get(step) for step in ("usual, our layers", "coupled", "alternating")]
    ratios = "".join(f"{'-' if row in (None, best) else format(row['ratio'], '.2f'):>8}" for row in others)
    way = best["step"].replace(", replayed", "+graph")
    return (
        f"{head}{best['images_per_second']:>8,.0f} {way:<16}{best['seconds_per_update'] * 1e3:>8.2f}"
        f"{format_share_of_roof(best, results):>7}{peak:>8}{best['ratio']:>7.2f}{ratios}"
    )


def _format_loops(results: Results) -> Iterator[str]:
    loops = select_figures(results, "loop")
    if not loops:
        return
    yield "Whole runs on drawn shapes at 32 px"
    yield f"{'preset':<10}{'batch':>6} {'prec.':<6}{'way':<11}{'data in':<8}{'images/s':>10}{'wait':>8}"
    for loop in loops:
        yield (
            f"{loop['preset']:<10}{loop['batch']:>6} {loop['precision']:<6}{loop['update']:<11}{loop['residency']:<8}"
            f"{loop['images_per_second']:>10,.0f}{loop['data_wait']:>8.1%}"
        )


def _format_quality(results: Results) -> Iterator[str]:
    for run in select_figures(results, "quality"):
        yield (
            f"Quality at {run['size']} px: preset {run['preset']}, {run['images']:,} of its {run['of']:,} images in "
            f"{run['seconds']:.0f} s, {run['precision']}, {run['update']}"
        )
        yield from (f"  {line}" for line in format_metrics(find_metrics(run, results)))
        yield f"  pictures: {', '.join(run['pictures'])}"


def find_metrics(run: Figure, results: Results) -> dict[str, float]:
    """Find the metrics of a run; empty where time ran out before they were computed."""
    return next((f["metrics"] for f in select_figures(results, "metrics") if f["size"] == run["size"]), {})


def format_metrics(metrics: dict[str, float]) -> list[str]:
    """Format the metrics, each beside its reference."""
    references = {
        "frechet": "frechet_reference",
        "reconstruction_mse": "reconstruction_mse_reference",
        "label_kept": "classifier_accuracy",
    }
    lines = []
    for name, reference in references.items():
        if name in metrics:
            comparison = f" ({reference} {metrics[reference]:.4g})" if reference in metrics else ""
            lines.append(f"{name} {metrics[name]:.4g}{comparison}")
    return lines


def _format_profiles(results: Results) -> Iterator[str]:
    profiles = select_figures(results, "profile")
    unit = "kernels" if results["device"] == "cuda" else "operators"
    for number, profile in enumerate(profiles):
        total, busy, gaps = (f"{profile[name] * 1e3:.2f} ms" for name in ("seconds", "busy", "gaps"))
        peak = "" if profile["peak_bytes"] is None else f", peak {profile['peak_bytes'] / 1e6:,.0f} MB"
        yield (
            f"Profile of {profile['preset']} batch {profile['batch']} {profile['precision']} {profile['step']}: "
            f"{total}, busy {busy}, gaps {gaps}, {profile['events']:,.0f} {unit}{peak}"
        )
        for kernel in profile["top"][:MOST_KERNELS] if number == 0 else ():
            yield f"  {kernel['seconds'] * 1e3:>8.3f} ms {kernel['count']:>6.0f} x  {kernel['name']}"
