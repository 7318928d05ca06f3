"""Runs are compared on one page that tells them apart, and that says where their numbers may not be compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ali_dist.config import Config
from ali_dist.report.comparison import ComparedRun, comparison_html
from ali_dist.report.embedding import embed_pictures
from ali_dist.report.image_grids import save_samples
from ali_dist.runs.run_copy import copy_report_files
from ali_dist.runs.run_reader import RunReader
from tests.helpers.memory_store import MemoryStore


def write_run(folder: Path, name: str, losses: list[float], config: dict[str, Any], **summary: Any) -> Path:
    """Write a run with a record of d_loss for every 64 images, a picture, and settings beside the defaults."""
    folder.mkdir()
    mapping = Config().to_mapping()
    mapping["run"]["name"] = name
    for key, value in config.items():
        section, _, setting = key.partition(".")
        mapping[section][setting] = value
    (folder / "config.json").write_text(json.dumps(mapping))
    records = [
        {"event": "train", "step": i, "images": 64 * i, "seconds": 1.0, "d_loss": loss}
        for i, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "summary.json").write_text(json.dumps({"run": name, "status": "finished", "images": 192, **summary}))
    save_samples(folder / "images" / "samples-000000192.png", torch.zeros(4, 1, 8, 8), columns=2)
    return folder


def compare(*folders: Path) -> str:
    return comparison_html([ComparedRun(str(folder), RunReader.read(folder)) for folder in folders])


def section(html: str, heading: str) -> str:
    found = re.search(rf"<h2>{re.escape(heading)}</h2>(.*?)</section>", html, re.DOTALL)
    assert found, heading
    return found[1]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    metrics = {"metrics": {"frechet": 20.0, "latent_std_min": 0.5}, "metrics_split": "test"}
    better = {"metrics": {"frechet": 10.0, "latent_std_min": 0.7, "label_kept": 0.9}, "metrics_split": "test"}
    first = write_run(tmp_path / "a", "slow", [1.0, 0.9, 0.8], {}, **metrics)
    return first, write_run(tmp_path / "b", "fast", [2.0, 1.0], {"optim.lr_d": 0.00077}, **better)


def test_only_settings_that_differ_are_listed_with_the_value_of_each_run(two: tuple[Path, Path]) -> None:
    rows = re.findall(
        r"<tr><th>([\w.]+)</th><td>([^<]*)</td><td>([^<]*)</td>", section(compare(*two), "Settings that differ")
    )
    assert rows == [("optim.lr_d", str(Config().optim.lr_d), "0.00077")]


def test_equal_settings_are_said_to_be_equal(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, name, [1.0], {}) for name in ("one", "two")]
    assert "None, beside their names" in section(compare(*folders), "Settings that differ")


def test_every_run_has_one_line_in_each_chart_and_one_picture_of_each_kind(two: tuple[Path, Path]) -> None:
    html = compare(*two)
    curves = section(html, "Curves")
    assert re.findall(r'<polyline class="line (c\d)"', curves) == ["c0", "c1"]
    assert '<span class="key c0">slow</span><span class="key c1">fast</span>' in curves
    figures = re.findall(r'<figcaption><span class="key (c\d)">(\w+)</span> after ([\d,]+)', section(html, "Images"))
    assert figures == [("c0", "slow", "192"), ("c1", "fast", "192")]


def test_a_run_keeps_its_color_where_the_other_lacks_a_quantity(two: tuple[Path, Path]) -> None:
    (two[0] / "metrics.jsonl").write_text("")
    assert re.findall(r'<polyline class="line (c\d)"', section(compare(*two), "Curves")) == ["c1"]


def test_the_best_value_stands_out_and_a_missing_one_is_a_dash(two: tuple[Path, Path]) -> None:
    metrics = section(compare(*two), "Metrics")
    assert re.findall(r"<tr><th>([^<]*)</th><td>20</td><td class=best>10</td>", metrics) == ["Fréchet distance"]
    assert re.findall(r"<td>–</td><td>90.0 %</td>", metrics), "one value alone is not the best"
    assert "<td>0.5</td><td>0.7</td>" in metrics, "no way is better"


def test_what_the_metrics_are_of_is_said_once_where_it_is_the_same(two: tuple[Path, Path], tmp_path: Path) -> None:
    assert re.findall(r'<p class="soft">([^<]*)', section(compare(*two), "Metrics")) == [
        "Of the split test, as the runs stand."
    ]
    other = write_run(tmp_path / "c", "other", [1.0], {}, metrics={"label_kept": 0.9}, metrics_split="valid")
    html = section(compare(two[0], other), "Metrics")
    assert "slow: Of the split test, as the run stands." in html
    assert "other: Of the split valid, as the run stands." in html


def test_a_number_is_not_parted_from_its_percent_sign(tmp_path: Path) -> None:
    metrics = {"metrics": {"coverage_real": 0.5, "coverage_real_reference": 0.972}, "metrics_split": "test"}
    runs = [write_run(tmp_path / name, name, [1.0], {}, **metrics) for name in ("a", "b")]
    assert section(compare(*runs), "Metrics").count("reference 97.2&nbsp;%") == 2


@pytest.mark.parametrize(
    ("config", "summary", "sentence"),
    [
        ({"data.url": "elsewhere"}, {}, "differ in their data (data.url)"),
        ({"report.evaluation_samples": 77}, {}, "number of samples (report.evaluation_samples)"),
        ({}, {"metrics_split": "valid"}, "slow on test, other on valid"),
    ],
)
def test_runs_that_were_measured_otherwise_are_said_not_to_compare(
    two: tuple[Path, Path], tmp_path: Path, config: dict[str, Any], summary: dict[str, Any], sentence: str
) -> None:
    assert "may not be comparable" not in compare(*two)
    metrics = {"metrics": {"frechet": 10.0}, "metrics_split": "test", **summary}
    html = compare(two[0], write_run(tmp_path / "c", "other", [1.0], config, **metrics))
    assert sentence in html
    assert "class=best" not in html


def test_runs_of_one_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place, "demo", [1.0], {}) for place in ("here", "there")]
    assert all(f"{folder}</span>" in compare(*folders) for folder in folders)


def test_the_page_loads_nothing_and_names_from_outside_cannot_inject_markup(two: tuple[Path, Path]) -> None:
    summary = {"run": "<script>x</script>", "device": "<img src=x>", "metrics": {"<b>odd": 1.0}, "status": "<i>"}
    (two[0] / "summary.json").write_text(json.dumps({**summary, "images": "<u>", "seconds": "<s>"}))
    config = Config().to_mapping() | {"<p>": {"<q>": "<em>"}}
    (two[0] / "config.json").write_text(json.dumps(config))
    html = compare(*two)
    assert "&lt;script&gt;" in html
    assert not re.search(r"<(script|img src=x|b>|i>|u>|s>|em>|p>\.|q>|link|iframe)|url\(|@import", html)
    assert all(target.startswith("data:") for target in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html))


def test_large_pictures_are_compressed_until_they_fit(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.png" for k in range(2)]
    for path in paths:
        save_samples(path, torch.rand(16, 3, 64, 64), columns=4)
    whole = sum(path.stat().st_size for path in paths)
    assert all(url.startswith("data:image/png;") for url in embed_pictures(paths, whole).values())
    for most in (whole // 3, whole // 12):
        urls = embed_pictures(paths, most)
        assert all(url.startswith("data:image/jpeg;") for url in urls.values())
        assert sum(map(len, urls.values())) <= 1.4 * most


def test_of_a_run_in_an_object_store_only_what_is_shown_is_read(two: tuple[Path, Path], tmp_path: Path) -> None:
    save_samples(two[0] / "images" / "samples-000000064.png", torch.zeros(1, 1, 8, 8), columns=1)
    store = MemoryStore("memory://comparison/run")
    for path in two[0].rglob("*"):
        if path.is_file():
            store.put(path.relative_to(two[0]).as_posix(), path)
    store.put("checkpoints/step-000000001/model.safetensors", b"large")
    (tmp_path / "copy").mkdir()
    copy = copy_report_files(store, tmp_path / "copy")
    assert sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()) == [
        "config.json",
        "images/samples-000000192.png",
        "metrics.jsonl",
        "summary.json",
    ]
    assert compare(copy, two[1]).replace(str(copy), "") == compare(*two).replace(str(two[0]), "")
