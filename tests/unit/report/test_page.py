"""The report is one self-contained page that tells the truth about whatever state the run folder is in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, read_preset
from ali_dist.evaluation.catalog import METRICS, metric_keys
from ali_dist.report import charts
from ali_dist.report.chart_hover import MOST_BANDS
from ali_dist.report.charts import ChartCurve, axis_ticks, line_chart, thin_out
from ali_dist.report.embedding import compress
from ali_dist.report.image_grids import save_samples
from ali_dist.report.metric_rows import format_metric, metric_rows
from ali_dist.report.moments import choose_moments
from ali_dist.report.page import write_page
from ali_dist.report.run_facts import format_duration, format_share
from ali_dist.runs.run_reader import RunReader, find_galleries


def train(images: int, **values: Any) -> dict[str, Any]:
    return {"event": "train", "step": images // 64, "images": images, "seconds": 1.0, **values}


def write_run(folder: Path, records: list[dict[str, Any]], **summary: Any) -> None:
    config = Config().to_mapping()
    config["optim"]["lr_d"] = 0.00077
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text(json.dumps({"run": "night-run", "status": "finished", **summary}))
    save_samples(folder / "images" / "samples-64.png", torch.zeros(4, 1, 8, 8), columns=2)


def page(folder: Path) -> str:
    path = write_page(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_a_finished_run_is_shown_in_full(tmp_path: Path) -> None:
    records = [train(64 * i, d_loss=1.0, g_loss=2.0, d_q=0.6, d_p=0.4, images_per_second=500.0) for i in (1, 2, 3)]
    metrics = {"frechet": 21.34, "frechet_reference": 8.6, "label_kept": 0.934, "classifier_accuracy": 0.981}
    write_run(tmp_path, records, images=64_000, seconds=185.0, world_size=2, device="CPU", metrics=metrics)
    html = page(tmp_path)
    for text in ("night-run", "finished", "64,000", "3 min 05 s", "21.34", "8.6 (", "93.4 %", "98.1 % ("):
        assert text in html, text
    judged = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd><dd", html)
    assert judged == [("Fréchet distance", "21.34"), ("Label kept", "93.4 %")]
    assert html.count("<svg") == 3  # losses, D, throughput; no learning rate was logged
    assert html.count("data:image/png;base64,") == 1


def test_figures_of_few_samples_and_of_unseen_classes_say_so(tmp_path: Path) -> None:
    metrics = {"frechet": 21.34, "label_kept": 0.9, "sigma_mean": 0.1, "compared_images": 3.0, "unseen_classes": 2.0}
    write_run(tmp_path, [], metrics=metrics)
    cells = dict(re.findall(r'<tr><th>([^<]*)</th><td class="number">(.*?)</td>', page(tmp_path)))
    assert "few samples (3)" in cells["Fréchet distance"]
    assert '<dd class="soft">few samples (3)' in page(tmp_path)  # on top of the page, too
    assert "2 classes not in training" in cells["Label kept"]
    assert cells["Mean σ(x)"] == "0.1"


def test_each_condition_has_the_share_of_real_images_beside_it() -> None:
    metrics = {
        "condition_kept": 0.5,
        "condition_kept_reference": 0.98,
        "condition_kept_hat": 0.4,
        "condition_kept_hat_reference": 0.97,
        "condition_balanced": 0.6,
        "condition_balanced_reference": 0.95,
        "condition_balanced_hat": 0.7,
        "condition_balanced_hat_reference": 0.94,
    }
    rows = {row.title: (row.value, row.reference.partition(" (")[0]) for row in metric_rows(metrics)}
    assert rows == {
        "Condition kept": ("50.0 %", "98.0 %"),
        "Condition kept, balanced": ("60.0 %", "95.0 %"),
        "Condition kept: hat": ("40.0 %", "97.0 %"),
        "Condition kept, balanced: hat": ("70.0 %", "94.0 %"),
    }


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, [train(64, d_loss=1.0)])
    html = page(tmp_path)
    assert all(target.startswith("data:") for target in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html))
    assert not re.search(r"url\(|@import|<script|<link|<iframe", html)


def test_names_from_outside_cannot_inject_markup(tmp_path: Path) -> None:
    write_run(tmp_path, [], device="<img src=x>", metrics={"<b>odd</b>": 1.0})
    (tmp_path / "summary.json").write_text(json.dumps({"run": "<script>x</script>", "metrics": {"<b>odd": 1.0}}))
    html = page(tmp_path)
    assert "<script" not in html
    assert "<b>odd" not in html
    assert "&lt;script&gt;" in html


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    html = page(tmp_path)
    for text in ("no config.json", "no summary.json", "no metrics.jsonl", "no images", "no evaluation", tmp_path.name):
        assert text in html, text


def test_damaged_files_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    """A process killed while writing leaves half a line; the lines before it still count."""
    write_run(tmp_path, [train(64, d_loss=1.0), train(128, d_loss=0.5)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "ima')
    (tmp_path / "summary.json").write_text("{")
    html = page(tmp_path)
    assert "1 of 3 lines of metrics.jsonl cannot be read" in html
    assert "summary.json cannot be read" in html
    assert "<polyline" in html


def test_a_resumed_run_shows_the_records_written_last(tmp_path: Path) -> None:
    """Steps after the last checkpoint are done twice; the second time is what the weights came from."""
    write_run(tmp_path, [train(64, d_loss=1.0), train(128, d_loss=2.0), train(128, d_loss=3.0), train(192, d_loss=4.0)])
    run = RunReader.read(tmp_path)
    assert [(r["images"], r["d_loss"]) for r in run.train] == [(64, 1.0), (128, 3.0), (192, 4.0)]


def test_without_final_metrics_the_last_evaluation_is_shown_and_dated(tmp_path: Path) -> None:
    evaluations = [{"event": "evaluation", "step": i, "images": 6400 * i, "frechet": 50.0 - i} for i in (1, 2)]
    write_run(tmp_path, evaluations)
    html = page(tmp_path)
    assert "after 12,800 images" in html
    assert ">48<" in html
    assert html.count("<svg") == 1  # its curve


def test_lines_that_lie_on_each_other_are_drawn_as_one_that_says_whose_it_is(tmp_path: Path) -> None:
    records = [train(64 * i, lr_d=1e-3, lr_g=1e-3, d_loss=1.0, g_loss=1.0 + i) for i in (1, 2)]
    write_run(tmp_path, records)
    lines = {
        caption: svg.count("<polyline")
        for caption, svg in re.findall(r"<figcaption>([^<]*)</figcaption>(.*?)</figure>", page(tmp_path))
        if "<svg" in svg
    }
    assert lines == {"Losses": 2, "Learning rate: discriminator, encoder and decoder": 1}


def test_a_share_that_is_not_nothing_is_not_shown_as_nothing() -> None:
    assert [format_share(share) for share in (0.0, 0.0004, 0.0006, 0.25)] == ["0.0 %", "under 0.1 %", "0.1 %", "25.0 %"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [({}, "preset digits ·"), ({"lr_d": 0.5}, "preset digits (1 setting changed) ·")],
)
def test_the_page_names_the_preset_that_a_run_was_made_from(
    tmp_path: Path, changed: dict[str, float], words: str
) -> None:
    write_run(tmp_path, [])
    config = from_mapping(read_preset("digits").settings).to_mapping()
    config["optim"] |= changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert words in page(tmp_path)


def test_settings_that_differ_from_the_default_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    rows = re.findall(r'<tr( class="changed")?><th>([\w.]+)</th>', page(tmp_path))
    assert [key for changed, key in rows if changed] == ["optim.lr_d"]
    assert {"run.images", "scale.workers", "report.log_every"} <= {key for _, key in rows}


def test_the_time_is_shown_by_what_it_went_to(tmp_path: Path) -> None:
    write_run(tmp_path, [], time={"compute": 150.0, "data": 0.0, "saving": 50.0, "start": "<b>"})
    html = page(tmp_path)
    shown = re.findall(r'<span class="key c\d">([^<]*)<span class="soft">([^<]*)</span>', html)
    assert shown == [("computing 75.0 % ", "(2 min 30 s)"), ("saving 25.0 % ", "(50 s)")]
    write_run(tmp_path, [], time=[1.0])
    assert "<h2>Time</h2>" not in page(tmp_path)


def test_the_page_says_where_the_weights_come_from(tmp_path: Path) -> None:
    first = {"started": "2026-01-02T03:04:05+00:00", "images": 0, "host": "<b>box", "command": "ali <i>train"}
    second = {"started": "2026-01-02T05:04:05+00:00", "images": 6400, "commit": "abc+", "ali_dist": "1.2"}
    write_run(tmp_path, [], starts=[first, "odd", second], updated="2026-01-03T00:00:00+00:00")
    html = page(tmp_path)
    assert "Started 2026-01-02 03:04:05 UTC on &lt;b&gt;box<br><code>ali &lt;i&gt;train</code>" in html
    assert "Started 2026-01-02 05:04:05 UTC, after 6,400 images<br>" in html
    assert "ali_dist 1.2, commit abc+" in html
    assert "Finished as of 2026-01-03 00:00:00 UTC" in html


def test_the_newest_grid_of_each_kind_is_shown(tmp_path: Path) -> None:
    """By number, not by spelling; a name without a number is the final one; known kinds come first."""
    for name in ("samples-9", "samples-10", "reconstructions-000200", "reconstructions", "extra-3"):
        (tmp_path / f"{name}.png").touch()
    newest = {kind: list(files.values())[-1].name for kind, files in find_galleries(tmp_path).items()}
    assert newest == {"samples": "samples-10.png", "reconstructions": "reconstructions.png", "extra": "extra-3.png"}
    assert list(newest) == ["samples", "reconstructions", "extra"]


def draw_at(folder: Path, kind: str, *moments: int, side: int = 8) -> None:
    for images in moments:
        save_samples(folder / "images" / f"{kind}-{images:09d}.png", torch.rand(4, 3, side, side) * 2 - 1, columns=2)


def test_earlier_galleries_can_be_chosen_and_the_newest_is_shown_first(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    draw_at(tmp_path, "samples", *range(100, 2100, 100))
    draw_at(tmp_path, "interpolations", 2000)
    html = page(tmp_path)
    labels = re.findall(r'<label for="moment-(\d)">([\d,]+)</label>', html)
    assert [int(k) for k, _ in labels] == list(range(8))
    assert (labels[0][1], labels[-1][1]) == ("64", "2,000")
    assert re.findall(r'id="moment-(\d)" checked', html) == ["7"]
    shown = re.findall(r'<div class="at ([^"]*)"><img alt="([^"]*)"', html)
    assert [marks for marks, alt in shown if alt.startswith("Decoder")] == [f"at-{k}" for k in range(8)]
    assert [marks for marks, alt in shown if alt.startswith("Straight")] == ["at-7"]
    for k in range(8):
        assert f"#moment-{k}:checked ~ .images .at-{k}" in html


def test_large_galleries_leave_room_for_fewer_moments_but_the_newest_is_always_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_at(tmp_path, "samples", *range(100, 900, 100), side=64)
    galleries = find_galleries(tmp_path / "images")
    size = max(len(compress(path, 0)) for path in galleries["samples"].values())
    for most, moments in ((100 * size, 8), (2 * size, 3), (0, 1)):
        monkeypatch.setattr("ali_dist.report.moments._MOST_BYTES", most)
        chosen = choose_moments(galleries)
        assert len(chosen) == moments
        assert chosen[-1] == 800


def test_metrics_that_the_catalog_lacks_are_still_shown() -> None:
    rows = metric_rows({"frechet": 3.0, "something_new": 1.5})
    assert [(row.title, row.value) for row in rows] == [(METRICS["frechet"].title, "3"), ("something_new", "1.5")]


def test_every_metric_has_a_row_and_references_stand_beside_them() -> None:
    shown = metric_rows(dict.fromkeys(metric_keys(), 0.5))
    assert [row.key for row in shown] == list(METRICS)


def test_shares_are_shown_in_percent_in_families_too() -> None:
    assert format_metric("label_kept", 0.934) == "93.4 %"
    assert format_metric("condition_kept_hat", 0.5) == "50.0 %"
    assert format_metric("frechet", 21.341) == "21.34"
    assert format_metric("something_new", 1e-6) == "1.0e-06"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.2), (0.00011, 0.00019), (5, 5), (0, 0), (1e6, 7e9)])
def test_ticks_are_even_round_and_span_the_data(low: float, high: float) -> None:
    marks = axis_ticks(low, high, 5)
    assert marks[0] <= low + 1e-9 * abs(low)
    assert marks[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(marks) <= 9
    steps = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    assert max(steps) == pytest.approx(min(steps))
    assert f"{steps[0]:.0e}"[0] in "125"


def test_a_break_in_the_data_is_a_break_in_the_line() -> None:
    """Divergence must be seen, not bridged."""
    svg = line_chart(
        [ChartCurve("d_loss", [(1, 1.0), (2, 2.0), (3, float("nan")), (4, 2.0), (5, 1.0)])],
        x_label="images",
        y_label="",
    )
    assert svg.count("<polyline") == 2


def bands_of(svg: str) -> list[tuple[list[str], list[str]]]:
    """The lines of text of each band of a chart, and the curves whose points it marks."""
    bands = re.findall(r'<g class="band">(.*?)</g>', svg)
    return [(re.findall(r"<tspan[^>]*>([^<]*)<", band), re.findall(r'circle class="(c\d)"', band)) for band in bands]


def test_every_record_of_a_short_curve_can_be_read_where_it_is() -> None:
    curves = [
        ChartCurve("<a>", [(100.0, 1.0), (2000.0, 0.123456), (3000.0, float("nan"))]),
        ChartCurve("b", [(2000.0, 5.0)]),
    ]
    assert bands_of(line_chart(curves, x_label="images", y_label="")) == [
        (["100 images", "&lt;a&gt; 1"], ["c0"]),
        (["2,000 images", "&lt;a&gt; 0.1235", "b 5"], ["c0", "c1"]),
    ]


def test_long_curves_have_few_bands_that_cover_the_chart_without_gaps() -> None:
    """Runs need not have records at the same places: each shows its nearest one."""
    first = ChartCurve("a", [(float(x), 1.0) for x in range(10, 5000, 10)])
    second = ChartCurve("b", [(float(x), 2.0) for x in range(7, 2500, 10)])
    svg = line_chart([first, second], x_label="images", y_label="")
    bands = bands_of(svg)
    assert len(bands) == MOST_BANDS
    assert bands[0][1] == bands[20][1] == ["c0", "c1"]
    assert bands[-1][1] == ["c0"], "the shorter run has nothing there"
    edges = [tuple(map(float, pair)) for pair in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)]
    assert edges[0][0] == charts.LEFT
    for (start, width), (following, _) in zip(edges, edges[1:], strict=False):
        assert start + width == pytest.approx(following, abs=0.2)
    assert sum(edges[-1]) == pytest.approx(charts.WIDTH - charts.RIGHT, abs=0.2)


def test_a_chart_without_a_finite_point_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart([ChartCurve("d_loss", [(1, float("nan"))])], x_label="images", y_label="")


def test_thinning_keeps_every_spike() -> None:
    points = [(float(i), 0.0) for i in range(1, 10_001)]
    points[7777] = (7778.0, 99.0)
    points[1234] = (1235.0, float("nan"))
    kept = thin_out(points)
    assert len(kept) <= charts.MOST_POINTS
    assert (7778.0, 99.0) in kept
    assert any(y != y for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (59.4, "59 s"), (59.9, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
