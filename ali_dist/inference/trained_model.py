"""A trained model for Python programs: pictures in, pictures or latents out. `ali_dist.load` makes one."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.config import StorageConfig
from ali_dist.errors import InputError
from ali_dist.inference.exported import native_shape, open_export
from ali_dist.inference.given_conditions import Condition
from ali_dist.inference.given_samples import Samples
from ali_dist.inference.load import LoadedRun, load_run
from ali_dist.inference.tensor_model import Latents, TensorModel
from ali_dist.report.gallery_sizes import STEPS

Array = NDArray[Any]


class TrainedModel:
    """An encoder, a decoder and a discriminator, ready to be used.

    Samples `x` are given as NumPy arrays ([N, H, W, C]; [N, H, W] where there is one channel), PIL images, tensors
    ([N, C, H, W]), single ones of these, or lists of single ones; as uint8, or as floats in [0, 1]. Points are float
    arrays [N, D]. Results are NumPy arrays: images uint8 [N, H, W, C] ([N, H, W] where there is one channel) at the
    size of the data, or at the networks' size where the data are larger; points, latents and scores float32. Whatever
    their number, samples are worked on in batches. Nothing here touches torch's global random generators.

    A conditional model takes a `condition`: a class by name or number, or attributes by name, those not named being 0
    (`{"Smiling": 1}`); one for all samples, or a list with one for each; or vectors, numbers [A] or [N, A].

    Every method raises `InputError` where a sample, a latent or a condition is of another shape, type or range (the
    sample is named by its place), and FloatingPointError where the model has diverged.

    Attributes:
        run: The run that the model is of: its config, its data's shape and labels, where training stood.
        tensors: The same methods with tensors as results: images float32 [N, C, H, W] in [0, 1]; see `TensorModel`.
    """

    def __init__(self, run: LoadedRun, device: torch.device, *, has_discriminator: bool = True) -> None:
        self.run = run
        self.tensors = TensorModel(run, device, has_discriminator=has_discriminator)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.sample_shape))
        weights = {"ema": "averaged", "raw": "last"}[self.run.weights]
        condition = "" if self.condition == "none" else f", conditional on {self.condition}"
        return (
            f"<TrainedModel {self.name!r}: {'images' if self.run.spec.is_images else 'points'} {shape}, "
            f"{self.latent_size} latents{condition}, {weights} weights after {self.images_seen:,} images, "
            f"on {self.tensors.device}>"
        )

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def images_seen(self) -> int:
        """Real images that the model had been trained on."""
        return self.run.metadata.images_seen

    @property
    def latent_size(self) -> int:
        """Numbers n_z in a latent."""
        return self.run.model.latent_size

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample in the results: (H, W, C), (H, W), or (D,)."""
        shape = native_shape(self.run)
        if not self.run.spec.is_images:
            return shape
        return shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])

    @property
    def condition(self) -> str:
        """What the model is conditional on: classes, attributes or none."""
        return self.run.config.model.condition

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data's classes, by number; empty where they have none."""
        return self.run.spec.classes

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the data's attributes; empty where they have none."""
        return self.run.spec.attributes

    def encode(
        self,
        x: Samples,
        condition: Condition | None = None,
        *,
        features: str = "mu",
        sample: bool = False,
        seed: int = 0,
    ) -> Array:
        """Encode samples to latents: the mean mu of q(z|x), or other features.

        Args:
            x: Samples.
            condition: Their condition, for a conditional model.
            features: mu, mu+sigma, mu+hidden, mu+layers or joint, as of `python -m ali_dist.encode`.
            sample: Whether a draw z ~ q(z|x) stands in place of mu.
            seed: Seed of these draws.

        Returns:
            float32 [N, F]; F is `latent_size` for mu.
        """
        return self.tensors.encode(x, condition, features=features, sample=sample, seed=seed).numpy()

    def decode(self, z: Latents, condition: Condition | None = None) -> Array:
        """Decode latents `z`, float [N, n_z] or [n_z], to G(z)."""
        return self._present(self.tensors.decode(z, condition))

    def sample(self, count: int, condition: Condition | None = None, *, seed: int = 0) -> Array:
        """Draw `count` samples G(z), z ~ N(0, I).

        Without a condition, a model that is conditional on classes draws one class after another. The same seed gives
        what `python -m ali_dist.generate` draws.
        """
        return self._present(self.tensors.sample(count, condition, seed=seed))

    def reconstruct(
        self, x: Samples, condition: Condition | None = None, *, use_mean: bool = False, seed: int = 0
    ) -> Array:
        """Encode samples and decode them: G(z), z ~ q(z|x), or z = mu(x) with `use_mean`."""
        return self._present(self.tensors.reconstruct(x, condition, use_mean=use_mean, seed=seed))

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
    ) -> Array:
        """Decode paths between the latents of samples.

        Args:
            first: Where the paths begin, N samples.
            last: Where they end, N samples.
            condition: Condition of `first` and, unless `last_condition` is given, of `last`.
            last_condition: Condition of `last`; on the way, conditions change along straight lines.
            steps: Decoded samples on each path, ends included.
            spherical: Whether paths are great circles, not straight lines.
            use_mean: Whether the ends are mu(x) in place of draws z ~ q(z|x).
            seed: Seed of these draws.

        Returns:
            Samples [N, steps, ...].
        """
        paths = self.tensors.interpolate(
            first,
            last,
            condition,
            last_condition=last_condition,
            steps=steps,
            spherical=spherical,
            use_mean=use_mean,
            seed=seed,
        )
        return self._present(paths)

    def score(self, x: Samples, z: Latents | None = None, condition: Condition | None = None) -> Array:
        """The discriminator's logits of pairs (x, z): higher where a pair looks more like the encoder's.

        Args:
            x: Samples.
            z: Latents [N, n_z]; None: mu(x).
            condition: Condition of the samples, for a conditional model.

        Returns:
            float32 [N].
        """
        return self.tensors.score(x, z, condition).numpy()

    def _present(self, x: Tensor) -> Array:
        """Samples [..., C, H, W] in [0, 1] as uint8 images with the channels last; points as they are."""
        if not self.run.spec.is_images:
            return x.numpy()
        pixels = (x * 255).round().byte()
        return (pixels.squeeze(-3) if x.shape[-3] == 1 else pixels.movedim(-3, -1).contiguous()).numpy()


