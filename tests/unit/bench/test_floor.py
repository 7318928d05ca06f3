"""The floor bench: counts are those of a hand calculation, and shares are of the roof that belongs to them.

Run: `make test ARGS=tests/unit/bench/test_floor.py`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ali_dist.model.build import build_networks
from ali_dist.training.step import LossWeights
from tests.bench import floor
from tests.bench.floor_cases import CASES, configure, draw_batch, index_of
from tests.bench.floor_count import META, choose_rule, count_step, count_update
from tests.bench.floor_table import floor_seconds
from tests.bench.operations import OperationCounter
from tests.bench.roof import Roof
from tests.helpers.networks import copy_state

CPU = torch.device("cpu")


def test_a_linear_layer_counts_two_operations_for_each_weight_and_row() -> None:
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    with OperationCounter() as counter:
        layer(x).sum().backward()
    product = 2 * 3 * 5 * 7
    assert (counter.forward, counter.backward) == (product, 2 * product)  # the gradients of the weight and of x


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_a_convolution_counts_two_operations_for_each_tap_of_an_output(needs_gradient: bool) -> None:
    layer = nn.Conv2d(3, 8, 4, stride=2, padding=1, device=META)
    x = torch.empty(2, 3, 16, 16, device=META, requires_grad=needs_gradient)
    with OperationCounter() as counter:
        layer(x).sum().backward()
    outputs, taps = 2 * 8 * 8 * 8, 3 * 4 * 4
    assert counter.forward == 2 * outputs * taps
    assert counter.backward == (2 if needs_gradient else 1) * counter.forward


def operations_by_layer(network: nn.Module, *inputs: Any) -> dict[str, int]:
    """Operations of a forward pass by name of the layer, from the shapes that its layers see."""
    found: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def add(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = given
            assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
            # Each weight meets each place: of the output, or where a convolution is transposed, of the input.
            places = x if isinstance(layer, nn.ConvTranspose2d) else output
            count = len(places) * places.shape[2:].numel()
            found[name] = found.get(name, 0) + 2 * count * layer.weight.numel()

        layer.register_forward_hook(add)

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            watch(name, layer)
    network(*inputs)
    return found


def test_the_one_pass_update_of_cifar10_is_the_sum_over_its_layers() -> None:
    """Three products for each layer: forward, gradient of weights, gradient of the input, but none for data and z."""
    case, width = CASES["cifar10"], 0.25
    config = configure(case, batch=4, width=width)
    ali, space = build_networks(config, index_of(case).spec, seed=0)
    ali.to(META)
    x, z, epsilon = draw_batch(config, ali, space, META)[:3]
    encoder = operations_by_layer(ali.encoder, x, epsilon)
    decoder = operations_by_layer(ali.decoder, z)
    pairs = operations_by_layer(ali.discriminator, (x, x), torch.cat([z, z]))
    forward = sum(sum(layers.values()) for layers in (encoder, decoder, pairs))
    on_data = next(iter(encoder.values())) + next(iter(decoder.values())) + next(iter(pairs.values())) // 2

    count = count_update(case, batch=4, width=width)
    assert (count.rule, count.penalty) == ("scaled", 0)
    assert count.forward == forward
    assert count.backward == 2 * forward - on_data


@pytest.mark.parametrize("name", CASES)
def test_the_usual_style_computes_more_than_our_update(name: str) -> None:
    count = count_update(CASES[name], batch=4, width=0.1)
    assert count.usual > count.total
    assert count.allowed_speed_up == pytest.approx(count.usual / (count.forward + count.backward + count.penalty))
    assert (count.penalty > 0) == (count.rule == "penalised")


def test_counting_is_deterministic_and_proportional_to_the_batch() -> None:
    case = CASES["digits"]
    few, many = count_update(case, batch=4, width=0.25), count_update(case, batch=8, width=0.25)
    assert count_update(case, batch=4, width=0.25) == few
    assert many.total == 2 * few.total


def test_the_penalty_is_what_an_update_with_it_counts_more() -> None:
    case = CASES["digits"]
    config, spec = configure(case, batch=4, width=0.25), index_of(case).spec
    rule = choose_rule(config, spec)
    cycles = {"cycle_x": 2.5, "cycle_samples": 2.0}
    with_penalty, saved = count_step(config, spec, rule, LossWeights(r1=1.0, r2=1.0, **cycles))
    without, saved_without = count_step(config, spec, rule, LossWeights(**cycles))
    count = count_update(case, batch=4, width=0.25)
    assert count.penalty == with_penalty.total - without.total > 0
    assert count.saved_bytes == saved > saved_without


def test_traffic_is_that_of_the_formula() -> None:
    case = CASES["mixture"]
    config = configure(case, batch=4)
    ali, _ = build_networks(config, index_of(case).spec, seed=0)
    parameters = sum(p.numel() for p in ali.parameters())
    averaged = sum(p.numel() for p in ali.generator_parameters())  # the preset keeps an average
    inputs = 4 * 3 * (4 * 2)  # x, z and epsilon of 4 rows have 2 numbers each
    count = count_update(case, batch=4)
    assert count.parameters == parameters
    assert count.bytes_moved == 4 * (10 * parameters + 2 * averaged) + 2 * count.saved_bytes + inputs


def test_the_floor_is_arithmetic_and_traffic_at_the_roof_of_the_precision() -> None:
    roof = Roof(products={"fp32": 1e9, "bf16": 4e9}, bytes_per_second=1e8)
    row = {"operations": 2e9, "bytes_moved": 3e8, "saved_bytes": 1e8}
    assert floor_seconds(row, roof, "fp32") == (2.0, 3.0)
    assert floor_seconds(row, roof, "bf16") == (0.5, 2.0)  # activations have half the bytes
    slower = Roof(products={"fp32": 2e9, "bf16": 3e9}, bytes_per_second=5e7)
    assert roof.best_with(slower) == Roof(products={"fp32": 2e9, "bf16": 4e9}, bytes_per_second=1e8)
    on_gpu = Roof(products={"fp32": 1e9, "bf16": 4e9, "tf32": 2e9}, bytes_per_second=1e8)
    assert on_gpu.operations_per_second("fp32") == 2e9


def test_both_updates_move_all_networks_and_the_embedding() -> None:
    """A frozen network would make an update look faster than it is."""
    contestants = floor.make_updates(CASES["celeba-conditional"], batch=2, width=0.05, device=CPU, precision="fp32")
    usual, ours = (copy_state(contestant.networks) for contestant in contestants)
    assert all(torch.equal(usual[name], ours[name]) for name in ours)
    for contestant, before in zip(contestants, (usual, ours), strict=True):
        contestant.update()
        after = dict(contestant.networks.named_parameters())
        for part in ("encoder", "decoder", "discriminator", "embedding"):
            names = [name for name in after if name.startswith(part)]
            moved = [name for name in names if not torch.equal(before[name], after[name])]
            assert len(moved) > 0.8 * len(names), part


def test_count_measures_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(floor, "measure_roof", refuse)
    monkeypatch.setattr(floor, "take_turns", refuse)
    words = ["--count", "--presets", "digits,mixture", "--batch", "4", "--width", "10"]
    assert floor.main(words) == 0
    table = capsys.readouterr().out
    assert floor.main(words) == 0
    assert capsys.readouterr().out == table
    assert "| digits | 4 | penalised |" in table
    assert "roof" not in table


def test_a_measured_row_has_its_share_of_the_roof(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    roof = Roof(products={"fp32": 1e9, "bf16": 2e9}, bytes_per_second=1e9)
    monkeypatch.setattr(floor, "measure_roof", lambda *_: roof)
    words = ["--presets", "mixture", "--batch", "4", "--rounds", "1", "--device", "cpu", "--json", f"{tmp_path / 'f'}"]
    assert floor.main(words) == 0
    row = json.loads((tmp_path / "f").read_text())["rows"]["mixture"]
    share = max(row["operations"] / 1e9, row["bytes_moved"] / 1e9) / row["seconds"]
    assert f"| {share:.0%} |" in capsys.readouterr().out


def test_a_batch_of_large_networks_is_halved_on_a_cpu_and_whole_on_a_gpu() -> None:
    assert floor.fit_batch(CASES["celeba"], 0.25, torch.device("cuda")) == 100
    batch = floor.fit_batch(CASES["celeba"], None, CPU)
    assert 4 <= batch < 100
    assert floor.fit_batch(CASES["digits"], None, CPU) == 64


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--presets", "digits,nothing"], "--presets has 'nothing', but must be some of cifar10"),
        (["--presets", "digits", "--table", "{page}"], "must have the lines '<!-- floor: begin -->'"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_measured(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Without markers\n")
    assert floor.main([word.format(page=page) for word in words]) == 2
    assert complaint in capsys.readouterr().err
