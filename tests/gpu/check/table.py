"""Results as text: at most 100 lines that fit a terminal. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Figure = dict[str, Any]
Results = dict[str, Any]

MOST_LINES = 100
MOST_NAMES = 8  # of failed tests, skips, and things not begun
MOST_KERNELS = 15
_WIDTH = 118


def figures(results: Results, kind: str) -> list[Figure]:
    """All figures of one kind, in the order in which they came."""
    return [f for part in results["parts"].values() for f in part["figures"] if f["kind"] == kind]


def machine(results: Results) -> Figure:
    """What the first part that got so far said of hardware and versions; empty where none did."""
    return next(iter(figures(results, "machine")), {})


def hardware(results: Results) -> str:
    """The device in words."""
    found = machine(results)
    if not found:
        return f"device {results['device']}"
    cpu = f"{found['cpu']}, {found['cores']} cores"
    if "gpu" not in found:
        return cpu
    return f"{found['gpu']}, {found['gpu_memory'] / 2**30:.0f} GiB; {cpu}"


def versions(results: Results) -> str:
    """The software in words."""
    found = machine(results)
    names = ("torch", "CUDA", "cuDNN", "NCCL", "driver", "Python", "revision")
    there = [f"{name} {found[name.lower()]}" for name in names if found.get(name.lower()) is not None]
    return ", ".join(there)


def roofs(results: Results) -> dict[str, float]:
    """Measured limits: `matmul` in operations a second; `copy`, `gather` and `from host` in bytes a second."""
    found = {
        f["kind"]: f["bytes_per_second"] for kind in ("copy", "gather", "from host") for f in figures(results, kind)
    }
    for product in figures(results, "matmul"):
        found["matmul"] = product["flops"]
    return found


def share_of_roof(row: Figure, results: Results) -> str:
    """The share of the matrix product's rate that a step reaches; a dash where one of the two is not known."""
    roof, operations = roofs(results).get("matmul"), row.get("flops_per_image")
    if not roof or not operations:
        return "-"
    return f"{operations * row['images_per_second'] / roof:.1%}"


def ours(cell: Figure) -> Figure | None:
    """The row of a cell's best exact way, which a run would take: the first after the usual ones."""
    rows = [row for row in cell["rows"] if not row["step"].startswith("usual")]
    return rows[0] if rows else None


def mode(cell: Figure) -> str:
    """eager or compiled."""
    return "compiled" if cell["settings"]["compile"] else "eager"


def table(results: Results) -> str:
    """Everything that a person wants to see first."""
    lines = [*_head(results), *_parts(results)]
    for section in (_tests, _roof, _cells, _loops, _quality, _profiles):
        body = list(section(results))
        if body:
            lines += ["", *body]
    if len(lines) > MOST_LINES:
        lines = [
            *lines[: MOST_LINES - 1],
            f"({len(lines) - MOST_LINES + 1} more lines: all figures are in results.json)",
        ]
    return "\n".join(line[:_WIDTH].rstrip() for line in lines)


def progress_line(figure: Figure) -> str:
    """A figure in a line, while the check runs; empty for what says little by itself."""
    if figure["kind"] == "cell":
        return "; ".join(f"{row['step']} {row['images_per_second']:,.0f} img/s" for row in figure["rows"])[:_WIDTH]
    if figure["kind"] == "loop":
        return f"{figure['preset']} {figure['asked']}: {figure['images_per_second']:,.0f} img/s"
    if figure["kind"] == "failure":
        return f"{figure['what']} failed: {figure['why']}"
    if figure["kind"] == "not begun":
        return f"{figure['what']}: not begun, it needs about {figure['needs']} s and {figure['left']} s were left"
    return ""


def _head(results: Results) -> Iterator[str]:
    yield f"ali_dist on {hardware(results)}"
    yield f"{versions(results)}; {results['date'][:10]}; {results.get('seconds', 0):.0f} of {results['budget']:.0f} s"
    if results["device"] == "cpu":
        yield "Tiny settings on a CPU: this shows that the check works, and says nothing about speed or quality."
    yield ""


def _parts(results: Results) -> Iterator[str]:
    yield f"{'part':<9}{'':<11}{'s':>6}{'limit':>7}"
    for name, part in results["parts"].items():
        yield f"{name:<9}{part['status']:<11}{part['seconds']:>6.0f}{part['limit']:>7.0f}  {part['reason']}"
    missed = figures(results, "not begun")
    if missed:
        named = ", ".join(figure["what"] for figure in missed[:MOST_NAMES])
        yield f"Not begun for want of time: {named}{_more(missed)}."


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - MOST_NAMES} more" if len(items) > MOST_NAMES else ""


def _tests(results: Results) -> Iterator[str]:
    tests = figures(results, "test")
    if not tests:
        return
    counts = Counter(test["outcome"] for test in tests)
    collected = sum(figure["tests"] for figure in figures(results, "collected"))
    yield f"Tests: {', '.join(f'{counts[how]} {how}' for how in ('passed', 'failed', 'skipped'))} of {collected}"
    failed = [test for test in tests if test["outcome"] == "failed"]
    for test in failed[:MOST_NAMES]:
        yield f"  failed: {test['name'].rpartition('::')[2]}: {test['reason']}"
    if len(failed) > MOST_NAMES:
        yield f"  {_more(failed).strip()}"
    reasons = Counter(test["reason"] for test in tests if test["outcome"] == "skipped")
    for reason, count in reasons.most_common(3):
        yield f"  skipped {count}: {reason}"


