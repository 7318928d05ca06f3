"""Update rules: which one is chosen, where each is refused, and what compiling and several ranks make of its flags.

That the rules are exact where they are not refused is shown in `test_step.py` and `test_variants.py`.
Run: `make test ARGS=tests/unit/training/test_update_rules.py`
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ali_dist.config import ObjectiveConfig
from ali_dist.distributed import World
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI
from ali_dist.training.ddp import wrap_for_ddp
from ali_dist.training.state import build_train_state
from ali_dist.training.update_rules import AUTOMATIC_RULES, UPDATE_RULES, Situation, choose_update_rule
from tests.helpers.networks import CPU, make_networks
from tests.helpers.runs import index_without_shards, tiny_config
from tests.helpers.variants import VARIANTS

# ---- which rule is exact where -----------------------------------------------------------------------------------

# What a situation may have, and the word by which a refusal names it.
FEATURES = {
    "r1": "objective.r1",
    "r2": "objective.r2",
    "hinge": "objective.loss 'hinge'",
    "unary": "objective.unary",
    "entropy": "objective.entropy",
    "balance": "objective.balance",
    "batch norm": "batch norm",
    "fp16": "fp16",
}
# The features that make a rule inexact by themselves.
REFUSED_FEATURES = {
    "scaled": set(FEATURES) - {"hinge"},
    "coupled": {"r1", "r2"},
    "penalised": {"unary", "batch norm"},
    "alternating": set[str](),
}
# No rule can take a gradient penalty of three logits, or of a discriminator that couples samples.
IMPOSSIBLE_PAIRS = [{penalty, obstacle} for penalty in ("r1", "r2") for obstacle in ("unary", "batch norm")]


def test_every_rule_of_a_game_has_its_row() -> None:
    assert REFUSED_FEATURES.keys() == UPDATE_RULES.keys() - {"inverse"}


def situation_with(*features: str, update: str = "auto", penalty_every: int = 1) -> Situation:
    """Make a situation that has these features and no others."""
    has_class_terms = "entropy" in features or "balance" in features
    objective = ObjectiveConfig(
        update=update,  # type: ignore[arg-type]
        loss="hinge" if "hinge" in features else "nonsaturating",
        r1=0.5 * ("r1" in features),
        r2=0.5 * ("r2" in features),
        penalty_every=penalty_every,
        unary="unary" in features,
        supervised=1.0 * has_class_terms,
        entropy=0.5 * ("entropy" in features),
        balance=0.5 * ("balance" in features),
    )
    precision = "fp16" if "fp16" in features else "fp32"
    return Situation(objective=objective, couples_samples="batch norm" in features, precision=precision)


def features_against(rule: str, features: set[str]) -> set[str]:
    """Those of the features for which the rule has to be refused."""
    against = features & REFUSED_FEATURES[rule]
    for pair in IMPOSSIBLE_PAIRS:
        if pair <= features:
            against |= pair
    return against


def all_situations() -> Iterator[set[str]]:
    for count in range(len(FEATURES) + 1):
        yield from map(set, itertools.combinations(FEATURES, count))


@pytest.mark.parametrize("rule", REFUSED_FEATURES)
def test_a_rule_is_refused_in_exactly_the_situations_where_it_is_not_exact(rule: str) -> None:
    """In all of the 256 situations; each refusal is one sentence that names a feature which is to blame."""
    for features in all_situations():
        situation = situation_with(*features)
        against = features_against(rule, features)
        refusal = UPDATE_RULES[rule].why_not(situation)
        if not against:
            assert refusal is None, (features, refusal)
            assert choose_update_rule(rule, situation) is UPDATE_RULES[rule]
            continue
        assert refusal is not None, features
        assert any(FEATURES[feature] in refusal for feature in against), (features, refusal)
        assert refusal.endswith(".")
        assert "\n" not in refusal
        with pytest.raises(InputError) as raised:
            choose_update_rule(rule, situation)
        assert str(raised.value) == refusal


@pytest.mark.parametrize(
    ("rule", "feature"),
    [(rule, feature) for rule, features in REFUSED_FEATURES.items() for feature in sorted(features)],
)
def test_a_refusal_names_the_rule_and_the_one_feature_that_is_in_its_way(rule: str, feature: str) -> None:
    refusal = UPDATE_RULES[rule].why_not(situation_with(feature))
    assert refusal is not None
    assert f"objective.update is {rule!r}" in refusal
    assert FEATURES[feature] in refusal
    assert "'auto'" in refusal


def test_auto_takes_the_first_rule_that_is_exact_in_every_situation() -> None:
    assert AUTOMATIC_RULES == ("scaled", "coupled", "penalised"), "the cheapest comes first"
    for features in all_situations():
        exact = [rule for rule in AUTOMATIC_RULES if not features_against(rule, features)]
        if exact:
            assert choose_update_rule("auto", situation_with(*features)).name == exact[0], features
        else:
            with pytest.raises(InputError, match=r"objective\.r1"):
                choose_update_rule("auto", situation_with(*features))


@pytest.mark.parametrize(
    ("update", "loss", "batch_norm", "penalty", "precision", "expected"),
    [
        ("auto", "nonsaturating", False, False, "fp32", "scaled"),
        ("auto", "relativistic", False, True, "bf16", "penalised"),
        ("auto", "nonsaturating", True, False, "fp32", "coupled"),
        ("auto", "hinge", False, False, "fp32", "scaled"),
        ("auto", "nonsaturating", False, False, "fp16", "coupled"),
        ("alternating", "hinge", True, False, "fp16", "alternating"),
    ],
)
def test_the_rule_of_common_situations(
    update: Any, loss: Any, batch_norm: bool, penalty: bool, precision: str, expected: str
) -> None:
    objective = ObjectiveConfig(update=update, loss=loss, r1=1.0 * penalty)
    situation = Situation(objective=objective, couples_samples=batch_norm, precision=precision)
    assert choose_update_rule(update, situation).name == expected


@pytest.mark.parametrize("penalty", ["r1", "r2"])
@pytest.mark.parametrize("rule", ["scaled", "coupled"])
def test_a_rule_without_a_penalty_is_refused_even_where_the_penalty_is_due_only_now_and_then(
    rule: str, penalty: str
) -> None:
    """It would leave the penalty out without a word."""
    situation = situation_with(penalty, update=rule, penalty_every=4)
    with pytest.raises(InputError) as refused:
        choose_update_rule(rule, situation)
    assert f"objective.{penalty} is 0.5" in str(refused.value)
    assert "'penalised'" in str(refused.value)


def test_the_inverse_mapping_has_a_rule_of_its_own_that_no_other_game_can_take() -> None:
    inverse = Situation(objective=ObjectiveConfig(game="inverse"), couples_samples=False, precision="fp32")
    for choice in ("auto", "scaled", "coupled", "penalised", "alternating"):
        assert choose_update_rule(choice, inverse) is UPDATE_RULES["inverse"]
    for game in ("ali", "gan"):
        other = Situation(objective=ObjectiveConfig(game=game), couples_samples=False, precision="fp32")
        with pytest.raises(InputError, match=f"objective.game is '{game}'"):
            choose_update_rule("inverse", other)


# ---- what the flags of a rule decide -----------------------------------------------------------------------------


def test_the_flags_of_every_rule() -> None:
    flags = {name: (rule.backward_passes, rule.reuses_discriminator_graph) for name, rule in UPDATE_RULES.items()}
    assert flags == {
        "scaled": (1, False),
        "coupled": (2, True),
        "penalised": (1, True),
        "alternating": (2, False),
        "inverse": (1, False),
    }
    assert all(rule.name == name for name, rule in UPDATE_RULES.items())


def compiled_networks(tmp_path: Path, update: str, r1: float, r2: float) -> dict[str, bool]:
    """Which networks of a run are compiled; compiling itself happens only when they are first called."""
    changes: dict[str, Any] = {
        "objective__update": update,
        "objective__r1": r1,
        "objective__r2": r2,
        "scale__compile": True,
    }
    state = build_train_state(tiny_config(tmp_path, **changes), index_without_shards((1, 8, 8)), CPU, World())
    networks = state.step.networks
    assert isinstance(networks, ALI)
    parts = {"encoder": networks.encoder, "decoder": networks.decoder, "discriminator": networks.discriminator}
    return {name: isinstance(part, torch._dynamo.OptimizedModule) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("update", "r1", "r2", "compiles_d"),
    [
        ("scaled", 0, 0, True),
        ("coupled", 0, 0, False),
        ("penalised", 0, 0, False),
        ("penalised", 0.5, 0.5, False),
        ("alternating", 0, 0, True),
        ("alternating", 0.5, 0, False),
        ("alternating", 0, 0.5, False),
    ],
)
def test_the_discriminator_stays_eager_where_its_graph_is_used_twice_or_a_penalty_differentiates_it(
    tmp_path: Path, update: str, r1: float, r2: float, compiles_d: bool
) -> None:
    expected = {"encoder": True, "decoder": True, "discriminator": compiles_d}
    assert compiled_networks(tmp_path, update, r1, r2) == expected


@pytest.mark.parametrize("reuses", [False, True])
def test_a_new_rule_decides_by_its_flag_alone_whether_the_discriminator_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reuses: bool
) -> None:
    rule = dataclasses.replace(UPDATE_RULES["alternating"], reuses_discriminator_graph=reuses)
    monkeypatch.setitem(UPDATE_RULES, "alternating", rule)
    assert compiled_networks(tmp_path, "alternating", 0, 0)["discriminator"] is not reuses


@pytest.fixture
def process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrapped_modules(module: nn.Module) -> list[nn.Module]:
    """What lies directly inside each wrapper."""
    return [wrapper.module for wrapper in module.modules() if isinstance(wrapper, DistributedDataParallel)]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_one_backward_pass_takes_one_wrapper_and_more_take_one_for_each_network(rule: str) -> None:
    ali = VARIANTS["conditional"].build()
    networks = wrap_for_ddp(ali, UPDATE_RULES[rule], CPU, World(size=2))  # the group reduces over this rank alone
    if UPDATE_RULES[rule].backward_passes == 1:
        assert isinstance(networks, DistributedDataParallel)
        assert wrapped_modules(networks) == [ali]
    else:
        assert isinstance(networks, ALI)
        assert wrapped_modules(networks) == [ali.encoder, ali.decoder, ali.discriminator, ali.embedding]


@pytest.mark.usefixtures("process_group")
def test_a_frozen_network_is_not_wrapped() -> None:
    """It has no gradients to reduce, which DistributedDataParallel refuses."""
    ali = make_networks()
    ali.decoder.requires_grad_(False)
    networks = wrap_for_ddp(ali, UPDATE_RULES["coupled"], CPU, World(size=2))
    assert wrapped_modules(networks) == [ali.encoder, ali.discriminator]
    assert networks.get_submodule("decoder") is ali.decoder


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_one_rank_needs_no_wrapper(rule: str) -> None:
    ali = make_networks()
    assert wrap_for_ddp(ali, UPDATE_RULES[rule], CPU, World()) is ali
