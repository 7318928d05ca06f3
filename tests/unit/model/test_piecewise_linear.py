"""Which discriminators are piecewise linear, by what their logits are: the identity holds where it is said to hold.

Run: `make test ARGS=tests/unit/model/test_piecewise_linear.py`
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ali_dist.model.architectures import ARCHITECTURES, OUTPUT, SIZED_ARCHITECTURES, Architecture
from ali_dist.model.architectures.schema import block, conv, linear
from ali_dist.model.networks import Discriminator, NetworkSizes, with_dropout
from ali_dist.model.piecewise_linear import LogitTerms, is_piecewise_linear, record_terms

ROWS = 6
LATENT_SIZE = 3
EMBEDDING_SIZE = 5
ALL = {
    **ARCHITECTURES,
    **{f"{name}-{side}": make(side, 1) for name, make in SIZED_ARCHITECTURES.items() for side in (16, 32)},
}
PIECEWISE_LINEAR = {
    "cifar10",
    "cifar10-table",
    "cifar10-untied",
    "digits",
    "mixture-paper",
    "rgb32",
    "residual-16",
    "residual-32",
    "residual-plain-16",
    "residual-plain-32",
}
"""The others have batch norm in D, or Fourier features."""


def make_discriminator(architecture: Architecture, *, dropout: float = 0.3, **sizes: object) -> Discriminator:
    """A small D in training, in float64, none of whose parameters is zero."""
    torch.manual_seed(0)
    width = 0.1 if architecture.image_size is None else 0.06
    network_sizes = NetworkSizes(latent=LATENT_SIZE, width=width, embedding_size=EMBEDDING_SIZE, **sizes)  # type: ignore[arg-type]
    side = architecture.image_size
    shape = (2,) if side is None else (3, side, side)
    d = Discriminator(with_dropout(architecture, dropout), shape, network_sizes)
    for p in d.parameters():
        nn.init.normal_(p, 0.1, 0.3)
    return d.double().train()


def score(d: Discriminator, architecture: Architecture) -> tuple[Tensor, LogitTerms]:
    """Logits [R] of drawn pairs, times factors of their own, and what they should be sums of."""
    g = torch.Generator().manual_seed(1)
    side = architecture.image_size
    shape = (2,) if side is None else (3, side, side)
    x = torch.randn(2, ROWS, *shape, generator=g, dtype=torch.float64).requires_grad_()
    z = torch.randn(2 * ROWS, LATENT_SIZE, generator=g, dtype=torch.float64).requires_grad_()
    e = None
    if has_condition(d):
        e = torch.randn(2 * ROWS, EMBEDDING_SIZE, generator=g, dtype=torch.float64)
    with record_terms(d) as terms:
        logits = d((x[0], x[1]), z if d.d_z is not None else None, e).d
    factors = torch.randn(len(logits), generator=g)
    return logits * factors, terms


def has_condition(d: Discriminator) -> bool:
    """Whether D_xz takes more than what D_x and D_z make."""
    first = next(m for m in d.d_xz.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    made = d.d_x.out_shape[0] + (d.d_z.out_shape[0] if d.d_z is not None else 0)
    return first.weight.shape[1] > made


def error_of_identity(d: Discriminator, architecture: Architecture) -> float:
    """By how much sum_i w_i d_i misses what it should be, relative to the logits' size."""
    logits, terms = score(d, architecture)
    gradients = torch.autograd.grad(logits.sum(), terms.tensors())
    of_inputs, of_outputs = gradients[: len(terms.inputs)], gradients[len(terms.inputs) :]
    total = sum(float((g * t).detach().sum()) for g, t in zip(of_inputs, terms.inputs, strict=True))
    for g, (output, bias) in zip(of_outputs, terms.biased, strict=True):
        spread = bias.view(*bias.shape, *[1] * (output.dim() - 1 - bias.dim()))
        total += float((g * spread).detach().sum())
    return abs(total - float(logits.detach().sum())) / float(logits.detach().abs().sum())


@pytest.mark.parametrize("name", ALL)
def test_logits_are_sums_of_their_terms_where_d_is_said_to_be_piecewise_linear_and_nowhere_else(name):
    d = make_discriminator(ALL[name])
    assert is_piecewise_linear(d) == (name in PIECEWISE_LINEAR)
    error = error_of_identity(d, ALL[name])
    assert error < 1e-6 if name in PIECEWISE_LINEAR else error > 1e-3