def load_model(
    path: str | os.PathLike[str],
    *,
    checkpoint: int | str | None = None,
    weights: Literal["auto", "ema", "raw"] = "auto",
    device: str | torch.device = "auto",
    endpoint_url: str | None = None,
    anonymous: bool = False,
) -> TrainedModel:
    """Open a trained model; arguments and errors are those of `ali_dist.load`."""
    if weights not in ("auto", "ema", "raw"):
        raise InputError(f"weights is {weights!r}, but must be auto, ema or raw.")
    place = _choose_device(device)
    storage = StorageConfig(endpoint_url=endpoint_url, anonymous=anonymous)
    url = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(url, str) or "\0" in url:
        raise InputError(f"The run is given as {path!r}, but must be a text or a Path.")
    if checkpoint is not None:
        url = f"{url.rstrip('/')}/checkpoints/{_checkpoint_folder(checkpoint)}"
    elif (exported := open_export(url, storage, place)) is not None:
        run, has_discriminator = exported
        if weights not in ("auto", run.weights):
            raise InputError(f"weights is {weights!r}, but {run.store.url} was exported with {run.weights}: use auto.")
        return TrainedModel(run, place, has_discriminator=has_discriminator)
    return TrainedModel(load_run(url, storage, weights=weights, device=place), place)


def _checkpoint_folder(checkpoint: int | str) -> str:
    """The name of a checkpoint's folder, `step-000008000`, from that or from its number."""
    step = re.fullmatch(r"(?:step-)?0*(\d{1,9})", str(checkpoint))
    if step is None:
        raise InputError(
            f"checkpoint is {checkpoint!r}, but must be the number of an update, such as 8000, or a name such as "
            "'step-000008000'."
        )
    return f"step-{int(step[1]):09d}"


def _choose_device(device: str | torch.device) -> torch.device:
    """The device that is meant; the current GPU of torch stays as it is."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise TypeError("meta holds no numbers")
        if chosen.type != "cuda":
            torch.empty(0, device=chosen)
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:  # each kind of device has its own
        raise InputError(f"device is {str(device)!r}, but must be auto, cpu, cuda or cuda:N.") from error
    if chosen.type == "cuda" and not (chosen.index or 0) < torch.cuda.device_count():
        raise InputError(f"device is {str(device)!r}, but torch sees no such GPU here: use cpu or auto.")
    return chosen
