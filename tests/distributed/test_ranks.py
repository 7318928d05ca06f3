"""World size is not a hyper-parameter: 2 and 3 ranks, with even and uneven lanes, equal 1 rank.

Run: `make test ARGS=tests/distributed/test_ranks.py`
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ali_dist.config.loading import from_mapping
from ali_dist.data.loader import open_batches
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World, average_buffers, check_replicas
from ali_dist.errors import InputError, Stopped
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.training import loop, train_batches
from tests.helpers.distributed import DistributedError, run_distributed
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, load_weights, relative_difference, tiny_config

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


def remove_batch_norm() -> None:
    """Take batch norm out of the networks for digits, in this process: it depends on how a batch is divided."""
    tables = ARCHITECTURES["digits"]

    def without_norm(table):
        return tuple(dataclasses.replace(row, norm=False, bias="channel") for row in table)

    ARCHITECTURES["digits"] = dataclasses.replace(
        tables, encoder=without_norm(tables.encoder), decoder=without_norm(tables.decoder)
    )


def train_rank(
    rank: int, size: int, mapping: dict, stop_before: int | None = None, keeps_norm: bool = False
) -> list[list[int]]:
    """Train one rank of a run; returns the sample ids of its batches."""
    if not keeps_norm:
        remove_batch_norm()
    recorder = BatchRecorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_batches, "open_batches", recorder.open_batches)
        try:
            loop.fit(from_mapping(mapping), StoppingContext(World(rank, rank, size), stop_before))
        except Stopped:
            assert stop_before is not None
    return recorder.ids


class BatchRecorder:
    """A source of batches that records which samples each of them has."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def open_batches(self, *args, **kwargs):
        self._source = open_batches(*args, **kwargs)
        return self

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def __enter__(self):
        self._source.__enter__()
        return self

    def __exit__(self, *error):
        return self._source.__exit__(*error)

    def __next__(self):
        batch = next(self._source)
        self.ids.append(batch.ids.tolist())
        return batch


def read_records(config) -> list[dict]:
    lines = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# The settings that lead to each update rule, or to a variant of it.
RULES = {
    "scaled": {"objective__r1": 0, "objective__r2": 0, "objective__loss": "nonsaturating"},
    "penalised": {},
    "lazy-penalty": {"objective__penalty_every": 3},
    "coupled": {"objective__r1": 0, "objective__r2": 0, "objective__loss": "hinge"},
    "alternating": {"objective__update": "alternating"},
    "all-cycles": {"objective__cycle_z": 0.5, "objective__cycle_samples": 1.0},
    "coupled-cycles": {
        "objective__r1": 0,
        "objective__r2": 0,
        "objective__update": "coupled",
        "objective__cycle_z": 0.5,
        "objective__cycle_samples": 1.0,
    },
}