def _roof(results: Results) -> Iterator[str]:
    found = roofs(results)
    if "matmul" in found:
        side = figures(results, "matmul")[0]["side"]
        yield f"Roof: bf16 product of {side} x {side} matrices {_rate(found['matmul'], 'FLOP/s')}"
    for name, text in (
        ("copy", "copy on the device"),
        ("gather", "gather of a batch"),
        ("from host", "copy from host"),
    ):
        if name in found:
            share = f" ({found[name] / found['copy']:.1%} of the copy)" if name == "gather" and "copy" in found else ""
            yield f"      {text} {_rate(found[name], 'B/s')}{share}"


def _rate(value: float, unit: str) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.1f} {prefix}{unit}"
    return f"{value:,.0f} {unit}"


def _cells(results: Results) -> Iterator[str]:
    cells = figures(results, "cell")
    if not cells:
        return
    yield "Update: images/s of the usual style and of our exact way, its share of the roof, and ratios to the usual"
    yield (
        f"{'preset':<8}{'batch':>6} {'prec.':<6}{'mode':<9}{'usual':>9}{'ours':>9} {'way':<10}{'ms':>8}{'roof':>7}"
        f"{'MB':>8}{'ratio':>7}{'layers':>8}{'coupled':>8}{'altern.':>8}"
    )
    for cell in cells:
        yield _cell(cell, results)


def _cell(cell: Figure, results: Results) -> str:
    settings, best = cell["settings"], ours(cell)
    rows = {row["step"]: row for row in cell["rows"]}
    head = f"{settings['preset']:<8}{settings['batch']:>6} {cell['conditions']['precision']:<6}{mode(cell):<9}"
    head += f"{cell['rows'][0]['images_per_second']:>9,.0f}"
    if best is None:
        return head
    peak = "-" if best["peak_bytes"] is None else f"{best['peak_bytes'] / 1e6:,.0f}"
    others = [rows.get(step) for step in ("usual, our layers", "coupled", "alternating")]
    ratios = "".join(f"{'-' if row in (None, best) else format(row['ratio'], '.2f'):>8}" for row in others)
    return (
        f"{head}{best['images_per_second']:>9,.0f} {best['step']:<10}{best['seconds_per_update'] * 1e3:>8.2f}"
        f"{share_of_roof(best, results):>7}{peak:>8}{best['ratio']:>7.2f}{ratios}"
    )


def _loops(results: Results) -> Iterator[str]:
    loops = figures(results, "loop")
    if not loops:
        return
    yield "Whole runs on drawn shapes at 32 px"
    yield f"{'preset':<10}{'batch':>6} {'prec.':<6}{'way':<11}{'data in':<8}{'images/s':>10}{'wait':>8}"
    for loop in loops:
        yield (
            f"{loop['preset']:<10}{loop['batch']:>6} {loop['precision']:<6}{loop['update']:<11}{loop['residency']:<8}"
            f"{loop['images_per_second']:>10,.0f}{loop['data_wait']:>8.1%}"
        )


def _quality(results: Results) -> Iterator[str]:
    for run in figures(results, "quality"):
        yield (
            f"Quality at {run['size']} px: preset {run['preset']}, {run['images']:,} of its {run['of']:,} images in "
            f"{run['seconds']:.0f} s, {run['precision']}, {run['update']}"
        )
        yield from (f"  {line}" for line in metric_lines(metrics_of(run, results)))
        yield f"  pictures: {', '.join(run['pictures'])}"


def metrics_of(run: Figure, results: Results) -> dict[str, float]:
    """What the judge said of a run; empty where time ran out before it could."""
    return next((f["metrics"] for f in figures(results, "metrics") if f["size"] == run["size"]), {})


def metric_lines(metrics: dict[str, float]) -> list[str]:
    """The metrics, each beside what it is held against."""
    against = {
        "frechet": "frechet_reference",
        "reconstruction_mse": "reconstruction_mse_reference",
        "label_kept": "classifier_accuracy",
    }
    lines = []
    for name, reference in against.items():
        if name in metrics:
            beside = f" ({reference} {metrics[reference]:.4g})" if reference in metrics else ""
            lines.append(f"{name} {metrics[name]:.4g}{beside}")
    return lines


def _profiles(results: Results) -> Iterator[str]:
    profiles = figures(results, "profile")
    what = "kernels" if results["device"] == "cuda" else "operators"
    for number, found in enumerate(profiles):
        peak = "" if found["peak_bytes"] is None else f", peak {found['peak_bytes'] / 1e6:,.0f} MB"
        yield (
            f"Profile of {found['preset']} batch {found['batch']} {found['precision']} {found['step']}: "
            f"{found['seconds'] * 1e3:.2f} ms, busy {found['busy'] * 1e3:.2f} ms, gaps {found['gaps'] * 1e3:.2f} ms, "
            f"{found['events']:,.0f} {what}{peak}"
        )
        for kernel in found["top"][:MOST_KERNELS] if number == 0 else ():
            yield f"  {kernel['seconds'] * 1e3:>8.3f} ms {kernel['count']:>6.0f} x  {kernel['name']}"
