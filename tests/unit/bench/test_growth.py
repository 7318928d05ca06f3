"""The growth bench: its model by hand, buckets as training makes them, a real trace, and whole small commands.

Run: `make test ARGS=tests/unit/bench/test_growth.py`
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from ali_dist.training.ddp import bucket_bytes
from tests.bench.floor_cases import CASES
from tests.bench.growth.__main__ import PARTS, main
from tests.bench.growth.model import Link, UpdateWork, bucket_sizes, describe_work, ring_seconds, update_seconds
from tests.bench.growth.panels import Curve, Panel, Span, draw_findings
from tests.bench.growth.planning import list_ids, make_bench_order, make_index
from tests.bench.growth.updates import ModelledCase, hidden_share, model_ranks, trace_update
from tests.helpers.distributed import run_distributed

SVG = "{http://www.w3.org/2000/svg}"
MB = 2**20


# ---- the model -------------------------------------------------------------------------------------------------------


def test_one_rank_sends_nothing() -> None:
    work = UpdateWork(forward=1.0, backward=2.0, buckets=(10, 10), exchanges=5)
    assert update_seconds(work, 1, Link(bandwidth=1.0, latency=1.0)) == 3.0


def test_a_ring_sends_everything_nearly_twice_in_twice_as_many_steps_as_there_are_other_ranks() -> None:
    assert ring_seconds(100.0, 4, Link(bandwidth=50.0, latency=0.5)) == pytest.approx(2 * 3 / 4 * 100 / 50 + 6 * 0.5)


def test_of_fast_all_reduces_only_the_last_one_is_waited_for() -> None:
    work = UpdateWork(forward=1.0, backward=2.0, buckets=(40, 40, 20))
    link = Link(bandwidth=1000.0, latency=0.0)
    assert update_seconds(work, 2, link) == pytest.approx(3.0 + ring_seconds(20, 2, link))


def test_slow_all_reduces_queue_from_when_the_first_bucket_is_ready() -> None:
    work = UpdateWork(forward=1.0, backward=2.0, buckets=(50, 50))
    link = Link(bandwidth=10.0, latency=0.0)
    assert update_seconds(work, 2, link) == pytest.approx(1.0 + 1.0 + ring_seconds(100, 2, link))


def test_exchanges_of_batch_norm_go_up_and_down_a_tree_and_never_overlap() -> None:
    silent = UpdateWork(forward=1.0, backward=2.0, buckets=(1,))
    talking = UpdateWork(forward=1.0, backward=2.0, buckets=(1,), exchanges=10)
    link = Link(bandwidth=1e9, latency=0.01)
    assert update_seconds(talking, 8, link) - update_seconds(silent, 8, link) == pytest.approx(10 * 2 * 3 * 0.01)


def test_a_faster_network_is_never_slower() -> None:
    (panel,) = model_ranks((1, 2, 8), ModelledCase(name="mixture", seconds=0.01, source="nowhere"))
    slow, fast = (dict(curve.points) for curve in panel.curves if curve.key in ("10 Gbit/s", "100 Gbit/s"))
    assert slow[1] == pytest.approx(fast[1]) == pytest.approx(12_800)
    assert all(slow[n] < fast[n] < fast[1] for n in (2, 8))


# ---- buckets and the trace -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "full"), [(MB // 2, MB), (20 * MB, 5 * MB), (400 * MB, 25 * MB)])
def test_a_bucket_holds_a_quarter_of_the_gradients_within_bounds(total: int, full: int) -> None:
    frozen = nn.Parameter(torch.empty(MB, device="meta"), requires_grad=False)
    parameter = nn.Parameter(torch.empty(total // 4, device="meta"))
    assert bucket_bytes([parameter, frozen]) == full


def test_what_fills_a_bucket_closes_it_and_the_last_parameters_come_first() -> None:
    parameters = [nn.Parameter(torch.empty(size * MB // 4, device="meta")) for size in (1, 2, 8, 1)]
    assert bucket_sizes(parameters) == (9 * MB, 3 * MB)


def test_all_reduces_begin_before_the_backward_pass_ends() -> None:
    """In a real update of two ranks; and its buckets are those that the model reckons with."""
    backward, reductions = run_distributed(trace_update, 2, CASES["digits"], 16, None)[0]
    expected = describe_work(CASES["digits"], 1.0, 0.5).buckets
    assert [span.name for span in reductions] == [f"{n}: {b / 1e6:.1f} MB" for n, b in enumerate(expected, 1)]
    assert hidden_share(backward, reductions) > 0
    assert all(span.begin < backward.end for span in reductions[:-1])
    assert 2 * expected[-1] < sum(expected), "most bytes are not left to the end"


def test_the_hidden_share_is_what_lies_within_the_backward_pass() -> None:
    backward = Span("backward", 0.0, 10.0)
    reductions = [Span("in it", 1.0, 3.0), Span("half in it", 9.0, 11.0), Span("behind it", 11.0, 15.0)]
    assert hidden_share(backward, reductions) == pytest.approx((2 + 1) / (2 + 2 + 4))


# ---- plans, pictures and the command ---------------------------------------------------------------------------------


def test_made_up_shards_have_all_samples_and_an_epoch_uses_each_once() -> None:
    index = make_index(10_001, 7)
    assert (len(index.shards), index.num_samples) == (7, 10_001)
    order = make_bench_order(index)
    assert list_ids(order, 0) == order.steps_per_epoch * order.global_batch_size


def test_a_table_has_a_column_for_each_place_and_a_picture_only_curves_with_a_key() -> None:
    curves = (Curve("drawn", ((1, 2.0), (10, 1234.5)), "a < b"), Curve("told", ((10, 0.001234),)))
    panel = Panel(title="T", x="ranks", y="s", curves=curves)
    assert panel.to_markdown().splitlines()[2:] == [
        "| ranks | 1 | 10 |",
        "| --- | ---: | ---: |",
        "| drawn | 2 | 1,234 |",
        "| told | - | 0.00123 |",
    ]
    picture = ElementTree.fromstring(draw_findings([panel]))
    assert len(list(picture.iter(f"{SVG}path"))) == 1


def test_the_command_draws_and_writes_what_it_measures(tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text("before\n<!-- growth: begin -->\nstale words\n<!-- growth: end -->\nafter\n")
    words = ["--quick", "--rounds", "1", "--parts", "samples,trials"]
    assert main([*words, "--plot", str(plot), "--table", str(page)]) == 0
    text = page.read_text()
    assert "stale words" not in text
    assert all(f"**{title}**" in text for title in ("Samples", "Trials"))
    assert len(list(ElementTree.parse(plot).getroot().iter(f"{SVG}path"))) == 2 + 3


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "batch,depth"]) == 2
    assert f"--parts has 'depth', but must be some of {', '.join(PARTS)}." in capsys.readouterr().err
