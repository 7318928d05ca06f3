"""The step bench: what it compares is comparable, what it computes is right, and what it writes is legible.

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
from ali_dist.config.loading import load_preset
from ali_dist.model.ali import ALI
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, TrainBatch
from tests.bench import step as bench
from tests.bench.contest import Contestant, TurnTimes, summarize_turns, take_turns
from tests.bench.reference_step import STYLES, UsualStep
from tests.helpers.networks import copy_state, make_inputs, make_networks, make_step, trained_parameters

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"model.width": 0.1, "model.latent_size": 4}
# The update rules that are measured for each preset.
RULES = {
    "digits": ["penalised", "alternating"],
    "cifar10": ["scaled", "coupled", "alternating"],
    "svhn": ["coupled", "alternating"],
    "celeba": ["coupled", "alternating"],
}


def small_settings(preset: str, **changes: Any) -> bench.Settings:
    return bench.Settings(**{"preset": preset, "batch": 2, "rounds": 2, "updates": 1, "device": "cpu", **changes})


@pytest.mark.parametrize("preset", RULES)
def test_every_step_starts_from_the_same_weights_and_moves_all_of_its_own(preset: str) -> None:
    """A shared or frozen network would make a step look faster than it is."""
    contestants = bench.make_contestants(small_settings(preset), CPU, **SMALL)
    assert [c.name for c in contestants] == [*STYLES, "usual, our layers", *RULES[preset]]
    start = copy_state(contestants[0].networks)
    for contestant in contestants:
        before = copy_state(contestant.networks)
        assert before.keys() == start.keys()
        assert all(torch.equal(before[name], start[name]) for name in start)
        contestant.update()
        after = dict(contestant.networks.named_parameters())
        for part in ("encoder", "decoder", "discriminator"):
            names = [name for name in after if name.startswith(part)]
            moved = [name for name in names if not torch.equal(before[name], after[name])]
            # A gradient may be 0, as that of the last bias of D, or behind dropout.
            assert len(moved) > 0.8 * len(names), part


def test_steps_can_be_chosen_and_are_measured_beside_the_usual_one() -> None:
    """Compiling every step would take too long."""
    contestants = bench.make_contestants(small_settings("cifar10", steps=("scaled",)), CPU, **SMALL)
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
    """With every term, it has the same weights after two updates as our `alternating`."""
    # With a small eps, Adam's first steps would be mere signs.
    optim = OptimConfig(lr_d=1e-3, lr_g=1e-3, eps=1e-3)

    def update_twice(make: Callable[[ALI], Callable[..., object]]) -> dict[str, torch.Tensor]:
        # In evaluation mode it does not matter whether z and z_hat are decoded in one batch or in two.
        ali = make_networks(cycle=weights.cycle_x > 0).eval()
        update = make(ali)
        for _ in range(2):
            update(TrainBatch(*make_inputs()), weights)
        return {name: p.detach() for name, p in ali.named_parameters()}

    def make_alternating(ali: ALI) -> Step:
        betas = (optim.beta1, optim.beta2)
        adam = torch.optim.Adam(trained_parameters(ali), lr=optim.lr_g, betas=betas, eps=optim.eps)
        return make_step(ali, "alternating", loss, adam)

    usual = update_twice(lambda ali: UsualStep(ali, loss, optim, Precision("fp32", CPU)))
    alternating = update_twice(make_alternating)
    for name, weight in usual.items():
        torch.testing.assert_close(weight, alternating[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(r1=0.7, r2=0.3)], ids=["plain", "penalised"])
def test_every_style_moves_d_alike_and_e_and_g_by_the_new_d(style: str, weights: LossWeights) -> None:
    optim = OptimConfig(lr_d=1e-3, lr_g=1e-3, eps=1e-3)
    moved = {}
    for name in ("usual", style):
        ali = make_networks().eval()
        UsualStep(ali, "nonsaturating", optim, Precision("fp32", CPU), style=name)(TrainBatch(*make_inputs()), weights)
        moved[name] = {key: p.detach() for key, p in ali.named_parameters()}
    for key, weight in moved["usual"].items():
        if key.startswith("discriminator") or style != "usual, graph kept":  # whose generators get a draw of their own
            torch.testing.assert_close(moved[style][key], weight)


def test_contestants_take_turns_after_a_warm_up_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    contestants = [Contestant(n, partial(calls.append, n), nn.Identity(), ()) for n in names]
    progress: list[str] = []
    times = take_turns(contestants, 3, 2, CPU, progress.append)
    turns = [calls[start : start + 3] for start in range(0, len(calls), 3)]  # one update to warm up, two that count
    assert turns == [[n] * 3 for n in "abcbcacab"]
    assert [len(times[n].seconds) for n in names] == [3, 3, 3]
    assert len(progress) == 3


def test_time_is_per_update_and_the_warm_up_does_not_count() -> None:
    now = [0.0]

    def update() -> None:
        now[0] += 0.5

    contestant = Contestant("a", update, nn.Identity(), ())
    times = take_turns([contestant], 2, 4, CPU, lambda line: None, lambda: now[0])
    assert times["a"].seconds == [0.5, 0.5]


def test_ratios_are_taken_within_rounds() -> None:
    """A round in which the machine is twice as slow for all does not change them; ratios of medians would change."""
    times = {"usual": TurnTimes([2.0, 4.0, 3.0]), "ours": TurnTimes([1.0, 2.0, 1.0])}
    usual, ours = summarize_turns(times, "usual", 100)
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


@pytest.mark.parametrize("preset", RULES)
def test_the_command_prints_a_row_for_each_step_and_writes_them_as_json(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The command has no option for small networks, and those of CelebA take many seconds.
    monkeypatch.setattr(bench, "load_preset", lambda name: {**load_preset(name), **SMALL})
    file = tmp_path / "bench.json"
    options = f"--preset {preset} --batch 2 --rounds 2 --updates 1 --device cpu --precision fp32 --json {file}"
    assert bench.main(options.split()) == 0
    output = capsys.readouterr().out
    result = json.loads(file.read_text(encoding="utf-8"))
    assert [row["step"] for row in result["rows"]] == [*STYLES, "usual, our layers", *RULES[preset]]
    assert output == bench.format_table(result) + "\n"
    assert sum(line.startswith("ratio: ") for line in output.splitlines()) == 1
    for row in result["rows"]:
        assert len(row["seconds_by_round"]) == 2
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds_per_update"])
        assert any(line.startswith(f"{row['step']} ") for line in output.splitlines())
    assert result["settings"]["batch"] == 2
    assert {"date", "cpu", "threads", "torch", "python", "precision"} <= result["conditions"].keys()


def test_columns_of_the_table_are_aligned() -> None:
    result = {
        "settings": dataclasses.asdict(small_settings("digits")),
        "conditions": bench.describe_conditions(CPU, "fp32"),
        "rows": summarize_turns({"usual": TurnTimes([10.0]), "alternating": TurnTimes([0.5], 123_456_789)}, "usual", 4),
    }
    lines = bench.format_table(result).splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("step"))
    assert len({len(line) for line in lines[heading : heading + 3]}) == 1
    assert lines[heading + 2].endswith(" 123")


def test_cpu_time_on_a_gpu_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing about a GPU; the refusal comes before anything is computed."""
    monkeypatch.setattr(bench, "choose_device", lambda name, rank: torch.device("cuda", 0))
    assert bench.main(["--clock", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--clock" in err
    assert err.count("\n") == 1


def test_a_gpu_that_is_absent_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert bench.main(["--device", "cuda"]) == 2
    assert "scale.device" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--preset no-such", "--rounds 0", "--updates x", "--batch -1"])
def test_wrong_options_end_with_exit_code_2(options: str) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(options.split())
    assert ended.value.code == 2
