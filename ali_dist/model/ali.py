"""ALI as one module: encoder, decoder and joint discriminator, and how the two players meet.

Legend: x [B, C, H, W] or [B, D] data in the model's range; z [B, n_z] prior; epsilon [B, n_z] encoder noise;
c [B, A] condition (class as one-hot vector, or attributes), e [B, n_emb] its embedding; z_hat [B, n_z] ~ q(z|x);
x_tilde ~ p(x|z); d_q, d_p [R] logits of encoder and decoder pairs, R = B, or B / m where D judges packs of m.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.model.gradient_gates import DiscriminatorInputs, GradientGate
from ali_dist.model.networks import DiscriminatorOutput


class LabelledBatch(NamedTuple):
    """Data whose class D may see."""

    x: Tensor  # [b, ...] in the model's range
    y: Tensor  # [b] class numbers
    epsilon: Tensor  # [b, n_z]


class ALIOutput(NamedTuple):
    """What one pass through the three networks gives."""

    z_hat: Tensor | None  # None in games without encoder pairs
    x_tilde: Tensor
    seen: DiscriminatorInputs | None  # None in a game without D
    d_q: Tensor
    d_p: Tensor
    unary_q: Tensor | None = None  # [R, 2] logits of x alone and of z_hat alone
    unary_p: Tensor | None = None  # of x_tilde alone and of z alone
    supervised: Tensor | None = None  # [b] cross-entropy of the labelled data's classes
    log_shares: Tensor | None = None  # [B, K] log-probabilities of the classes that D gives encoder pairs
    cycle_x: Tensor | None = None  # [B] mean squared error of G(E(x)), at the size the data are stored at
    cycle_z: Tensor | None = None  # [B] mean squared error of E(G(z))
    cycle_samples: Tensor | None = None  # [B] as cycle_x, of samples x_tilde instead of data
    inverse: Tensor | None = None  # [B] as cycle_z, with G(z) held constant


@dataclass(frozen=True, slots=True, kw_only=True)
class GameKind:
    """Who plays, and what is computed beside the game.

    Attributes:
        kind: ali: D judges (x, z). gan: D judges x; E learns to invert G's samples, which G does not notice.
            inverse: no D; E alone learns that (the learned inverse mapping of arXiv 1606.00704, section 4.5).
        cycle_x: Reconstruct x.
        cycle_z: Reconstruct z.
        cycle_samples: Reconstruct x_tilde, held constant: data without end, on which E and G cannot overfit.
    """

    kind: Literal["ali", "gan", "inverse"] = "ali"
    cycle_x: bool = False
    cycle_z: bool = False
    cycle_samples: bool = False


def _keep_size(x: Tensor) -> Tensor:
    return x


class ALI(nn.Module):
    """The three networks, and the embedding of the condition that they share if there is one.

    Args:
        encoder: q(z|x).
        decoder: p(x|z).
        discriminator: D(x, z).
        embedding: Linear map [B, A] -> [B, n_emb]; None: unconditional.
        game: Who plays.
        native: Linear map from differences of images to the size at which their error counts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        embedding: nn.Module | None = None,
        *,
        game: GameKind | None = None,
        native: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.discriminator, self.embedding = encoder, decoder, discriminator, embedding
        self.game = game or GameKind()
        self.native = native or _keep_size
        self.fp32_discriminator = False  # penalties in half precision underflow

    def forward(
        self,
        x: Tensor,
        z: Tensor,
        epsilon: Tensor,
        boundary: GradientGate,
        c: Tensor | None = None,
        labelled: LabelledBatch | None = None,
    ) -> ALIOutput:
        """One pass of Algorithm 1: z_hat, x_tilde, and D once on both pairs (and on labelled ones, if there are any).

        D sees the pairs as one batch of 2B rows, as the authors' code does, which matters for its batch norm.
        With a cycle on x, G runs once on prior and encoder latents together.
        """
        e = None if self.embedding is None or c is None else self.embedding(c)
        if self.game.kind != "ali":
            return self._without_encoder_pairs(x, z, epsilon, boundary, e)
        z_hat, z_labelled = self._encode(x, epsilon, e, labelled)
        cycle_x = cycle_z = cycle_samples = None
        if self.game.cycle_x:
            both = self.decoder(torch.cat([z, z_hat]), None if e is None else torch.cat([e, e]))
            x_tilde, x_rec = both.chunk(2)
            cycle_x = self._error(x_rec, x)
        else:
            x_tilde = self.decoder(z, e)
        if self.game.cycle_z:
            cycle_z = _latent_error(self.encoder(x_tilde, epsilon, e)[1], z)
        if self.game.cycle_samples:
            sample = x_tilde.detach()
            cycle_samples = self._error(self.decoder(self.encoder(sample, epsilon, e)[0], e), sample)
        seen = boundary.pairs(x, z_hat, x_tilde, z)
        rows_x: tuple[Tensor, ...] = (seen.x_q, seen.x_p)
        rows_z, supervised = seen.z, None
        if labelled is not None and z_labelled is not None and rows_z is not None:
            # E is not trained by labels: D alone is asked for the class.
            rows_x, rows_z = (*rows_x, labelled.x), torch.cat([rows_z, z_labelled.detach()])
        judged = self._judge(rows_x, rows_z, e)
        log_shares = None
        if judged.classes is not None:
            log_shares = judged.classes[: len(x)].log_softmax(1)
            if labelled is not None:
                supervised = F.cross_entropy(judged.classes[2 * len(x) :], labelled.y, reduction="none")
                unary = None if judged.unary is None else judged.unary[: 2 * len(x)]
                judged = DiscriminatorOutput(judged.d[: 2 * len(x)], None, unary)
        return ALIOutput(
            z_hat, x_tilde, seen, *_split_pairs(judged), supervised, log_shares, cycle_x, cycle_z, cycle_samples
        )

    def _encode(
        self, x: Tensor, epsilon: Tensor, e: Tensor | None, labelled: LabelledBatch | None
    ) -> tuple[Tensor, Tensor | None]:
        """z_hat of x and of labelled data, in one pass."""
        if labelled is None:
            return self.encoder(x, epsilon, e)[0], None
        z_hat = self.encoder(torch.cat([x, labelled.x]), torch.cat([epsilon, labelled.epsilon]), e)[0]
        return z_hat[: len(x)], z_hat[len(x) :]

    def _judge(self, x: tuple[Tensor, ...], z: Tensor | None, e: Tensor | None) -> DiscriminatorOutput:
        """D on both halves; it takes the embedding as given, which E and G alone train."""
        halves = None if e is None else torch.cat([e, e]).detach()
        full_precision = torch.autocast(x[0].device.type, enabled=False) if self.fp32_discriminator else nullcontext()
        with full_precision:
            judged: DiscriminatorOutput = self.discriminator(x, z, halves)
        return judged

    def _without_encoder_pairs(
        self, x: Tensor, z: Tensor, epsilon: Tensor, boundary: GradientGate, e: Tensor | None
    ) -> ALIOutput:
        x_tilde = self.decoder(z, e)
        inverse = _latent_error(self.encoder(x_tilde.detach(), epsilon, None if e is None else e.detach())[1], z)
        if self.game.kind == "inverse":
            none = x.new_zeros(len(x))
            return ALIOutput(None, x_tilde, None, none, none, inverse=inverse)
        seen = boundary.pairs(x, None, x_tilde, z)
        judged = self._judge((seen.x_q, seen.x_p), None, e)
        return ALIOutput(None, x_tilde, seen, *_split_pairs(judged), inverse=inverse)

    def _error(self, x_rec: Tensor, x: Tensor) -> Tensor:
        """Mean squared error [B], at the size the data are stored at."""
        return self.native(x_rec - x).square().flatten(1).mean(1)

    def with_networks(
        self, encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module, embedding: nn.Module | None
    ) -> ALI:
        """The same game between other (wrapped or compiled) networks."""
        other = ALI(encoder, decoder, discriminator, embedding, game=self.game, native=self.native)
        other.fp32_discriminator = self.fp32_discriminator
        return other

    def generator_parameters(self) -> list[nn.Parameter]:
        """theta_g: what is learnt in encoder, decoder and embedding."""
        parts = (self.encoder, self.decoder, self.embedding)
        return [p for part in parts if part is not None for p in part.parameters() if p.requires_grad]

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """theta_d."""
        return [p for p in self.discriminator.parameters() if p.requires_grad]


def _latent_error(z_rec: Tensor, z: Tensor) -> Tensor:
    return F.mse_loss(z_rec, z, reduction="none").mean(1)


def _split_pairs(judged: DiscriminatorOutput) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """d_q, d_p, and the unary logits likewise."""
    d_q, d_p = judged.d.chunk(2)
    unary_q, unary_p = (None, None) if judged.unary is None else judged.unary.chunk(2)
    return d_q, d_p, unary_q, unary_p
