"""Variants of the game, and the gradients that each has to have, written out from the networks.

The formulas are those of the papers, with logits; nothing of `ALI.forward`, `Discriminator.forward`, `Step` or
`OBJECTIVES` is used. Networks are in evaluation mode, so that batch norm does not tell one batch from two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ali_dist.model.ali import ALI, GameSpec, LabelledBatch
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.build import build_ali
from ali_dist.model.networks import NetworkSizes
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, StepResult, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES
from tests.helpers.networks import BATCH, CPU, LATENT, SHAPES, Recorder

EMBEDDING, ATTRIBUTES, CLASSES, LABELLED = 5, 3, 4, 6
_SHAPES = {**SHAPES, "mixture": (2,)}
_WIDTHS = {"digits": 0.25, "mixture": 0.1}

Pair = Callable[[Tensor, Tensor], Tensor]
D_LOSS: dict[str, Pair] = {
    "nonsaturating": lambda q, p: -F.logsigmoid(q) - F.logsigmoid(-p),
    "minimax": lambda q, p: -F.logsigmoid(q) - F.logsigmoid(-p),
    "relativistic": lambda q, p: -F.logsigmoid(q - p),
    "hinge": lambda q, p: (1 - q).clamp(min=0) + (1 + p).clamp(min=0),
}
G_LOSS: dict[str, Pair] = {
    "nonsaturating": lambda q, p: -F.logsigmoid(-q) - F.logsigmoid(p),
    "minimax": lambda q, p: F.logsigmoid(q) + F.logsigmoid(-p),
    "relativistic": lambda q, p: -F.logsigmoid(p - q),
    "hinge": lambda q, p: q - p,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One game."""

    architecture: str = "digits"
    kind: str = "ali"
    conditional: bool = False
    packing: int = 1
    classes: int = 0
    unary: bool = False
    encoder: str = "gaussian"

    def sizes(self) -> NetworkSizes:
        return NetworkSizes(
            latent=LATENT,
            width=_WIDTHS[self.architecture],
            condition=ATTRIBUTES if self.conditional else 0,
            embedding_size=EMBEDDING,
            classes=self.classes,
            unary=self.unary,
            packing=self.packing,
            sees_z=self.kind == "ali",
        )

    def build(self, *, cycles: bool = False) -> ALI:
        """The same weights at every call, in evaluation mode."""
        game = GameSpec(kind=self.kind, cycle_x=cycles, cycle_z=cycles, cycle_samples=cycles)  # type: ignore[arg-type]
        tables, shape = ARCHITECTURES[self.architecture], _SHAPES[self.architecture]
        return build_ali(tables, shape, self.sizes(), encoder=self.encoder, game=game, seed=1).eval()

    def batch(self, dtype: torch.dtype = torch.float32) -> TrainBatch:
        """The same numbers at every call."""
        g, shape = torch.Generator().manual_seed(3), _SHAPES[self.architecture]
        x, x_labelled = (torch.rand(n, *shape, generator=g) * 2 - 1 for n in (BATCH, LABELLED))
        z, epsilon, more = (torch.randn(n, LATENT, generator=g) for n in (BATCH, BATCH, LABELLED))
        c = torch.randint(0, 2, (BATCH, ATTRIBUTES), generator=g).float() if self.conditional else None
        y = torch.randint(0, max(1, self.classes), (LABELLED,), generator=g)
        x, z, epsilon, x_labelled, more = (t.to(dtype) for t in (x, z, epsilon, x_labelled, more))
        c = None if c is None else c.to(dtype)
        return TrainBatch(x, z, epsilon, c, LabelledBatch(x_labelled, y, more) if self.classes else None)


