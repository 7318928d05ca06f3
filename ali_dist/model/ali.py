"""ALI as one module: encoder, decoder and joint discriminator, and how the two players meet.

Legend: x [B, C, H, W] or [B, D] data in the model's range; z [B, n_z] prior; epsilon [B, n_z] encoder noise;
c [B, A] condition (class as one-hot vector, or attributes), e [B, n_emb] its embedding; z_hat [B, n_z] ~ q(z|x);
x_tilde ~ p(x|z); d_q, d_p [R] logits of encoder and decoder pairs, with R = B, or B / m where D judges packs of m.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.model.augmentation import Augmentation
from ali_dist.model.gradient_gates import DiscriminatorInputs, GradientGate
from ali_dist.model.networks import DiscriminatorOutput


class LabelledBatch(NamedTuple):
    """Data whose class D may see. A NamedTuple, so that DistributedDataParallel can move it to a device."""

    x: Tensor  # [b, ...] in the model's range
    y: Tensor  # [b] class numbers
    epsilon: Tensor  # [b, n_z]


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleErrors:
    """Reconstruction errors beside the game, [B] each; None where the game does not take them.

    Attributes:
        x: Mean squared error of G(E(x)), at the size the data are stored at.
        z: Mean squared error of E(G(z)).
        samples: As `x`, of samples x_tilde instead of data.
        inverse: As `z`, with G(z) held constant: what E learns in games without encoder pairs.
    """

    x: Tensor | None = None
    z: Tensor | None = None
    samples: Tensor | None = None
    inverse: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOutput:
    """What a discriminator with K + 1 classes says of classes.

    Attributes:
        log_shares: Log-probabilities [B, K] of the classes that D gives encoder pairs.
        supervised: Cross-entropy [b] of the labelled data's classes; None without labelled data.
    """

    log_shares: Tensor
    supervised: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ALIOutput:
    """What one pass through the three networks gives.

    Attributes:
        z_hat: [B, n_z]; None in games without encoder pairs.
        x_tilde: [B, ...] in the model's range.
        d_q: Logits [R] of encoder pairs.
        d_p: Logits [R] of decoder pairs.
        discriminator_inputs: What D saw; None in a game without D.
        unary_q: Logits [R, 2] of x alone and of z_hat alone, where D judges them, too.
        unary_p: Logits [R, 2] of x_tilde alone and of z alone.
        classes: Of a discriminator with K + 1 classes.
        cycle: Reconstruction errors beside the game.
    """

    z_hat: Tensor | None
    x_tilde: Tensor
    d_q: Tensor
    d_p: Tensor
    discriminator_inputs: DiscriminatorInputs | None
    unary_q: Tensor | None = None
    unary_p: Tensor | None = None
    classes: ClassOutput | None = None
    cycle: CycleErrors = field(default_factory=CycleErrors)


@dataclass(frozen=True, slots=True, kw_only=True)
class GameSpec:
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

    Attributes:
        fp32_discriminator: Whether D computes in fp32 whatever the others do.
        augmentation: What becomes of the images that D sees in training; None: they stay as they are.
    """

    # No module of its own: it learns nothing, and the networks of a run are the children.
    augmentation: Augmentation | None = None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        embedding: nn.Module | None = None,
        *,
        game: GameSpec | None = None,
        native: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.discriminator = discriminator
        self.embedding = embedding
        self.game = game or GameSpec()
        self.native = native or _keep_size
        self.fp32_discriminator = False  # gradient penalties underflow in half precision

    def forward(
        self,
        x: Tensor,
        z: Tensor,
        epsilon: Tensor,
        gate: GradientGate,
        c: Tensor | None = None,
        labelled: LabelledBatch | None = None,
    ) -> ALIOutput:
        """One pass of Algorithm 1: z_hat, x_tilde, and D once on both pairs (and on labelled ones, if there are any).

        D sees the pairs as one batch of 2B rows, as the authors' code does, which matters for its batch norm.

        Images are augmented on D's side of the gate: a gradient penalty is with respect to images as they are. So are
        labelled ones, by draws of their own, or D would tell them by how they look.

        Args:
            x: Data.
            z: Prior latents.
            epsilon: Noise of the encoder.
            gate: Which gradients come back through D.
            c: Conditions, for a conditional model.
            labelled: Data whose class D may see.
        """
        e = None if self.embedding is None or c is None else self.embedding(c)
        if self.game.kind != "ali":
            return self._play_without_encoder_pairs(x, z, epsilon, gate, e)
        z_hat, z_labelled = self._encode(x, epsilon, e, labelled)
        x_tilde, cycle = self._decode(x, z, z_hat, epsilon, e)
        inputs = gate.discriminator_inputs(x, z_hat, x_tilde, z)
        rows_x: tuple[Tensor, ...] = (inputs.x_q, inputs.x_p)
        rows_z = inputs.z
        if labelled is not None and z_labelled is not None and rows_z is not None:
            # E is not trained by labels: D alone is asked for the class.
            rows_x = (*rows_x, labelled.x)
            rows_z = torch.cat([rows_z, z_labelled.detach()])
        output = self._discriminate(rows_x, rows_z, e)
        pairs, classes = _split_classes(output, len(x), labelled)
        d_q, d_p = pairs.d.chunk(2)
        unary_q, unary_p = (None, None) if pairs.unary is None else pairs.unary.chunk(2)
        return ALIOutput(
            z_hat=z_hat,
            x_tilde=x_tilde,
            d_q=d_q,
            d_p=d_p,
            discriminator_inputs=inputs,
            unary_q=unary_q,
            unary_p=unary_p,
            classes=classes,
            cycle=cycle,
        )

    def _encode(
        self, x: Tensor, epsilon: Tensor, e: Tensor | None, labelled: LabelledBatch | None
    ) -> tuple[Tensor, Tensor | None]:
        """z_hat of x and of labelled data, in one pass."""
        if labelled is None:
            return self.encoder(x, epsilon, e)[0], None
        z_hat = self.encoder(torch.cat([x, labelled.x]), torch.cat([epsilon, labelled.epsilon]), e)[0]
        return z_hat[: len(x)], z_hat[len(x) :]

    def _decode(
        self, x: Tensor, z: Tensor, z_hat: Tensor, epsilon: Tensor, e: Tensor | None
    ) -> tuple[Tensor, CycleErrors]:
        """x_tilde, and the cycles' errors. With a cycle on x, G runs once on prior and encoder latents together."""
        error_x = error_z = error_samples = None
        if self.game.cycle_x:
            decoded = self.decoder(torch.cat([z, z_hat]), None if e is None else torch.cat([e, e]))
            x_tilde, x_rec = decoded.chunk(2)
            error_x = self._image_error(x_rec, x)
        else:
            x_tilde = self.decoder(z, e)
        if self.game.cycle_z:
            error_z = _latent_error(self.encoder(x_tilde, epsilon, e)[1], z)
        if self.game.cycle_samples:
            sample = x_tilde.detach()
            error_samples = self._image_error(self.decoder(self.encoder(sample, epsilon, e)[0], e), sample)
        return x_tilde, CycleErrors(x=error_x, z=error_z, samples=error_samples)

    def _discriminate(self, x: tuple[Tensor, ...], z: Tensor | None, e: Tensor | None) -> DiscriminatorOutput:
        """D on both halves; it takes the embedding as a constant, which E and G alone train."""
        halves = None if e is None else torch.cat([e, e]).detach()
        if self.augmentation is not None and self.training:
            x = self.augmentation(x)
        full_precision = torch.autocast(x[0].device.type, enabled=False) if self.fp32_discriminator else nullcontext()
        with full_precision:
            output: DiscriminatorOutput = self.discriminator(x, z, halves)
        return output

    def _play_without_encoder_pairs(
        self, x: Tensor, z: Tensor, epsilon: Tensor, gate: GradientGate, e: Tensor | None
    ) -> ALIOutput:
        """A plain GAN, or no game at all; in both, E learns to invert G."""
        x_tilde = self.decoder(z, e)
        z_rec = self.encoder(x_tilde.detach(), epsilon, None if e is None else e.detach())[1]
        cycle = CycleErrors(inverse=_latent_error(z_rec, z))
        if self.game.kind == "inverse":
            no_logits = x.new_zeros(len(x))
            return ALIOutput(
                z_hat=None, x_tilde=x_tilde, d_q=no_logits, d_p=no_logits, discriminator_inputs=None, cycle=cycle
            )
        inputs = gate.discriminator_inputs(x, None, x_tilde, z)
        d_q, d_p = self._discriminate((inputs.x_q, inputs.x_p), None, e).d.chunk(2)
        return ALIOutput(z_hat=None, x_tilde=x_tilde, d_q=d_q, d_p=d_p, discriminator_inputs=inputs, cycle=cycle)

    def _image_error(self, x_rec: Tensor, x: Tensor) -> Tensor:
        """Mean squared error [B], at the size the data are stored at."""
        return self.native(x_rec - x).square().flatten(1).mean(1)

    def with_networks(
        self, encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module, embedding: nn.Module | None
    ) -> ALI:
        """The same game between other (wrapped or compiled) networks."""
        other = ALI(encoder, decoder, discriminator, embedding, game=self.game, native=self.native)
        other.fp32_discriminator = self.fp32_discriminator
        other.augmentation = self.augmentation
        return other

    def generator_parameters(self) -> list[nn.Parameter]:
        """theta_g: what is learned in encoder, decoder and embedding."""
        parts = (self.encoder, self.decoder, self.embedding)
        return [p for part in parts if part is not None for p in part.parameters() if p.requires_grad]

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """theta_d."""
        return [p for p in self.discriminator.parameters() if p.requires_grad]


def _latent_error(z_rec: Tensor, z: Tensor) -> Tensor:
    return F.mse_loss(z_rec, z, reduction="none").mean(1)


def _split_classes(
    output: DiscriminatorOutput, batch_size: int, labelled: LabelledBatch | None
) -> tuple[DiscriminatorOutput, ClassOutput | None]:
    """What D says of the 2B pairs of the game, and what it says of classes: of data, and of labelled data below."""
    if output.classes is None:
        return output, None
    log_shares = output.classes[:batch_size].log_softmax(1)
    if labelled is None:
        return output, ClassOutput(log_shares=log_shares)
    both = 2 * batch_size
    supervised = F.cross_entropy(output.classes[both:], labelled.y, reduction="none")
    unary = None if output.unary is None else output.unary[:both]
    pairs = DiscriminatorOutput(d=output.d[:both], classes=None, unary=unary)
    return pairs, ClassOutput(log_shares=log_shares, supervised=supervised)
