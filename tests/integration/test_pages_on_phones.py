"""The pages of runs and sweeps, in a real browser as wide as a phone's and a desk's: nothing is cut, broken or tiny."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ali_dist.config.loading import from_mapping, read_preset
from ali_dist.report.comparison import ComparedRun, comparison_html
from ali_dist.report.image_grids import save_samples
from ali_dist.report.page import write_page
from ali_dist.runs.run_reader import RunReader
from tests.helpers.chromium import BROWSER, Tab, open_tab
from tests.helpers.sweeps import make_record, small_plan, store_of
from tuning.html import sweep_page_html

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")

_SHORT = 13  # characters of a setting's value that has to stand in one line
_LEAST_TEXT = 8.0  # pixels of a font that can be read without a lens
_BROKEN = f"""[...document.querySelectorAll('.config td:nth-child(2)')].filter((cell) => {{
  const range = document.createRange(); range.selectNodeContents(cell);
  return cell.textContent.length <= {_SHORT} && range.getClientRects().length > 1;
}}).map((cell) => cell.textContent)"""
_SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('svg text')].map((text) => {
  const scale = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(scale.a, scale.b);
}))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def write_run(folder: Path, name: str, lr_g: float) -> Path:
    """A run of the digits preset with records, metrics of few samples, and a picture."""
    folder.mkdir()
    config = from_mapping({**read_preset("digits").settings, "run.name": name, "optim.lr_g": lr_g}).to_mapping()
    (folder / "config.json").write_text(json.dumps(config))
    values = {"d_loss": 0.5, "g_loss": 1.2, "d_q": 0.7, "d_p": 0.6, "lr_d": 1e-3, "lr_g": lr_g, "images_per_second": 90}
    records = [
        {"event": "train", "step": k, "images": 4_000 * k, "seconds": 9.0 * k, **values, "d_loss": 0.1 * k}
        for k in (1, 2, 3, 4, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics = {"frechet": 50.46, "frechet_reference": 8.8, "coverage_real": 0.547, "label_kept": 0.964}
    metrics |= {"compared_images": 360.0}
    summary = {"run": name, "status": "finished", "images": 20_000, "metrics": metrics, "metrics_split": "test"}
    (folder / "summary.json").write_text(json.dumps({**summary, "time": {"compute": 90.0, "saving": 0.01}}))
    save_samples(folder / "images" / "samples-000020000.png", torch.zeros(64, 1, 16, 16), columns=8)
    return folder


def show(tab: Tab, page: Path, width: int) -> None:
    tab.complaints.clear()
    tab.send("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    tab.send("Page.navigate", url=page.resolve().as_uri())
    tab.wait_for(f"location.href.endsWith({page.name!r}) && document.readyState === 'complete'")


def page_of(kind: str, folder: Path) -> Path:
    if kind == "sweep":
        plan = small_plan(folder, trials=3)
        records = [make_record(0, 0.5), make_record(1, 0.6), make_record(2, 0.1, state="stopped", reason="behind")]
        content = sweep_page_html(plan, records, store_of(plan))
    else:
        runs = [write_run(folder / name, name, lr_g) for name, lr_g in (("first", 1e-3), ("second", 5e-4))]
        if kind == "report":
            return write_page(runs[0])
        content = comparison_html([ComparedRun(str(run), RunReader.read(run)) for run in runs])
    page = folder / f"{kind}.html"
    page.write_text(content, encoding="utf-8")
    return page


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["report", "comparison", "sweep"])
def test_a_page_fits_its_screen_and_can_be_read(tab: Tab, tmp_path: Path, kind: str, width: int) -> None:
    show(tab, page_of(kind, tmp_path), width)
    assert tab.run("document.documentElement.scrollWidth") <= width, "the page would have to be moved sideways"
    assert tab.run(_BROKEN) == [], "words that are broken within"
    assert tab.run(_SMALLEST_TEXT) >= _LEAST_TEXT
    assert tab.complaints == []


def test_numbers_of_a_phone_stand_at_the_right_with_what_limits_them(tab: Tab, tmp_path: Path) -> None:
    show(tab, page_of("report", tmp_path), 390)
    ends = tab.run(
        "[...document.querySelectorAll('.metrics td.number')].map((cell) => { const range = document.createRange();"
        " range.selectNodeContents(cell); return [...range.getClientRects()].map((box) => Math.round(box.right)); })"
    )
    assert len({end for of_cell in ends for end in of_cell if end}) == 1, ends
