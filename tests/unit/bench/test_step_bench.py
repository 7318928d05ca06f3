"""The step bench: it compares what is comparable, computes it right, and writes what can be read.

Run: `make test ARGS=tests/unit/bench/test_step_bench.py`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ali_dist.config import OptimConfig
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES
from tests.bench import step as bench
from tests.bench.contest import Contestant, Measured, summarise, take_turns
from tests.bench.reference_step import UsualStep
from tests.helpers.networks import BATCH, inputs, networks

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"model.width": 0.1, "model.latent_size": 4}
UPDATES = {
    "digits": ["penalised", "alternating"],
    "cifar10": ["scaled", "coupled", "alternating"],
    "svhn": ["coupled", "alternating"],
    "celeba": ["coupled", "alternating"],
}


def small(preset: str, **changes: Any) -> bench.Settings:
    return bench.Settings(**{"preset": preset, "batch": 2, "rounds": 2, "updates": 1, "device": "cpu", **changes})


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("preset", UPDATES)
def test_every_step_starts_from_the_same_weights_and_moves_all_of_its_own(preset: str) -> None:
    """A shared or frozen network would make a step look faster than it is."""
    contestants = bench.make_contestants(small(preset), CPU, **SMALL)
    assert [c.name for c in contestants] == ["usual", "usual, our layers", *UPDATES[preset]]
    start = snapshot(contestants[0].networks)
    for contestant in contestants:
        before = snapshot(contestant.networks)
        assert before.keys() == start.keys()
        assert all(torch.equal(before[name], start[name]) for name in start)
        contestant.update()
        after = dict(contestant.networks.named_parameters())
        for part in ("encoder", "decoder", "discriminator"):
            mine = [name for name in after if name.startswith(part)]
            moved = [name for name in mine if not torch.equal(before[name], after[name])]
            assert len(moved) > 0.8 * len(mine), part  # a gradient can be 0: of D's last bias, behind dropout


def test_some_of_the_steps_are_measured_beside_the_usual_one() -> None:
    """Where compiling every step would take too long."""
    contestants = bench.make_contestants(small("cifar10", steps=("scaled",)), CPU, **SMALL)
    assert [c.name for c in contestants] == ["usual", "scaled"]


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        ("nonsaturating", LossWeights()),
        ("relativistic", LossWeights(r1=0.7, r2=0.3, cycle_x=2.0, cycle_z=0.5, cycle_samples=1.5)),
        ("hinge", LossWeights(r2=0.3, cycle_x=2.0)),
    ],
)
def test_the_usual_step_is_the_alternating_update(loss: str, weights: LossWeights) -> None:
    """The step that ours is compared with computes what our `alternating` does: the same weights after two updates."""
    optim = OptimConfig(lr_d=1e-3, lr_g=1e-3, eps=1e-3)  # a large eps: Adam's first steps are no mere signs
    precision = Precision("fp32", CPU)

    def after_two(make: Callable[[Any], Callable[..., object]]) -> dict[str, torch.Tensor]:
        # Batch norm by its running statistics: decoding z and z_hat in one batch or in two is then the same.
        ali = networks(cycle=weights.cycle_x > 0).eval()
        update = make(ali)
        for _ in range(2):
            update(TrainBatch(*inputs()), weights)
        return {name: p.detach() for name, p in ali.named_parameters()}

    def ours(ali: Any) -> Step:
        groups = [*ali.generator_parameters(), *ali.discriminator_parameters()]
        adam = torch.optim.Adam(groups, lr=optim.lr_g, betas=(optim.beta1, optim.beta2), eps=optim.eps)
        return Step(UPDATE_RULES["alternating"], loss, ali, ali, adam, precision, global_batch_size=BATCH)

    usual, alternating = after_two(lambda ali: UsualStep(ali, loss, optim, precision)), after_two(ours)
    for name, mine in usual.items():
        torch.testing.assert_close(mine, alternating[name], rtol=1e-3, atol=1e-6)


def test_contestants_take_turns_after_a_warm_up_and_another_begins_each_round() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    contestants = [Contestant(n, partial(calls.append, n), nn.Identity(), ()) for n in names]
    lines: list[str] = []
    measured = take_turns(contestants, 3, 2, CPU, lines.append)
    turns = [calls[start : start + 3] for start in range(0, len(calls), 3)]  # one update to warm up, two that count
    assert turns == [[n] * 3 for n in "abcbcacab"]
    assert [len(measured[n].seconds) for n in names] == [3, 3, 3]
    assert len(lines) == 3


def test_time_is_per_update_and_the_warm_up_does_not_count() -> None:
    now = [0.0]

    def update() -> None:
        now[0] += 0.5

    contestant = Contestant("a", update, nn.Identity(), ())
    measured = take_turns([contestant], 2, 4, CPU, lambda line: None, lambda: now[0])
    assert measured["a"].seconds == [0.5, 0.5]


def test_ratios_are_taken_within_rounds() -> None:
    """A round in which the machine was twice as slow for all leaves ratios alone; ratios of medians would not."""
    measured = {"usual": Measured([2.0, 4.0, 3.0]), "ours": Measured([1.0, 2.0, 1.0])}
    usual, ours = summarise(measured, "usual", 100)
    assert (usual["ratio"], usual["ratio_min"], usual["ratio_max"]) == (1.0, 1.0, 1.0)
    assert (ours["ratio"], ours["ratio_min"], ours["ratio_max"]) == (2.0, 2.0, 3.0)
    assert (usual["seconds_per_update"], usual["images_per_second"]) == (3.0, pytest.approx(100 / 3))
    assert (ours["step"], ours["seconds_by_round"], ours["peak_bytes"]) == ("ours", [1.0, 2.0, 1.0], None)


def test_resident_bytes_count_weights_gradients_and_moments() -> None:
    net = nn.Linear(10, 5)
    adam = torch.optim.Adam(net.parameters())
    contestant = Contestant("a", lambda: None, net, (adam,))
    weights = 4 * 55
    assert contestant.resident_bytes() == weights
    net(torch.ones(1, 10)).sum().backward()
    assert contestant.resident_bytes() == 2 * weights
    adam.step()
    assert contestant.resident_bytes() == 4 * weights + 2 * 4  # two moments, and a step count for each tensor


@pytest.mark.parametrize("preset", UPDATES)
def test_the_command_prints_a_row_for_each_step_and_writes_them_as_json(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    options = f"--preset {preset} --batch 2 --rounds 2 --updates 1 --device cpu --precision fp32 --json {file}"
    assert bench.main(options.split()) == 0
    shown = capsys.readouterr().out
    result = json.loads(file.read_text(encoding="utf-8"))
    assert [row["step"] for row in result["rows"]] == ["usual", "usual, our layers", *UPDATES[preset]]
    assert shown == bench.table(result) + "\n"
    assert sum(line.startswith("ratio: ") for line in shown.splitlines()) == 1
    for row in result["rows"]:
        assert len(row["seconds_by_round"]) == 2
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds_per_update"])
        assert any(line.startswith(f"{row['step']} ") for line in shown.splitlines())
    assert result["settings"]["batch"] == 2
    assert {"date", "cpu", "threads", "torch", "python", "precision"} <= result["conditions"].keys()


def test_columns_of_the_table_are_aligned() -> None:
    result = {
        "settings": dataclasses.asdict(small("digits")),
        "conditions": bench.conditions(CPU, "fp32"),
        "rows": summarise({"usual": Measured([10.0]), "alternating": Measured([0.5], 123_456_789)}, "usual", 4),
    }
    lines = bench.table(result).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("step"))
    assert len({len(line) for line in lines[head : head + 3]}) == 1
    assert lines[head + 2].endswith(" 123")


def test_a_clock_that_measures_nothing_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time says nothing about a GPU; nothing is computed before that is said."""
    monkeypatch.setattr(bench, "choose_device", lambda name, rank: torch.device("cuda", 0))
    assert bench.main(["--clock", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--clock" in err
    assert err.count("\n") == 1


def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert bench.main(["--device", "cuda"]) == 2
    assert "scale.device" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--preset no-such", "--rounds 0", "--updates x", "--batch -1"])
def test_wrong_options_end_with_exit_code_2(options: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench.main(options.split())
    assert exit_.value.code == 2