_LAST = conv(1, 1, OUTPUT, bias="channel")
ROW_TABLES = {
    "relu": (conv(4, 1, 32, bias="channel", act="relu"),),
    "unshuffled": (conv(2, 1, 32, bias="channel", act="lrelu", unshuffle=2),),
    "halved and doubled": (
        conv(1, 1, 32, bias="pixel", act="maxout", pieces=4, resize="down"),
        conv(1, 1, 32, bias="channel", act="lrelu", resize="up"),
        block(16, resize="down"),
        conv(2, 1, 32, act="lrelu"),
    ),
}


def architecture_of(table: tuple) -> Architecture:
    """D_x is the table, from 4x4 pixels to one."""
    hidden = (conv(1, 1, 64, bias="channel", act="lrelu"),)
    return Architecture(image_size=4, encoder=(), decoder=(), d_x=table, d_z=hidden, d_xz=(*hidden, _LAST))


@pytest.mark.parametrize("name", ROW_TABLES)
def test_all_kinds_of_piecewise_linear_rows_are_known(name):
    architecture = architecture_of(ROW_TABLES[name])
    d = make_discriminator(architecture)
    assert is_piecewise_linear(d)
    assert error_of_identity(d, architecture) < 1e-6


@pytest.mark.parametrize("act", ["tanh", "sigmoid"])
def test_smooth_activations_are_not(act):
    architecture = architecture_of((conv(4, 1, 64, bias="channel", act=act),))
    d = make_discriminator(architecture)
    assert not is_piecewise_linear(d)
    assert error_of_identity(d, architecture) > 1e-3


GAMES = {
    "packing": {"packing": 2},
    "conditional": {"condition": 4},
    "packing-conditional": {"packing": 3, "condition": 4},
    "gan": {"sees_z": False},
}


@pytest.mark.parametrize("name", GAMES)
def test_every_game_has_all_its_terms(name):
    d = make_discriminator(ALL["digits"], **GAMES[name])
    assert is_piecewise_linear(d)
    assert error_of_identity(d, ALL["digits"]) < 1e-6


def test_the_logit_of_several_classes_is_not_piecewise_linear():
    d = make_discriminator(ALL["digits"], classes=4)
    assert not is_piecewise_linear(d)
    with torch.no_grad():  # of logits far apart, a logsumexp is the largest
        d.d_xz.layers[-1][-1].weight.mul_(1e-3)
    assert error_of_identity(d, ALL["digits"]) > 1e-3


def test_modules_that_nobody_knows_are_not_taken_for_piecewise_linear():
    d = make_discriminator(ALL["digits"])
    d.d_z.layers[0][-1] = nn.Softplus()
    assert not is_piecewise_linear(d)
    assert not is_piecewise_linear(nn.Sequential(nn.Linear(2, 1)))


@pytest.mark.parametrize("name", sorted(PIECEWISE_LINEAR))
def test_the_surrogate_has_the_gradients_of_the_logits(name):
    """Of every parameter, to the rounding of float64."""
    d = make_discriminator(ALL[name])
    logits, terms = score(d, ALL[name])
    parameters = list(d.parameters())
    gradients = list(torch.autograd.grad(logits.sum(), terms.tensors(), create_graph=True))
    mine = torch.autograd.grad(terms.surrogate(gradients), parameters)
    expected = torch.autograd.grad(logits.sum(), parameters)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_a_layer_that_is_called_twice_counts_twice_and_nothing_is_left_behind():
    d = make_discriminator(ALL["digits"])
    _, terms = score(d, ALL["digits"])
    first = d.d_x.layers[0][1]
    assert sum(bias is first.bias for _, bias in terms.biased) == 2
    assert not d._forward_pre_hooks
    assert not any(module._forward_hooks for module in d.modules())
    known = len(terms.biased)
    d(tuple(terms.inputs[:2]), terms.inputs[2])
    assert len(terms.biased) == known


def test_points_are_known_too():
    hidden = linear(16, bias="channel", act="lrelu")
    last = linear(OUTPUT, bias="channel")
    architecture = Architecture(image_size=None, encoder=(), decoder=(), d_x=(), d_z=(), d_xz=(hidden, last))
    d = make_discriminator(architecture)
    assert is_piecewise_linear(d)
    assert error_of_identity(d, architecture) < 1e-6
