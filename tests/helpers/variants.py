"""Variants of the game, and the gradients that each of them must have, derived anew from the networks.

The formulas are those of the papers, with logits. They use nothing of `ALI.forward`, `Discriminator.forward`, `Step`
or `OBJECTIVES`. The networks are in evaluation mode, in which batch norm does not depend on how rows are batched.
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
from ali_dist.training.step import LossWeights, StepResult, TrainBatch
from tests.helpers.networks import (
    BATCH_SIZE,
    CPU,
    LATENT_SIZE,
    SAMPLE_SHAPES,
    GradientRecorder,
    make_step,
    trained_parameters,
)

EMBEDDING_SIZE = 5
ATTRIBUTE_COUNT = 3
CLASS_COUNT = 4
LABELLED_COUNT = 6
_SHAPES = {**SAMPLE_SHAPES, "mixture": (2,)}
_WIDTHS = {"digits": 0.25, "mixture": 0.1}

PairFormula = Callable[[Tensor, Tensor], Tensor]
D_LOSSES: dict[str, PairFormula] = {
    "nonsaturating": lambda q, p: -F.logsigmoid(q) - F.logsigmoid(-p),
    "minimax": lambda q, p: -F.logsigmoid(q) - F.logsigmoid(-p),
    "relativistic": lambda q, p: -F.logsigmoid(q - p),
    "hinge": lambda q, p: (1 - q).clamp(min=0) + (1 + p).clamp(min=0),
}
G_LOSSES: dict[str, PairFormula] = {
    "nonsaturating": lambda q, p: -F.logsigmoid(-q) - F.logsigmoid(p),
    "minimax": lambda q, p: F.logsigmoid(q) + F.logsigmoid(-p),
    "relativistic": lambda q, p: -F.logsigmoid(p - q),
    "hinge": lambda q, p: q - p,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A game and the networks that play it."""

    architecture: str = "digits"
    kind: str = "ali"
    conditional: bool = False
    packing: int = 1
    classes: int = 0
    unary: bool = False
    encoder: str = "gaussian"

    def network_sizes(self) -> NetworkSizes:
        """The sizes of networks that fit the game."""
        return NetworkSizes(
            latent=LATENT_SIZE,
            width=_WIDTHS[self.architecture],
            condition=ATTRIBUTE_COUNT if self.conditional else 0,
            embedding_size=EMBEDDING_SIZE,
            classes=self.classes,
            unary=self.unary,
            packing=self.packing,
            sees_z=self.kind == "ali",
        )

    def build(self, *, cycles: bool = False) -> ALI:
        """Build the networks, with the same weights at every call, in evaluation mode."""
        game = GameSpec(kind=self.kind, cycle_x=cycles, cycle_z=cycles, cycle_samples=cycles)  # type: ignore[arg-type]
        return build_ali(
            ARCHITECTURES[self.architecture],
            _SHAPES[self.architecture],
            self.network_sizes(),
            encoder=self.encoder,
            game=game,
            seed=1,
        ).eval()

    def make_batch(self, dtype: torch.dtype = torch.float32) -> TrainBatch:
        """Draw a batch: the same numbers at every call."""
        shape = _SHAPES[self.architecture]
        g = torch.Generator().manual_seed(3)
        x, x_labelled = (torch.rand(n, *shape, generator=g) * 2 - 1 for n in (BATCH_SIZE, LABELLED_COUNT))
        z = torch.randn(BATCH_SIZE, LATENT_SIZE, generator=g)
        epsilon = torch.randn(BATCH_SIZE, LATENT_SIZE, generator=g)
        epsilon_labelled = torch.randn(LABELLED_COUNT, LATENT_SIZE, generator=g)
        c = torch.randint(0, 2, (BATCH_SIZE, ATTRIBUTE_COUNT), generator=g).float() if self.conditional else None
        y = torch.randint(0, max(1, self.classes), (LABELLED_COUNT,), generator=g)
        x, z, epsilon, x_labelled, epsilon_labelled = (
            t.to(dtype) for t in (x, z, epsilon, x_labelled, epsilon_labelled)
        )
        c = None if c is None else c.to(dtype)
        labelled = LabelledBatch(x_labelled, y, epsilon_labelled) if self.classes else None
        return TrainBatch(x, z, epsilon, c, labelled)