def train_all(rank: int, size: int, mappings: dict[str, dict]) -> dict[str, list[list[int]]]:
    """Train one rank of each of several runs; returns the sample ids of its batches, by run."""
    return {name: train_rank(rank, size, mapping) for name, mapping in mappings.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Every update rule at every world size: the configs, and the sample ids of each rank's batches.

    3 ranks own 2, 1 and 1 of the 4 lanes.
    """
    folder = tmp_path_factory.mktemp("ranks")
    # Adam divides by the gradient's size: without a larger epsilon, rounding of a vanishing gradient becomes a step,
    # and a gradient of a wrong size goes unnoticed.
    common = {"data__url": str(digits), "data__lanes": 4, "optim__eps": 1e-2}
    configs = {
        size: {
            name: tiny_config(folder, run__name=f"{name}-{size}", **common, **changes)
            for name, changes in RULES.items()
        }
        for size in (1, 2, 3)
    }
    ids = {}
    for size, by_name in configs.items():
        mappings = {name: config.to_mapping() for name, config in by_name.items()}
        ids[size] = run_distributed(train_all, size, size, mappings, timeout=240)
    return configs, ids


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_several_ranks_equal_one(trained, rule, world_size):
    configs, ids = trained
    by_rank = [ids[world_size][rank][rule] for rank in range(world_size)]
    global_batches = [[i for batches in by_rank for i in batches[step]] for step in range(8)]
    assert global_batches == ids[1][0][rule], "the global batches differ"
    one = configs[1][rule]
    several = configs[world_size][rule]
    assert relative_difference(load_weights(one), load_weights(several)) < 1e-4
    for of_one, of_several in zip(read_records(one), read_records(several), strict=True):
        for key in ("d_loss", "g_loss", "d_q", "d_p", "penalty", "cycle"):
            assert of_several[key] == pytest.approx(of_one[key], rel=1e-4, abs=1e-5), key


NO_PENALTY: dict[str, object] = {"objective__r1": 0, "objective__r2": 0}
NO_CYCLES: dict[str, object] = {"objective__cycle_x": 0, "objective__cycle_samples": 0}
VARIANTS: dict[str, dict[str, object]] = {
    # One wrapper around all networks, and one around each, the embedding among them.
    "conditional-penalised": {"model__condition": "classes"},
    "conditional-coupled": {"model__condition": "classes", **NO_PENALTY, "objective__update": "coupled"},
    "semi-supervised": {
        "objective__supervised": 2.0,
        "objective__entropy": 0.5,
        "objective__balance": 3.0,
        "data__labelled": 50,
    },
    "semi-supervised-coupled": {"objective__supervised": 2.0, **NO_PENALTY, "objective__update": "coupled"},
    "packing": {"objective__packing": 2},
    "packing-scaled": {"objective__packing": 3, **NO_PENALTY},
    "unary": {"objective__unary": True, **NO_PENALTY},
    "gan": {"objective__game": "gan", **NO_CYCLES},
    # These two take the decoder of the run before them.
    "post-hoc": NO_CYCLES,
    "inverse": {"objective__game": "inverse", **NO_CYCLES, **NO_PENALTY},
}


@pytest.fixture(scope="module")
def trained_variants(tmp_path_factory, digits):
    """Every variant at 1 and 2 ranks."""
    folder = tmp_path_factory.mktemp("variants")
    common = {"data__url": str(digits), "data__lanes": 4, "optim__eps": 1e-2, "run__images": 96}

    def make_config(name: str, size: int):
        decoder = {"model__decoder_from": str(folder / "runs" / "gan-1")} if name in ("post-hoc", "inverse") else {}
        return tiny_config(folder, run__name=f"{name}-{size}", **{**common, **decoder, **VARIANTS[name]})

    configs = {size: {name: make_config(name, size) for name in VARIANTS} for size in (1, 2)}
    for size, by_name in configs.items():
        mappings = {name: config.to_mapping() for name, config in by_name.items()}
        run_distributed(train_all, size, size, mappings, timeout=240)
    return configs


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_equal_one_in_every_game(trained_variants, variant):
    one = trained_variants[1][variant]
    two = trained_variants[2][variant]
    weights = [load_weights(one), load_weights(two)]
    assert relative_difference(*weights) < 1e-4
    for network in sorted({name.partition(".")[0] for name in weights[0]}):
        of_network = [{n: t for n, t in tensors.items() if n.startswith(network)} for tensors in weights]
        assert relative_difference(*of_network) < 1e-4, network
    for of_one, of_two in zip(read_records(one), read_records(two), strict=True):
        for key in ("d_loss", "g_loss", "d_q", "d_p", "penalty", "cycle", "supervised"):
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-4, abs=1e-5), key


def test_a_broken_run_continues_at_another_world_size_with_the_same_batches(tmp_path, digits):
    changes = {"data__url": str(digits), "data__lanes": 4, "optim__eps": 1e-4}
    unbroken, moved = (tiny_config(tmp_path, run__name=name, **changes) for name in ("unbroken", "moved"))
    (unbroken_batches,) = run_distributed(train_rank, 1, 1, unbroken.to_mapping())
    # Ranks agree on stopping at update 0, and then at update 10.
    by_rank = run_distributed(train_rank, 3, 3, moved.to_mapping(), 1)
    (batches_after,) = run_distributed(train_rank, 1, 1, moved.to_mapping())
    batches_before = [sum((by_rank[rank][step] for rank in range(3)), []) for step in range(len(by_rank[0]))]
    assert batches_before + batches_after == unbroken_batches
    assert relative_difference(load_weights(unbroken), load_weights(moved)) < 1e-4


def test_a_broken_run_of_two_ranks_continues_bit_for_bit(tmp_path, digits):
    changes = {"data__url": str(digits), "run__images": 480, "model__discriminator_dropout": 0.2}
    unbroken, broken = (tiny_config(tmp_path, run__name=name, **changes) for name in ("unbroken", "broken"))
    run_distributed(train_rank, 2, 2, unbroken.to_mapping(), None, True)
    run_distributed(train_rank, 2, 2, broken.to_mapping(), 1, True)
    run_distributed(train_rank, 2, 2, broken.to_mapping(), None, True)
    parameters = [
        {name: t for name, t in load_weights(config).items() if "running" not in name} for config in (unbroken, broken)
    ]
    assert_bitwise_equal(*parameters)
    # Averaging batch-norm statistics at a checkpoint commutes with later updates only up to rounding.
    assert relative_difference(load_weights(unbroken), load_weights(broken)) < 1e-7


def compare_gradients(rank: int) -> float:
    """Differentiate D's loss with autograd.grad, and by backward.

    Returns:
        On rank 0, the largest difference between the two; on other ranks, the largest difference between the gradient
        by backward here and on rank 0.
    """
    from ali_dist.model.build import build_ali
    from ali_dist.model.gradient_gates import PassThrough
    from ali_dist.model.losses import OBJECTIVES
    from ali_dist.model.networks import NetworkSizes
    from ali_dist.training.ddp import wrap_for_ddp
    from ali_dist.training.update_rules import UPDATE_RULES

    ali = build_ali(ARCHITECTURES["mixture"], (2,), NetworkSizes(latent=2, width=0.1))
    networks = wrap_for_ddp(ali, UPDATE_RULES["coupled"], torch.device("cpu"), World(rank, rank, 2))
    g = torch.Generator().manual_seed(rank)
    output = networks(*(torch.randn(4, 2, generator=g) for _ in range(3)), PassThrough())
    loss = OBJECTIVES["nonsaturating"].d_loss(output.d_q, output.d_p).mean()
    (by_grad,) = torch.autograd.grad(loss, ali.discriminator_parameters()[:1], retain_graph=True)
    loss.backward(inputs=ali.discriminator_parameters())
    by_backward = ali.discriminator_parameters()[0].grad
    assert by_backward is not None
    of_rank_0 = by_backward.clone()
    dist.broadcast(of_rank_0, src=0)
    return float(((of_rank_0 if rank else by_grad) - by_backward).abs().max())


def test_only_backward_reduces_gradients_over_ranks():
    """autograd.grad of parameters is silently not reduced; `.backward(inputs=...)` is, and update rules rely on it."""
    grad_from_backward, backward_between_ranks = run_distributed(compare_gradients, 2)
    assert grad_from_backward > 1e-4
    assert backward_between_ranks == 0.0


def check_unequal_replicas(rank: int) -> None:
    module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(module.weight, 1.0 + 1e-7 * rank)
    check_replicas(module, World(rank, rank, 2))


def test_replicas_that_differ_in_the_last_bit_are_noticed():
    with pytest.raises(DistributedError, match="weights differ"):
        run_distributed(check_unequal_replicas, 2)


def average_statistics(rank: int) -> float:
    norm = torch.nn.BatchNorm1d(1)
    assert norm.running_mean is not None
    norm.running_mean.fill_(float(rank))
    average_buffers(norm, [0.75, 0.25][rank], World(rank, rank, 2))
    return norm.running_mean.item()


def test_statistics_are_averaged_by_each_ranks_share_of_the_batch():
    assert run_distributed(average_statistics, 2) == [0.25, 0.25]


def train_in_own_folder(rank: int, mapping: dict, folders: list[str]) -> str:
    """Train one rank of two in a run folder of its own; returns how that was refused."""
    config = from_mapping(mapping, {"run": {"dir": folders[rank]}})
    try:
        loop.fit(config, StoppingContext(World(rank, rank, 2)))
    except InputError as error:
        return str(error)
    return "trained"


def test_ranks_that_see_different_checkpoints_refuse_to_start(tmp_path, digits):
    config = tiny_config(tmp_path, data__url=str(digits), run__images=96)
    run_distributed(train_rank, 1, 1, config.to_mapping(), None, True)
    longer = tiny_config(tmp_path, data__url=str(digits)).to_mapping()
    refusals = run_distributed(train_in_own_folder, 2, longer, [config.run.dir, str(tmp_path / "empty")])
    assert all("not shared" in refusal for refusal in refusals)
