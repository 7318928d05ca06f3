"""What alarms are raised by: measures of the networks on a few rows of the last batch, taken when losses are recorded.

Everything is a sum over rows, so that ranks add up theirs in the all-reduce of the losses. It is computed in evaluation
mode and fp32, from the weights and the batch of that moment alone: so a resumed run sees what an unbroken one sees, and
updates (replayed CUDA graphs, too) know nothing of it.

Legend as in `model/ali.py`; the rows are the first ones of each lane, at most `MOST_ROWS` over all ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ali_dist.config import Config
from ali_dist.distributed import World
from ali_dist.model.losses import OBJECTIVES
from ali_dist.training.network_modes import evaluation_mode
from ali_dist.training.state import TrainState
from ali_dist.training.step import TrainBatch

MOST_ROWS = 64
"""Rows of a look over all ranks, but for one pack of each lane: enough for means, and cheaper than an update."""

FEWEST_ROWS = 8
"""Rows from which a spread is known: variances of 2 rows put q(z) 1 nat off a prior that it has, those of 8 0.14."""

_DIRECTIONS = 16
_SEED = 20160602
_SPREADS = ("latent_kl", "sample_spread")
_FAR_LOGIT = 30.0
_NETWORKS = ("discriminator", "encoder", "decoder")


class HealthProbe:
    """Takes the measures of `alarms.RULES` that the run's game has.

    Args:
        config: The config of the run.
        state: The networks and their optimizer.
        rows: This rank's rows of a global batch.
        world: The ranks.
        device: Where this rank computes.
    """

    def __init__(self, config: Config, state: TrainState, rows: slice, world: World, device: torch.device) -> None:
        self._state = state
        self._world_size = world.size
        self._objective = OBJECTIVES[config.objective.loss]
        self._packing = config.objective.packing
        self._plays = config.objective.game != "inverse"
        self._plays_pairs = config.objective.game == "ali"
        lanes = config.data.num_lanes()
        self._lane_size = config.data.global_batch_size // lanes
        packs = max(1, MOST_ROWS // lanes // self._packing)
        self._rows_of_lane = min(self._lane_size, packs * self._packing)
        micro_batch = config.scale.micro_batch
        self._rows_at_once = micro_batch or rows.stop - rows.start
        self._latent_size = config.model.latent_size
        size = math.prod(state.space.model_shape)
        directions = torch.randn(size, _DIRECTIONS, generator=torch.Generator().manual_seed(_SEED))
        self._directions = (directions / math.sqrt(size)).to(device)

    # ---- on every rank -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sums(self, batch: TrainBatch) -> Tensor:
        """What is to be summed over ranks, [S] fp64 on the device, of this rank's part of a global batch."""
        x, z, epsilon = (self._take_rows(part) for part in (batch.x, batch.z, batch.epsilon))
        c = None if batch.c is None else self._take_rows(batch.c)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        with evaluation_mode(self._state.ali):
            for start in range(0, len(x), self._rows_at_once):
                rows = slice(start, start + self._rows_at_once)
                part = TrainBatch(x[rows], z[rows], epsilon[rows], None if c is None else c[rows])
                total = total + self._sum_rows(part)
        return torch.cat([total, self._gradient_norms() / self._world_size])

    def _take_rows(self, part: Tensor) -> Tensor:
        """The first rows of each lane of this rank."""
        return part.unflatten(0, (-1, self._lane_size))[:, : self._rows_of_lane].flatten(0, 1)

    def _sum_rows(self, batch: TrainBatch) -> Tensor:
        ali, (x, z, epsilon, c, _) = self._state.ali, batch
        e = None if ali.embedding is None or c is None else ali.embedding(c)
        x_tilde = ali.decoder(z, e)
        sums = [torch.full((1,), float(len(x)), device=x.device)]
        if self._plays_pairs:
            z_hat, _, log_sigma = ali.encoder(x, epsilon, e)
            d_q, d_p = self._score(x, z_hat, e), self._score(x_tilde, z, e)
            sums += self._logit_sums(d_q, d_p)
            # The other two of the four pairs: x or z is exchanged between an encoder pair and a decoder pair.
            x_with_z, x_tilde_with_z_hat = self._score(x, z, e), self._score(x_tilde, z_hat, e)
            sums += [
                _square_sum(d_q - x_with_z, d_p - x_tilde_with_z_hat),
                _square_sum(d_q - x_tilde_with_z_hat, d_p - x_with_z),
                *_moments(z_hat),
            ]
            if log_sigma is not None:
                sums.append(log_sigma.mean(1).sum().view(1))
        elif self._plays:
            sums += self._logit_sums(self._score(x, None, e), self._score(x_tilde, None, e))
        if self._plays:
            for samples in (x, x_tilde):
                sums += _moments(samples.float().flatten(1) @ self._directions)
        return torch.cat([part.double() for part in sums])

    def _score(self, x: Tensor, z: Tensor | None, e: Tensor | None) -> Tensor:
        logits: Tensor = self._state.ali.discriminator((x,), z, e).d
        return logits

    def _logit_sums(self, d_q: Tensor, d_p: Tensor) -> list[Tensor]:
        """Sums over the rows of packs: of D's loss, and of the share of far logits."""
        loss = self._objective.d_loss(d_q, d_p).sum()
        far = (torch.stack([d_q, d_p]).abs() > _FAR_LOGIT).sum() / 2
        return [(loss * self._packing).view(1), (far * self._packing).view(1)]

    def _trained_networks(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that Adam updates, of every network that has some."""
        ali = self._state.ali
        names = _NETWORKS if self._plays else _NETWORKS[1:]
        parameters = {name: [p for p in getattr(ali, name).parameters() if p.requires_grad] for name in names}
        return {name: own for name, own in parameters.items() if own}

    def _gradient_norms(self) -> Tensor:
        """For each trained network, the norms of Adam's mean gradient and of its root mean square gradient.

        Gradients themselves are gone when losses are recorded, and Adam's means say more: of the last few updates.
        """
        norms = []
        for parameters in self._trained_networks().values():
            states = [state for p in parameters if (state := self._state.optimizer.state.get(p))]
            if not states:  # no gradient has ever come
                norms += [self._directions.new_zeros((), dtype=torch.float64)] * 2
                continue
            means, squares = ([state[entry] for state in states] for entry in ("exp_avg", "exp_avg_sq"))
            norms.append(torch.stack(torch._foreach_norm(means)).double().square().sum().sqrt())
            norms.append(torch.stack(torch._foreach_norm(squares, 1)).double().sum().sqrt())
        return torch.stack(norms)

    # ---- from what all ranks have summed up --------------------------------------------------------------------------

    def measures(self, totals: Tensor) -> dict[str, float]:
        """The measures by name, from the sums over all ranks; waits for the device."""
        numbers = iter(totals.tolist())
        take = numbers.__next__
        count, measures = take(), {}
        if self._plays:
            undecided = float(self._objective.d_loss(torch.zeros(1), torch.zeros(1)))
            measures["d_loss_share"] = take() / count / undecided
            measures["logits_beyond_30"] = take() / count
        if self._plays_pairs:
            measures["z_effect"] = _ratio(take(), take())
            moments = _mean_and_variance([take() for _ in range(2 * self._latent_size)], count)
            measures["latent_kl"] = _divergence_from_prior(*moments)
            if self._state.ali.encoder.kind == "gaussian":
                measures["sigma"] = math.exp(min(take() / count, 700.0))
        if self._plays:
            spreads = []
            for _ in range(2):
                _, variances = _mean_and_variance([take() for _ in range(2 * _DIRECTIONS)], count)
                spreads.append(sum(variances))
            measures["sample_spread"] = _ratio(spreads[1], spreads[0])
        if count < FEWEST_ROWS:
            measures = {name: value for name, value in measures.items() if name not in _SPREADS}
        for name in self._trained_networks():
            mean, root = take(), take()
            measures[f"gradient_{name}"] = mean / root if root else mean
        return measures


def _square_sum(*differences: Tensor) -> Tensor:
    return torch.cat(differences).double().square().sum().view(1)


def _moments(rows: Tensor) -> list[Tensor]:
    """Sums of values and of squares [K] over rows [N, K]."""
    rows = rows.double()
    return [rows.sum(0), rows.square().sum(0)]


def _ratio(square: float, reference: float) -> float:
    """Root of a ratio of mean squares; 1 where neither is anything, which says nothing."""
    if reference == 0:
        return 1.0 if square == 0 else math.inf
    return math.sqrt(square / reference) if square / reference >= 0 else math.nan


def _mean_and_variance(sums: list[float], count: float) -> tuple[list[float], list[float]]:
    half = len(sums) // 2
    means = [value / count for value in sums[:half]]
    squares = [value / count for value in sums[half:]]
    return means, [max(square - mean * mean, 0.0) for mean, square in zip(means, squares, strict=True)]


def _divergence_from_prior(means: list[float], variances: list[float]) -> float:
    """KL divergence (nats a latent) of the Gaussian with these moments from N(0, 1), averaged over latents."""
    total = 0.0
    for mean, variance in zip(means, variances, strict=True):
        total += 0.5 * (mean * mean + variance - 1.0 - math.log(max(variance, 1e-12)))
    return total / len(means)