VARIANTS = {
    "conditional": Variant(conditional=True),
    "conditional-points": Variant(architecture="mixture", conditional=True),
    "packing": Variant(packing=2),
    "packing-points": Variant(architecture="mixture", packing=4),
    "packing-conditional": Variant(packing=2, conditional=True),
    "k+1": Variant(classes=CLASSES),
    "gan": Variant(kind="gan"),
    "gan-packing": Variant(architecture="mixture", kind="gan", packing=2),
    "gan-conditional": Variant(kind="gan", conditional=True),
    "bigan": Variant(encoder="deterministic"),
}
UNARY = {
    "unary": Variant(unary=True),
    "unary-packing": Variant(unary=True, packing=2),
    "unary-conditional": Variant(unary=True, conditional=True),
    "unary-k+1": Variant(unary=True, classes=CLASSES),
}


def dtype_of(ali: ALI) -> torch.dtype:
    """The precision of the weights, which the formulas below are computed in."""
    return ali.discriminator_parameters()[0].dtype


def update(
    variant: Variant, way: str, loss: str, weights: LossWeights, ali: ALI | None = None, *, precision: str = "fp32"
) -> tuple[list, StepResult]:
    """Gradients that one update steps with, theta_g's and then theta_d's, and its losses."""
    ali, batch = ali or variant.build(cycles=weights.cycle_x > 0), variant.batch()
    optimizer = Recorder([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=1.0)
    policy = Precision(precision, CPU)
    step = Step(UPDATE_RULES[way], loss, ali, ali, optimizer, policy, global_batch_size=BATCH, packing=variant.packing)
    losses = step(batch, weights)
    return optimizer.seen, losses


class Scores(NamedTuple):
    """What D says, by the book."""

    joint: Tensor  # [R]
    others: tuple[Tensor, ...]  # of x alone and z alone, [R] each
    classes: Tensor  # [R, K] logits


def scores(ali: ALI, variant: Variant, x: Tensor, z: Tensor, e: Tensor | None) -> Scores:
    """D on (x, z, e): the k-th of every m adjacent rows beside the others of its pack."""
    d: Any = ali.discriminator
    m = variant.packing

    def packed(rows: Tensor) -> Tensor:
        return torch.cat([rows[k::m] for k in range(m)], dim=1)

    h_x = d.d_x(packed(d.fourier(x)))
    spatial = (1, 1) if x.dim() == 4 else ()
    parts, others = [h_x], []
    if variant.kind == "ali":
        h_z = d.d_z(packed(z).view(len(z) // m, -1, *spatial))
        parts.append(h_z)
        if variant.unary:
            others = [d.unary_x(h_x.flatten(1))[:, 0], d.unary_z(h_z.flatten(1))[:, 0]]
    if e is not None:
        parts.append(packed(e).view(len(e) // m, -1, *spatial))
    out = d.d_xz(torch.cat(parts, dim=1)).flatten(1)
    top = out.detach().amax(1, keepdim=True)  # taken out, so that no exponential overflows
    joint = top[:, 0] + (out - top).exp().sum(1).log() if variant.classes else out[:, 0]
    return Scores(joint, tuple(others), out)


def encode(ali: ALI, x: Tensor, epsilon: Tensor, e: Tensor | None) -> tuple[Tensor, Tensor]:
    """z_hat and mu: e beside what the last layer takes."""
    encoder: Any = ali.encoder
    layers = encoder.stack.layers
    h = layers[:-1](x)
    if e is not None:
        h = torch.cat([h, e.view(*e.shape, *[1] * (h.dim() - 2))], dim=1)
    out = layers[-1](h).flatten(1)
    if out.shape[1] == LATENT:
        return out, out
    mu, log_sigma = out[:, :LATENT], out[:, LATENT:]
    return mu + torch.exp(log_sigma) * epsilon, mu


def decode(ali: ALI, z: Tensor, e: Tensor | None) -> Tensor:
    """G(z, e): e beside z."""
    both = z if e is None else torch.cat([z, e], dim=1)
    decoder: Any = ali.decoder
    return decoder.stack(both.view(-1, *decoder.z_shape))


def embed(ali: ALI, c: Tensor | None) -> Tensor | None:
    """e of the condition, if there is one."""
    return None if c is None or ali.embedding is None else ali.embedding(c)


def _all_scores(part: Scores) -> tuple[Tensor, ...]:
    return (part.joint, *part.others)


def _squared_slope(of: Scores, inputs: list[Tensor], packing: int) -> Tensor:
    """|gradient of each joint logit with respect to its own inputs|^2, [R]."""
    grads = torch.autograd.grad(of.joint.sum(), inputs, create_graph=True, allow_unused=True)
    of_rows = torch.stack([g.square().flatten(1).sum(1) for g in grads if g is not None]).sum(0)
    return of_rows.view(-1, packing).sum(1)


def d_gradients(ali: ALI, variant: Variant, loss: str, weights: LossWeights) -> list[Tensor]:
    """Of D's loss, for theta_d: means over pairs (or packs); E, G and the embedding are constants."""
    batch = variant.batch(dtype_of(ali))
    with torch.no_grad():
        e = embed(ali, batch.c)
        z_hat, x_tilde = encode(ali, batch.x, batch.epsilon, e)[0], decode(ali, batch.z, e)
    real, fake = ([part.clone().requires_grad_() for part in pair] for pair in ((batch.x, z_hat), (x_tilde, batch.z)))
    q, p = (scores(ali, variant, x, z, e) for x, z in (real, fake))
    total = sum(D_LOSS[loss](a, b).mean() for a, b in zip(_all_scores(q), _all_scores(p), strict=True))
    total = total + weights.r1 / 2 * _squared_slope(q, real, variant.packing).mean()
    total = total + weights.r2 / 2 * _squared_slope(p, fake, variant.packing).mean()
    if weights.entropy:
        shares = q.classes.exp() / q.classes.exp().sum(1, keepdim=True)
        total = total - weights.entropy * (shares * shares.log()).sum(1).mean()
    if weights.balance:
        mean = q.classes.softmax(1).mean(0)
        total = total + weights.balance * (mean * mean.log()).sum()
    if batch.labelled is not None:
        x, y, epsilon = batch.labelled
        with torch.no_grad():
            z = encode(ali, x, epsilon, None)[0]
        said = scores(ali, variant, x, z, None)
        class_loss = said.joint - said.classes[torch.arange(len(y)), y]
        total = total + weights.supervised * class_loss.sum() / BATCH
    return list(torch.autograd.grad(total, ali.discriminator_parameters()))


def g_gradients(ali: ALI, variant: Variant, loss: str, weights: LossWeights) -> list[Tensor]:
    """Of the generators' loss, for theta_g: D's weights, and the condition as D sees it, are constants."""
    batch = variant.batch(dtype_of(ali))
    e = embed(ali, batch.c)
    seen = None if e is None else e.detach()
    x_tilde, x = decode(ali, batch.z, e), batch.x
    if variant.kind == "ali":
        z_hat = encode(ali, x, batch.epsilon, e)[0]
        total = weights.cycle_x * (decode(ali, z_hat, e) - x).square().mean()
        total = total + weights.cycle_z * (encode(ali, x_tilde, batch.epsilon, e)[1] - batch.z).square().mean()
        sample = x_tilde.detach()
        again = decode(ali, encode(ali, sample, batch.epsilon, e)[0], e)
        total = total + weights.cycle_samples * (again - sample).square().mean()
    else:
        z_hat = batch.z  # D does not look at it
        total = (encode(ali, x_tilde.detach(), batch.epsilon, seen)[1] - batch.z).square().mean()
    q, p = scores(ali, variant, x, z_hat, seen), scores(ali, variant, x_tilde, batch.z, seen)
    total = total + sum(G_LOSS[loss](a, b).mean() for a, b in zip(_all_scores(q), _all_scores(p), strict=True))
    return list(torch.autograd.grad(total, ali.generator_parameters()))
