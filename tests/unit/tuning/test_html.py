"""The sweep's page is self-contained, complete, and robust to odd trials and odd names."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.helpers.sweeps import make_record, small_plan, store_of
from tuning.charts import ChartAxis, _place_label
from tuning.html import sweep_page_html
from tuning.trial_record import find_best_record

VOID = {"meta", "img", "br"}


class TagBalance(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Closes itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(plan, records) -> str:
    html = sweep_page_html(plan, records, store_of(plan))
    balance = TagBalance()
    balance.feed(html)
    assert not balance.open
    return html


def records_of_all_kinds():
    without_setting = make_record(3, 0.2)
    without_setting.settings["optim.lr_d"] = None
    return [
        make_record(0, 0.5),
        make_record(1, 0.6),
        make_record(2, None, state="failed", reason="<script>alert('x')</script>"),
        without_setting,
        make_record(4, 0.1, state="stopped", reason="behind"),
        make_record(5, 0.3, state="running"),
    ]


def test_every_trial_is_on_the_page_in_the_table_and_in_the_plots(tmp_path):
    html = page_of(small_plan(tmp_path, trials=6), records_of_all_kinds())
    assert len(re.findall(r"<tr><td>", html)) == 6
    parallel = html.partition('class="pc"')[2].partition("</svg>")[0]
    assert parallel.count("<path") == 5, "one line for each trial with a score"
    assert html.count('<svg class="sc"') == 3, "one scatter for each searched setting"
    assert "against 0.5 of the preset&#x27;s own settings" in html


def test_the_legend_names_the_lines_that_are_drawn(tmp_path):
    """A sweep whose trials are the best one and the preset's own has no other lines."""
    plan = small_plan(tmp_path)
    few = page_of(plan, [make_record(0, 0.5), make_record(1, 0.6)])
    many = page_of(plan, records_of_all_kinds())
    for words in ("finished or running", "ended early"):
        assert words not in few
        assert words in many


def test_labels_of_axes_stay_inside_their_picture():
    for x, label in ((60, "lr_d"), (60, "a_name_that_is_long"), (940, "r1"), (940, "a_name_that_is_long")):
        place, anchor = _place_label(x, label)
        width = 7 * len(label)
        left = place - {"start": 0, "middle": width / 2, "end": width}[anchor]
        assert left >= 0
        assert left + width <= 1000
    assert _place_label(60, "lr_d") == (60, "middle")


def test_a_page_of_more_trials_looks_for_the_best_of_them_no_more_often(tmp_path, monkeypatch):
    """Looked for once for each mark, it took the square of the trials, at the end of every trial."""
    looks = []

    def count_and_find(records, **options):
        looks.append(len(records))
        return find_best_record(records, **options)

    monkeypatch.setattr("tuning.html.find_best_record", count_and_find)
    plan = small_plan(tmp_path, trials=40)
    sweep_page_html(plan, [make_record(number, 0.5) for number in range(2)], store_of(plan))
    of_few = len(looks)
    sweep_page_html(plan, [make_record(number, 0.5) for number in range(40)], store_of(plan))
    assert len(looks) == 2 * of_few > 0


def test_the_best_trial_is_drawn_on_top_of_all_others(tmp_path):
    html = page_of(small_plan(tmp_path, trials=6), records_of_all_kinds())
    parallel = html.partition('class="pc"')[2].partition("</svg>")[0]
    assert re.findall(r'<path class="(\w*)"', parallel) == ["early", "", "", "own", "best"]


def test_the_page_says_what_the_sweep_cost(tmp_path):
    """Two workers of one CPU each for 60 seconds are two minutes of one CPU."""
    records = [make_record(0, 0.5, held={"CPU": 2.0}, seconds=60.0), make_record(1, 0.3, state="stopped", seconds=30.0)]
    cost = page_of(small_plan(tmp_path), records).partition("What it cost")[2].partition("</section>")[0]
    assert "2 min 00 s of one CPU" in cost
    assert "16,000 (100% of their budgets)" in cost
    assert "1 min 30 s" in cost


def test_the_page_asks_the_network_for_nothing_and_escapes_what_it_shows(tmp_path):
    html = page_of(small_plan(tmp_path, trials=6), records_of_all_kinds())
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:image/png|trials/)", html)
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "nan" not in re.findall(r'[ "]d="([^"]*)"', html)


def test_no_coordinate_leaves_its_picture(tmp_path):
    """The preset's own value may lie outside of the space."""
    html = page_of(small_plan(tmp_path, trials=6), records_of_all_kinds())
    for x, y in re.findall(r'c[x]="([\d.-]+)" cy="([\d.-]+)"', html):
        assert 0 <= float(x) <= 460
        assert 0 <= float(y) <= 230
    for route in re.findall(r' d="([^"]+)"', html):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", route)]
        assert all(0 <= n <= 1000 for n in numbers)


@pytest.mark.parametrize("records", [[], [make_record(0, None, state="failed", reason="x")], [make_record(0, 0.0)]])
def test_a_page_is_made_however_little_there_is(tmp_path, records):
    assert "All trials" in page_of(small_plan(tmp_path), records)


def test_pictures_of_the_best_trial_are_its_newest_and_inside_the_page(tmp_path):
    plan = small_plan(tmp_path)
    folder = tmp_path / "sweep" / "trials" / "001" / "images"
    folder.mkdir(parents=True)
    for images, gray in ((400, 10), (8000, 200)):
        Image.new("L", (2, 2), gray).save(folder / f"samples-{images:09d}.png")
    html = page_of(plan, [make_record(1, 0.6)])
    assert html.count("data:image/png;base64") == 1
    assert base64.b64encode((folder / "samples-000008000.png").read_bytes()).decode() in html


def test_an_axis_spans_its_values_and_has_no_place_for_others():
    axis = ChartAxis.from_values("lr", [1e-4, None, 1e-2], log=True)
    assert [axis.place_value(v) for v in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert axis.place_value(None) is None
    assert axis.place_value(float("nan")) is None
    assert all(0 <= place <= 1 for place, _ in axis.list_ticks())
    choice = ChartAxis.from_values("loss", ["a", "b", "a"], choice=True)
    assert [text for _, text in choice.list_ticks()] == ["a", "b"]
    assert ChartAxis.from_values("same", [3.0, 3.0]).place_value(3.0) == pytest.approx(0.5)