VARIANTS = {
    "conditional": Variant(conditional=True),
    "conditional-points": Variant(architecture="mixture", conditional=True),
    "packing": Variant(packing=2),
    "packing-points": Variant(architecture="mixture", packing=4),
    "packing-conditional": Variant(packing=2, conditional=True),
    "k+1": Variant(classes=CLASS_COUNT),
    "gan": Variant(kind="gan"),
    "gan-packing": Variant(architecture="mixture", kind="gan", packing=2),
    "gan-conditional": Variant(kind="gan", conditional=True),
    "bigan": Variant(encoder="deterministic"),
}
UNARY_VARIANTS = {
    "unary": Variant(unary=True),
    "unary-packing": Variant(unary=True, packing=2),
    "unary-conditional": Variant(unary=True, conditional=True),
    "unary-k+1": Variant(unary=True, classes=CLASS_COUNT),
}


def dtype_of(ali: ALI) -> torch.dtype:
    """The precision of the weights, which the formulas below are computed in."""
    return ali.discriminator_parameters()[0].dtype


def run_update(
    variant: Variant, rule: str, loss: str, weights: LossWeights, ali: ALI | None = None, *, precision: str = "fp32"
) -> tuple[list[Tensor], StepResult]:
    """Do one update of the variant's batch.

    Returns:
        The gradients that the optimizer was given, of theta_g and then of theta_d; and the update's losses.
    """
    if ali is None:
        ali = variant.build(cycles=weights.cycle_x > 0)
    optimizer = GradientRecorder(trained_parameters(ali), lr=1.0)
    step = make_step(ali, rule, loss, optimizer, precision=Precision(precision, CPU), packing=variant.packing)
    losses = step(variant.make_batch(), weights)
    return optimizer.gradients, losses


class Scores(NamedTuple):
    """Logits of D, computed by hand."""

    joint: Tensor  # [R] logits of pairs
    unary: tuple[Tensor, ...]  # logits of x alone and of z alone, [R] each; empty where D does not give them
    classes: Tensor  # [R, K] logits of classes

    def of_pairs_and_sides(self) -> tuple[Tensor, ...]:
        """The joint logits, and the unary ones if there are any."""
        return (self.joint, *self.unary)


