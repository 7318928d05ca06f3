"""Dropout masks: functions of (seed, update, pass, layer, part, row of the global batch), whoever computes the row.

Run: `make test ARGS=tests/unit/training/test_dropout_masks.py`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ali_dist.data.shards.index import Index
from ali_dist.distributed import World
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.architectures.schema import linear
from ali_dist.model.layers import Dropout
from ali_dist.training.randomness import DropoutMasks
from ali_dist.training.state import build_train_state
from ali_dist.training.step import TrainBatch, loss_weights_at
from tests.helpers.networks import CPU
from tests.helpers.runs import tiny_config

GLOBAL_ROWS, PARTS, P = 12, 2, 0.3
SHAPES = ((3, 5, 5), (7,), (64,))  # sizes that do and do not fill the generator's counts
WHOLE = slice(0, GLOBAL_ROWS)
Draw = Callable[..., list[Tensor]]


@pytest.fixture(params=["host", "device"])
def draw(request, monkeypatch) -> Draw:
    """Both ways of drawing, on the CPU: each layer's factors [parts, rows, *shape] of a pass."""
    if request.param == "device":
        monkeypatch.setattr(DropoutMasks, "_draw_on_host", DropoutMasks._draw_on_device)

    def make(rows: slice = WHOLE, *, step: int = 4, seed: int = 1, passes: int = 1, p: float = P) -> list[Tensor]:
        layers = [Dropout(p, shape) for shape in SHAPES]
        masks = DropoutMasks(layers, seed=seed, rows=rows, global_rows=GLOBAL_ROWS, parts=PARTS, device=CPU)
        masks.start_update(step)
        for _ in range(passes):
            masks.draw()
        count = rows.stop - rows.start
        return [layer(torch.ones(PARTS * count, *layer.shape)).unflatten(0, (PARTS, count)) for layer in layers]

    return make


@pytest.mark.parametrize("cuts", [(0, 12), (0, 6, 12), (0, 1, 5, 12), tuple(range(13))])
def test_ranks_draw_the_rows_of_one_set_of_masks(draw, cuts):
    whole = draw()
    parts = [draw(slice(a, b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    for number, factors in enumerate(whole):
        assert torch.equal(factors, torch.cat([part[number] for part in parts], dim=1))


def test_masks_are_new_in_every_row_part_layer_pass_update_and_seed(draw):
    first = draw()[2]
    assert torch.equal(first, draw()[2])
    others = [draw(step=5)[2], draw(seed=2)[2], draw(passes=2)[2]]
    assert not any(torch.equal(first, other) for other in others)
    rows = first.flatten(0, 1)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert not torch.equal(draw()[0].flatten(2)[..., :7], draw()[1])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.87])
def test_a_share_p_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(draw, p):
    factors = torch.cat([t.flatten() for step in range(200) for t in draw(step=step, p=p)])
    kept = factors > 0
    spread = (p * (1 - p) / len(factors)) ** 0.5
    assert abs(kept.float().mean().item() - (1 - p)) < 4 * spread
    torch.testing.assert_close(factors[kept], torch.full((int(kept.sum()),), 1 / (1 - p)), rtol=1e-4, atol=0)


def test_units_of_a_row_are_dropped_independently(draw):
    kept = torch.stack([draw(step=step)[2].flatten(0, 1) for step in range(100)]).flatten(0, 1) > 0
    correlations = torch.corrcoef(kept.float().T) - torch.eye(64)
    assert correlations.abs().max().item() < 5 / len(kept) ** 0.5


def test_parts_may_come_one_by_one_or_together():
    """D's first layer is called once for each part, all others once."""
    layer = Dropout(P, (7,))
    masks = DropoutMasks([layer], seed=0, rows=WHOLE, global_rows=GLOBAL_ROWS, parts=3, device=CPU)
    x = torch.randn(3 * GLOBAL_ROWS, 7)
    masks.draw()
    together = layer(x)
    masks.start_update(0)
    masks.draw()
    assert torch.equal(together, torch.cat([layer(part) for part in x.chunk(3)]))
    with pytest.raises(RuntimeError, match="rows"):
        layer(x)


def test_a_layer_in_evaluation_keeps_everything_and_one_left_alone_draws_by_itself():
    layer, x = Dropout(P, (7,)), torch.ones(40, 7)
    torch.manual_seed(0)
    first = layer(x)
    torch.manual_seed(0)
    assert torch.equal(first, layer(x))
    assert 0 < (first == 0).float().mean().item() < 1
    assert torch.equal(layer.eval()(x), x)


def test_masks_leave_compiled_layers_one_graph_that_is_not_compiled_again():
    """No break, and no new graph for the next update's masks."""
    layer = Dropout(P, (7,))
    network = nn.Sequential(layer, nn.Linear(7, 1))
    masks = DropoutMasks([layer], seed=0, rows=WHOLE, global_rows=GLOBAL_ROWS, parts=2, device=CPU)
    graphs = []

    def count(graph, example_inputs):
        del example_inputs
        graphs.append(graph)
        return graph.forward

    def both_parts(x: Tensor) -> Tensor:
        return torch.cat([network(part) for part in x.chunk(2)])

    compiled = torch.compile(both_parts, backend=count, fullgraph=True)
    x = torch.randn(2 * GLOBAL_ROWS, 7)
    for step in range(4):
        masks.start_update(step)
        masks.draw()
        found = compiled(x)
        masks.start_update(step)
        masks.draw()
        torch.testing.assert_close(found, both_parts(x))
    assert len(graphs) == 1


def test_only_the_discriminator_may_have_dropout():
    """Masks are drawn for the rows that D is given."""
    with pytest.raises(ValueError, match="discriminator"):
        dataclasses.replace(ARCHITECTURES["mixture"], encoder=(linear(4, dropout=0.2),))


# ---- in the update -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"objective__update": "alternating"}, {"objective__packing": 2}])
def test_masks_of_an_update_follow_from_its_number_alone(tmp_path, changes):
    """Not from torch's generator, nor from the updates before it."""
    index = Index(
        encoding="raw", dtype="uint8", shape=(1, 8, 8), shards=(), mean=(0.5,), std=(0.5,), pixel_mean=(0.5,) * 64
    )
    config = tiny_config(tmp_path, model__discriminator_dropout=0.4, **changes)
    state = build_train_state(config, index, CPU, World())
    state.step.optimizer = torch.optim.SGD(state.ali.parameters(), lr=0.0)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(24, *state.space.model_shape, generator=g)
    z, epsilon = torch.randn(2, 24, config.model.latent_size, generator=g)

    def losses_of(step: int) -> list[float]:
        torch.manual_seed(step + len(seen))
        state.step.start_update(step)
        seen.append(step)
        return [float(loss) for loss in state.step(TrainBatch(x, z, epsilon), weights)]

    seen: list[int] = []
    weights = loss_weights_at(config.objective, 0, 1.0)
    first, other, again = losses_of(3), losses_of(4), losses_of(3)
    assert first == again
    assert first[0] != other[0]
