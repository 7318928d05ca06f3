"""Going on with runs whose checkpoints do not know a setting yet: what came later must not change them without a word.

Run: `make test ARGS=tests/unit/training/test_resume.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.distributed import World
from ali_dist.runs.checkpoint import copy_to_host
from ali_dist.runs.checkpoint_files import CheckpointMetadata
from ali_dist.runs.checkpoint_tensors import load_optimizer, optimizer_tensors
from ali_dist.training.captured_update import why_not_captured
from ali_dist.training.resume import _check_same_run
from ali_dist.training.update_rules import UPDATE_RULES


def changes_said(
    config: Config, *, saved: Config | None = None, without: tuple[str, ...] = (), ranks: tuple[int, int] = (1, 1)
) -> list[str]:
    """What is said on going on with a checkpoint of `saved` that lacks some settings.

    Args:
        config: Of the new start.
        saved: Of the checkpoint; None: the same.
        without: Dotted names that the checkpoint does not have.
        ranks: How many the checkpoint was saved by, and how many go on.
    """
    old: dict[str, Any] = (saved or config).to_mapping()
    for name in without:
        section, _, key = name.partition(".")
        del old[section][key]
    metadata = CheckpointMetadata(
        step=1, images_seen=1, epoch=0, seconds=0.0, restarts=0, fingerprint="data", world_size=ranks[0], config=old
    )
    return _check_same_run(config, metadata, "data", World(size=ranks[1]))


NEW = ("optim.eps_inside", "scale.batch_norm")


@pytest.mark.parametrize("preset", ["cifar10", "svhn", "celeba", "imagenet64", "mixture-paper"])
def test_an_old_run_of_a_papers_preset_goes_on_and_is_told_of_epsilon(preset):
    said = changes_said(from_mapping(load_preset(preset)), without=NEW)
    assert said == ["optim.eps_inside from False to True"]


@pytest.mark.parametrize("preset", ["digits", "digits-paper", "mixture"])
def test_an_old_run_of_any_other_preset_goes_on_without_a_word(preset):
    assert changes_said(from_mapping(load_preset(preset)), without=NEW) == []


def test_the_old_epsilon_can_be_kept():
    assert changes_said(from_mapping(load_preset("svhn"), {"optim.eps_inside": False}), without=NEW) == []


@pytest.mark.parametrize(
    ("ranks", "old", "new", "said"),
    [
        ((2, 2), None, "global", ["scale.batch_norm from 'local' to 'global'"]),
        ((2, 1), None, "global", ["scale.batch_norm from 'local' to 'global'"]),
        ((1, 2), None, "global", []),
        ((1, 2), None, "local", ["scale.batch_norm from 'global' to 'local'"]),
        ((2, 2), None, "local", []),
        ((2, 3), "global", "global", []),
        ((2, 2), "global", "local", ["scale.batch_norm from 'global' to 'local'"]),
        ((1, 1), "global", "local", []),
    ],
)
def test_other_statistics_of_batch_norm_are_said_where_they_are_other_ones(ranks, old, new, said):
    config = from_mapping(load_preset("digits"), {"scale.batch_norm": new})
    saved = None if old is None else from_mapping(load_preset("digits"), {"scale.batch_norm": old})
    without = ("scale.batch_norm",) if old is None else ()
    assert changes_said(config, saved=saved, without=without, ranks=ranks) == said


def test_adams_state_is_loaded_in_the_layout_of_its_weights():
    """Fused Adam reads weights, gradients and moments as they lie in memory: a file has none of a GPU's layout."""
    updates = 3

    def make_convolution() -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)

    def update(network: nn.Conv2d, optimizer: torch.optim.Optimizer) -> None:
        network(torch.ones(2, 4, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    unbroken, first = make_convolution(), make_convolution()
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.1, fused=True) for net in (unbroken, first)]
    for network, optimizer in zip((unbroken, first), optimizers, strict=True):
        for _ in range(updates):
            update(network, optimizer)
    saved = copy_to_host(optimizer_tensors(optimizers[1], dict(first.named_parameters())))
    assert saved["weight.exp_avg"].is_contiguous()

    second = make_convolution()
    second.load_state_dict({name: t.contiguous() for name, t in first.state_dict().items()})
    optimizer = torch.optim.Adam(second.parameters(), lr=0.1, fused=True)
    load_optimizer(optimizer, dict(second.named_parameters()), saved)
    assert optimizer.state[second.weight]["exp_avg"].stride() == second.weight.stride()
    update(unbroken, optimizers[0])
    update(second, optimizer)
    assert torch.equal(unbroken.weight, second.weight)


@pytest.mark.parametrize(
    ("changes", "ranks", "precision", "obstacle"),
    [
        ({}, 1, "bf16", None),
        ({"scale.cuda_graph": "off"}, 1, "bf16", "scale.cuda_graph is 'off'"),
        ({"scale.compile": True}, 1, "bf16", "scale.compile is true"),
        ({"optim.eps_inside": True}, 1, "bf16", None),
        ({"objective.update": "alternating"}, 1, "bf16", "'alternating'"),
        ({}, 2, "bf16", "several workers"),
        ({}, 1, "fp16", "fp16"),
    ],
)
def test_updates_are_replayed_only_where_everything_in_them_can_be_recorded(changes, ranks, precision, obstacle):
    config = from_mapping(load_preset("cifar10"), {"optim.eps_inside": False}, changes)
    rule = UPDATE_RULES["alternating" if config.objective.update == "alternating" else "scaled"]
    reason = why_not_captured(config, rule, precision, World(size=ranks))
    assert (reason is None) if obstacle is None else (reason is not None and obstacle in reason)