def compute_scores(ali: ALI, variant: Variant, x: Tensor, z: Tensor, e: Tensor | None) -> Scores:
    """Apply D to (x, z, e); the m adjacent rows of a pack lie beside each other in the channels."""
    d: Any = ali.discriminator
    m = variant.packing

    def pack(rows: Tensor) -> Tensor:
        return torch.cat([rows[k::m] for k in range(m)], dim=1)

    h_x = d.d_x(pack(d.fourier(x)))
    spatial = (1, 1) if x.dim() == 4 else ()
    parts = [h_x]
    unary: tuple[Tensor, ...] = ()
    if variant.kind == "ali":
        h_z = d.d_z(pack(z).view(len(z) // m, -1, *spatial))
        parts.append(h_z)
        if variant.unary:
            unary = (d.unary_x(h_x.flatten(1))[:, 0], d.unary_z(h_z.flatten(1))[:, 0])
    if e is not None:
        parts.append(pack(e).view(len(e) // m, -1, *spatial))
    out = d.d_xz(torch.cat(parts, dim=1)).flatten(1)
    top = out.detach().amax(1, keepdim=True)  # taken out, so that no exponential overflows
    joint = top[:, 0] + (out - top).exp().sum(1).log() if variant.classes else out[:, 0]
    return Scores(joint, unary, out)


def encode_by_hand(ali: ALI, x: Tensor, epsilon: Tensor, e: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute z_hat and mu; e enters beside the input of the last layer."""
    encoder: Any = ali.encoder
    layers = encoder.stack.layers
    h = layers[:-1](x)
    if e is not None:
        h = torch.cat([h, e.view(*e.shape, *[1] * (h.dim() - 2))], dim=1)
    out = layers[-1](h).flatten(1)
    if out.shape[1] == LATENT_SIZE:
        return out, out
    mu, log_sigma = out[:, :LATENT_SIZE], out[:, LATENT_SIZE:]
    return mu + torch.exp(log_sigma) * epsilon, mu


def decode_by_hand(ali: ALI, z: Tensor, e: Tensor | None) -> Tensor:
    """Compute G(z, e); e enters beside z."""
    z_and_e = z if e is None else torch.cat([z, e], dim=1)
    decoder: Any = ali.decoder
    return decoder.stack(z_and_e.view(-1, *decoder.z_shape))


def embed_condition(ali: ALI, c: Tensor | None) -> Tensor | None:
    """Embed the condition, if there is one."""
    return None if c is None or ali.embedding is None else ali.embedding(c)


def _sum_of_means(formula: PairFormula, q: Scores, p: Scores) -> Tensor:
    """The formula's mean over pairs (or packs), summed over the logits that D gives them."""
    pairs = zip(q.of_pairs_and_sides(), p.of_pairs_and_sides(), strict=True)
    return torch.stack([formula(d_q, d_p).mean() for d_q, d_p in pairs]).sum()


def _squared_slope(scores: Scores, inputs: list[Tensor], packing: int) -> Tensor:
    """The squared norm of the gradient of each joint logit with respect to its own inputs, [R]."""
    slopes = torch.autograd.grad(scores.joint.sum(), inputs, create_graph=True, allow_unused=True)
    per_row = torch.stack([slope.square().flatten(1).sum(1) for slope in slopes if slope is not None]).sum(0)
    return per_row.view(-1, packing).sum(1)


def expected_d_gradients(ali: ALI, variant: Variant, loss: str, weights: LossWeights) -> list[Tensor]:
    """Differentiate D's loss with respect to theta_d; E, G and the embedding are constants."""
    batch = variant.make_batch(dtype_of(ali))
    with torch.no_grad():
        e = embed_condition(ali, batch.c)
        z_hat, _ = encode_by_hand(ali, batch.x, batch.epsilon, e)
        x_tilde = decode_by_hand(ali, batch.z, e)
    encoder_pair = [part.clone().requires_grad_() for part in (batch.x, z_hat)]
    decoder_pair = [part.clone().requires_grad_() for part in (x_tilde, batch.z)]
    q, p = (compute_scores(ali, variant, x, z, e) for x, z in (encoder_pair, decoder_pair))
    total = _sum_of_means(D_LOSSES[loss], q, p)
    total = total + weights.r1 / 2 * _squared_slope(q, encoder_pair, variant.packing).mean()
    total = total + weights.r2 / 2 * _squared_slope(p, decoder_pair, variant.packing).mean()
    if weights.entropy:
        shares = q.classes.exp() / q.classes.exp().sum(1, keepdim=True)
        total = total - weights.entropy * (shares * shares.log()).sum(1).mean()
    if weights.balance:
        mean = q.classes.softmax(1).mean(0)
        total = total + weights.balance * (mean * mean.log()).sum()
    if batch.labelled is not None:
        x, y, epsilon = batch.labelled
        with torch.no_grad():
            z, _ = encode_by_hand(ali, x, epsilon, None)
        scores = compute_scores(ali, variant, x, z, None)
        class_loss = scores.joint - scores.classes[torch.arange(len(y)), y]
        total = total + weights.supervised * class_loss.sum() / BATCH_SIZE
    return list(torch.autograd.grad(total, ali.discriminator_parameters()))


def expected_g_gradients(ali: ALI, variant: Variant, loss: str, weights: LossWeights) -> list[Tensor]:
    """Differentiate the generators' loss with respect to theta_g; D, and the embedding that D takes, are constants."""
    batch = variant.make_batch(dtype_of(ali))
    x = batch.x
    e = embed_condition(ali, batch.c)
    e_of_d = None if e is None else e.detach()
    x_tilde = decode_by_hand(ali, batch.z, e)
    if variant.kind == "ali":
        z_hat, _ = encode_by_hand(ali, x, batch.epsilon, e)
        total = weights.cycle_x * (decode_by_hand(ali, z_hat, e) - x).square().mean()
        _, z_rec = encode_by_hand(ali, x_tilde, batch.epsilon, e)
        total = total + weights.cycle_z * (z_rec - batch.z).square().mean()
        sample = x_tilde.detach()
        sample_rec = decode_by_hand(ali, encode_by_hand(ali, sample, batch.epsilon, e)[0], e)
        total = total + weights.cycle_samples * (sample_rec - sample).square().mean()
    else:
        z_hat = batch.z  # D does not take it
        _, z_rec = encode_by_hand(ali, x_tilde.detach(), batch.epsilon, e_of_d)
        total = (z_rec - batch.z).square().mean()
    q = compute_scores(ali, variant, x, z_hat, e_of_d)
    p = compute_scores(ali, variant, x_tilde, batch.z, e_of_d)
    total = total + _sum_of_means(G_LOSSES[loss], q, p)
    return list(torch.autograd.grad(total, ali.generator_parameters()))
