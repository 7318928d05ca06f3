"""The loss functions of the game, from logits.

d_q [B]: logits of encoder pairs (x, z_hat), the "real" side; d_p [B]: logits of decoder pairs (x_tilde, z).
Losses are per pair, in nats (hinge: in logits). The discriminator minimizes `d_loss`, encoder and decoder `g_loss`.
The two terms of a loss are summed, not averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor], Tensor]
PairFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

MINIMUM_SLOPE = 1e-20
"""What slopes are kept from vanishing at: far below any gradient that counts, far above where fp32 and bf16 end."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss for each player, with what update rules need of them.

    Attributes:
        d_loss: [B] loss of the discriminator.
        g_loss: [B] loss of encoder and decoder.
        g_slopes: Derivative of `g_loss` with respect to (d_q, d_p), each [B].
        is_relative: Whether only the difference of d_q and d_p counts.
        estimates_jsd: Whether d_loss bounds the Jensen-Shannon divergence (`jsd_estimate`): V and V'.
    """

    d_loss: PairLoss
    g_loss: PairLoss
    g_slopes: PairFunction
    is_relative: bool = False
    estimates_jsd: bool = False

    def d_slopes(self, d_q: Tensor, d_p: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of `d_loss` with respect to (d_q, d_p), each [B].

        Taken by autograd and not from a formula: of an undecided D the slopes of both sides nearly cancel, so that
        another rounding of them would be seen in D's gradient.
        """
        with torch.enable_grad():
            logits = d_q.detach().requires_grad_(), d_p.detach().requires_grad_()
            slope_q, slope_p = torch.autograd.grad(self.d_loss(*logits).sum(), logits)
        return slope_q, slope_p

    def lead_of_data(self, d_q: Tensor, d_p: Tensor) -> Tensor:
        """[B], positive where D takes the encoder pair for one."""
        return d_q - d_p if self.is_relative else d_q


def bound_slope(slope: Tensor) -> Tensor:
    """`slope` with its sign and a magnitude of at least `MINIMUM_SLOPE`, so that one can divide by it."""
    return slope.abs().clamp_min(MINIMUM_SLOPE).copysign(slope)


# V', the paper's objective: labels swapped on both sides. Source: arXiv 1606.00704, section 2.3 and Algorithm 1.
_NONSATURATING = Objective(
    d_loss=lambda d_q, d_p: F.softplus(-d_q) + F.softplus(d_p),
    g_loss=lambda d_q, d_p: F.softplus(d_q) + F.softplus(-d_p),
    g_slopes=lambda d_q, d_p: (torch.sigmoid(d_q), -torch.sigmoid(-d_p)),
    estimates_jsd=True,
)

# V, the minimax value function itself (the paper's equation 1).
_MINIMAX = Objective(
    d_loss=lambda d_q, d_p: F.softplus(-d_q) + F.softplus(d_p),
    g_loss=lambda d_q, d_p: -F.softplus(-d_q) - F.softplus(d_p),
    g_slopes=lambda d_q, d_p: (torch.sigmoid(-d_q), -torch.sigmoid(d_p)),
    estimates_jsd=True,
)

# Relativistic pairs. Source: Jolicoeur-Martineau, arXiv 1807.00734; with R1 and R2: Huang et al., arXiv 2501.05441.
_RELATIVISTIC = Objective(
    d_loss=lambda d_q, d_p: F.softplus(d_p - d_q),
    g_loss=lambda d_q, d_p: F.softplus(d_q - d_p),
    g_slopes=lambda d_q, d_p: (torch.sigmoid(d_q - d_p), -torch.sigmoid(d_q - d_p)),
    is_relative=True,
)

# Hinge. Source: Lim and Ye, arXiv 1705.02894; in a bidirectional game: BigBiGAN, arXiv 1907.02544.
_HINGE = Objective(
    d_loss=lambda d_q, d_p: F.relu(1 - d_q) + F.relu(1 + d_p),
    g_loss=lambda d_q, d_p: d_q - d_p,
    g_slopes=lambda d_q, d_p: (torch.ones_like(d_q), -torch.ones_like(d_p)),
)

OBJECTIVES = {
    "nonsaturating": _NONSATURATING,
    "minimax": _MINIMAX,
    "relativistic": _RELATIVISTIC,
    "hinge": _HINGE,
}


def jsd_estimate(d_loss: float, logits: int = 1) -> float:
    """Lower bound (nats, from 0 to ln 2) of the Jensen-Shannon divergence between the two kinds of pairs, for V and V'.

    Any D gives the bound ln 2 - L_d / 2, and the optimal one reaches the divergence. That of a D which is worse than
    chance is negative: with K + 1 classes already at the start, where all of them are alike and d = ln K. It says
    nothing of a divergence, which is never negative, so 0 is given in its place. With packing, a pair is a whole pack.

    Args:
        d_loss: L_d, summed over the logits of a pair.
        logits: Their number. With unary scores it is 3, and their mean is a bound: x or z alone diverge no more than
            (x, z) does.

    Source: arXiv 1606.00704, section 2.5: at the optimal D, V = 2 JSD - 2 ln 2, and L_d = -V.
    """
    return max(math.log(2.0) - d_loss / (2 * logits), 0.0)  # in this order, NaN stays NaN


def class_entropy(log_shares: Tensor) -> Tensor:
    """Entropy (nats) [B] of each sample's classes, from log-probabilities [B, K]: small where D is sure."""
    return -(log_shares.exp() * log_shares).sum(1)


def class_imbalance(log_shares: Tensor, mean: Tensor) -> Tensor:
    """[B], whose mean over the global batch is minus the entropy (nats) of the mean classes: least when all are alike.

    Args:
        log_shares: Log-probabilities of the classes [B, K].
        mean: Mean probabilities [K] over the global batch, a constant. The gradient is right all the same: that of
            sum m log m is sum (log m + 1) dm, and sum dm is 0.

    Source: Springenberg, arXiv 1511.06390, eq. 6, with equal classes.
    """
    return (log_shares.exp() * mean.clamp_min(1e-12).log()).sum(1)
