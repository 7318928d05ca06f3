"""What a trained model computes for a Python program, in tensors: encode, decode, sample, reconstruct, score.

Any number of samples is worked on in batches. What is random follows from a seed alone, as in the commands: the same
seed gives what `generate` draws.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import decode_batched, in_batches, make_generator, sample_decoder
from ali_dist.evaluation.interpolation import lerp_path
from ali_dist.inference.choices import FEATURES
from ali_dist.inference.features import features_of_samples
from ali_dist.inference.given_arrays import check_plain
from ali_dist.inference.given_conditions import Condition, class_turns, make_conditions
from ali_dist.inference.given_samples import Samples, stored_samples
from ali_dist.inference.load import LoadedRun
from ali_dist.report.galleries import choose_path_function
from ali_dist.report.gallery_sizes import STEPS

Latents = NDArray[Any] | Tensor


class TensorModel:
    """The methods of `TrainedModel`, with float32 tensors on the CPU as results.

    Images are [N, C, H, W] in [0, 1], points [N, D], latents [N, n_z]. Arguments and errors are those of
    `TrainedModel`, which describes them.

    Args:
        run: The run of the model.
        device: Where its networks are.
        has_discriminator: Whether its discriminator was loaded, too.
    """

    def __init__(self, run: LoadedRun, device: torch.device, *, has_discriminator: bool = True) -> None:
        self.run = run
        self.device = device
        self.has_discriminator = has_discriminator

    def encode(
        self,
        x: Samples,
        condition: Condition | None = None,
        *,
        features: str = "mu",
        sample: bool = False,
        seed: int = 0,
    ) -> Tensor:
        """Features float32 [N, F] of samples; see `TrainedModel.encode`."""
        if features not in FEATURES:
            hint = did_you_mean(str(features), FEATURES).removesuffix("?")
            raise InputError(f"features is {features!r}, but must be one of {', '.join(FEATURES)}{hint}.")
        if features == "joint":
            self._require_discriminator("features='joint'")
        if sample and self.run.config.model.encoder != "gaussian":
            raise InputError(
                f"sample=True draws from a Gaussian q(z|x), but model.encoder of run {self.run.name!r} is "
                f"{self.run.config.model.encoder!r}: leave it out."
            )
        stored = stored_samples(self.run, x)
        c = make_conditions(self.run, condition, len(stored))
        return self._features(stored, c, features, seed if sample else None)

    def decode(self, z: Latents, condition: Condition | None = None) -> Tensor:
        """Decode latents; see `TrainedModel.decode`."""
        latents = self._latents(z)
        return self._decode(latents, make_conditions(self.run, condition, len(latents)))

    def sample(self, count: int, condition: Condition | None = None, *, seed: int = 0) -> Tensor:
        """Draw G(z), z from the prior; see `TrainedModel.sample`."""
        _check_number("count", count, 0)
        if condition is None and self.run.config.model.condition == "classes":
            c: Tensor | None = class_turns(self.run, count)
        else:
            c = make_conditions(self.run, condition, count)
        draws = sample_decoder(self.run.model, count, _checked_seed(seed), self.device, c)
        return self._at_data_size(draws)

    def reconstruct(
        self, x: Samples, condition: Condition | None = None, *, use_mean: bool = False, seed: int = 0
    ) -> Tensor:
        """Decode what samples were encoded to; see `TrainedModel.reconstruct`."""
        stored = stored_samples(self.run, x)
        c = make_conditions(self.run, condition, len(stored))
        return self._decode(self._features(stored, c, "mu", None if use_mean else seed), c)

    def interpolate(
        self,
        first: Samples,
        last: Samples,
        condition: Condition | None = None,
        *,
        last_condition: Condition | None = None,
        steps: int = STEPS,
        spherical: bool = False,
        use_mean: bool = False,
        seed: int = 0,
    ) -> Tensor:
        """Decode paths between the latents of two samples each, [N, steps, ...]; see `TrainedModel.interpolate`."""
        _check_number("steps", steps, 2)
        ends = [stored_samples(self.run, x) for x in (first, last)]
        count = len(ends[0])
        if len(ends[1]) != count:
            raise InputError(f"first has {count} samples and last has {len(ends[1])}: give as many of both.")
        conditions = (condition, condition if last_condition is None else last_condition)
        c = [make_conditions(self.run, one, count) for one in conditions]
        # Both ends are drawn as one batch, in which they alternate: that is how `generate` draws them.
        epsilon = None if use_mean else self._draw_epsilon(2 * count, seed)
        z = [
            features_of_samples(
                self.run, "mu", ends[k], c[k], None if epsilon is None else epsilon[k::2], device=self.device
            )
            for k in range(2)
        ]
        paths = choose_path_function(spherical=spherical)(z[0], z[1], steps)
        c_paths = None if c[0] is None or c[1] is None else lerp_path(c[0], c[1], steps).flatten(0, 1)
        return self._decode(paths.flatten(0, 1), c_paths).unflatten(0, paths.shape[:2])

    def score(self, x: Samples, z: Latents | None = None, condition: Condition | None = None) -> Tensor:
        """The discriminator's logit [N] of each pair (x, z); see `TrainedModel.score`."""
        self._require_discriminator("score")
        if self.run.config.objective.game == "inverse":
            raise InputError(f"score needs a discriminator, but run {self.run.name!r} was trained without one.")
        stored = stored_samples(self.run, x)
        c = make_conditions(self.run, condition, len(stored))
        latents = None if z is None else self._latents(z)
        if latents is not None and len(latents) != len(stored):
            raise InputError(f"x has {len(stored)} samples and z has {len(latents)}: give one z for each sample.")

        def score_rows(rows: Tensor) -> Tensor:
            unit = self.run.space.unit_from_stored(stored[rows].to(self.device))
            c_rows = None if c is None else c[rows].to(self.device)
            z_rows = self.run.model.encode(unit, c_rows)[0] if latents is None else latents[rows].to(self.device)
            return self.run.model.score(unit, z_rows, c_rows)

        return in_batches(score_rows, torch.arange(len(stored)), "cpu", "discriminator's output").clone()

    def _features(self, stored: Tensor, c: Tensor | None, kind: str, seed: int | None) -> Tensor:
        """Features of stored samples; with a seed, of draws z ~ q(z|x)."""
        epsilon = None if seed is None else self._draw_epsilon(len(stored), seed)
        # A clone, because what is made in inference mode may not be used where gradients are wanted.
        return features_of_samples(self.run, kind, stored, c, epsilon, device=self.device).clone()

    def _draw_epsilon(self, count: int, seed: int) -> Tensor:
        return torch.randn(
            count, self.run.model.latent_size, generator=make_generator(_checked_seed(seed), "posterior")
        )

    def _decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        return self._at_data_size(decode_batched(self.run.model, z, self.device, c))

    def _at_data_size(self, x: Tensor) -> Tensor:
        """Decoded samples as users see them: images at the data's size, within [0, 1]."""
        if not self.run.spec.is_images:
            return x.clone()
        return self.run.space.native_from_unit(x.clone()).clamp(0, 1)

    def _latents(self, z: Latents) -> Tensor:
        """Latents as float32 [N, n_z]."""
        size = self.run.model.latent_size
        try:
            given = z if isinstance(z, Tensor | np.ndarray) else np.array(z)
            check_plain(given, "z")
            if isinstance(given, Tensor):
                given = given.detach().cpu()
            elif given.dtype.kind in "fiub":
                with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
                    given = torch.from_numpy(given.astype(np.float32))
            else:
                raise TypeError(f"z is of {given.dtype}")
        except InputError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"z is no array of numbers, but must be float [N, {size}] or [{size}].") from error
        latents = given.float().reshape(1, -1) if given.dim() == 1 else given.float()
        if latents.dim() != 2 or latents.shape[1] != size:
            raise InputError(f"z has shape {list(given.shape)}, but must be [N, {size}] or [{size}].")
        bad_rows = (~latents.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad_rows:
            raise InputError(f"Row {bad_rows[0]} of z holds NaN or infinity: give finite numbers.")
        return latents

    def _require_discriminator(self, what: str) -> None:
        if not self.has_discriminator:
            raise InputError(
                f"{what} needs the discriminator, which {self.run.store.url} does not hold: export it with "
                "--discriminator, or load the run itself."
            )


def _checked_seed(seed: int) -> int:
    _check_number("seed", seed, 0)
    return int(seed)


def _check_number(name: str, value: int, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}, but must be a whole number of at least {least}.")
