"""What a trained model draws: samples, reconstructions, interpolations, changes of condition, and mixtures.

Each `draw_...` function decides what is encoded and decoded, and gives a gallery (`gallery_layouts.py`), which can be
saved as one picture or image by image. All noise follows from a seed, so galleries of one seed
show the same latents and the same images at every checkpoint. Nothing here reads data or decides where files go.

x: images [N, C, H, W] in [0, 1] at the size the model works at, or points [N, D]; c: conditions [N, A].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ali_dist.evaluation.batched import (
    conditions_from_labels,
    decode_batched,
    draw_rows,
    encode_batched,
    make_generator,
    sample_decoder,
)
from ali_dist.evaluation.interfaces import LabelledArrays
from ali_dist.evaluation.interpolation import lerp_path, slerp_path
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.inference_model import InferenceModel
from ali_dist.report.gallery_layouts import (
    ConditionGallery,
    Gallery,
    InterpolationGallery,
    MixtureGallery,
    ReconstructionGallery,
    SampleGallery,
)
from ali_dist.report.gallery_sizes import RECONSTRUCTIONS, ROWS, SAMPLES, STEPS

FIGURE_POINTS = 2_500
"""Points of a mixture's figure."""
IMAGES_NEEDED = RECONSTRUCTIONS + 2 * ROWS
"""Images that the galleries of a run show, at most; see `choose_shown`."""

PathFunction = Callable[[Tensor, Tensor, int], Tensor]


def draw_samples(
    model: InferenceModel, count: int, c: Tensor | None, *, seed: int, device: torch.device | str
) -> SampleGallery:
    """Draw `count` decoder samples G(z), z ~ N(0, I); for a conditional model under `c` [count, A]."""
    return SampleGallery(sample_decoder(model, count, seed, device, c))


def draw_reconstructions(
    model: InferenceModel,
    x: Tensor,
    c: Tensor | None,
    *,
    seed: int,
    device: torch.device | str,
    decoder_c: Tensor | None = None,
    use_mean: bool = False,
) -> ReconstructionGallery:
    """Reconstruct images: G(z), z ~ q(z|x).

    Args:
        model: The trained networks.
        x: Images [N, C, H, W].
        c: Their conditions, for a conditional model.
        seed: Seed of the draws of z.
        device: Where the model is.
        decoder_c: Conditions [N, A] to decode under; None: `c`.
        use_mean: Whether z is mu(x) in place of a draw.
    """
    z_hat = _encode(model, x, c, seed, device, use_mean=use_mean)
    return ReconstructionGallery(x, decode_batched(model, z_hat, device, c if decoder_c is None else decoder_c))


def draw_interpolations(
    model: InferenceModel,
    x: Tensor,
    c: Tensor | None,
    *,
    seed: int,
    device: torch.device | str,
    steps: int = STEPS,
    path_function: PathFunction = lerp_path,
    decoder_c: Tensor | None = None,
    use_mean: bool = False,
) -> InterpolationGallery:
    """Decode paths between the latents of neighboring images; conditions change along straight lines.

    Args:
        model: The trained networks.
        x: Images [2 R, C, H, W]; two after each other are the ends of a path.
        c: Their conditions, for a conditional model.
        seed: Seed of the draws of z.
        device: Where the model is.
        steps: Decoded points S of each path, ends included.
        path_function: `lerp_path` (straight lines, as in the paper) or `slerp_path` (great circles).
        decoder_c: Conditions [2 R, A] at the ends to decode under; None: `c`.
        use_mean: Whether z is mu(x) in place of a draw.
    """
    z_hat = _encode(model, x, c, seed, device, use_mean=use_mean)
    z_paths = path_function(z_hat[::2], z_hat[1::2], steps)
    c_ends = c if decoder_c is None else decoder_c
    c_paths = None if c_ends is None else lerp_path(c_ends[::2], c_ends[1::2], steps).flatten(0, 1)
    rows = decode_batched(model, z_paths.flatten(0, 1), device, c_paths)
    return InterpolationGallery(rows.unflatten(0, z_paths.shape[:2]), x.unflatten(0, (-1, 2)))


def choose_path_function(*, spherical: bool) -> PathFunction:
    """The paths that an interpolation follows: great circles or straight lines."""
    return slerp_path if spherical else lerp_path


def draw_conditions(
    model: InferenceModel,
    columns: Tensor,
    labels: Sequence[str],
    *,
    count: int,
    seed: int,
    device: torch.device | str,
) -> ConditionGallery:
    """Decode the same latents, z ~ N(0, I), under one condition after another.

    Args:
        model: Trained networks of a conditional model.
        columns: The conditions [S, A].
        labels: What they are called.
        count: Number of latents.
        seed: Seed of the latents.
        device: Where the model is.
    """
    z = torch.randn(count, model.latent_size, generator=make_generator(seed, "prior"))
    x_tilde = decode_batched(model, z.repeat_interleave(len(columns), dim=0), device, columns.repeat(count, 1))
    return ConditionGallery(x_tilde.unflatten(0, (count, len(columns))), tuple(labels))


def class_columns(names: Sequence[str], size: int) -> tuple[Tensor, list[str]]:
    """The conditions [A, A] of a model of A classes, one class after another, and what they are called."""
    return torch.eye(size), list(names)


def attribute_columns(
    names: Sequence[str], base: Tensor, base_label: str, places: Sequence[int]
) -> tuple[Tensor, list[str]]:
    """Conditions of a model of A attributes: a base, and the base with one attribute after another turned over.

    Args:
        names: Names of the attributes.
        base: The condition to start from, float32 [A] of 0 and 1.
        base_label: What it is called.
        places: Places of the attributes to turn.

    Returns:
        Conditions [1 + len(places), A], and what they are called: `+NAME` where NAME was added, `-NAME` where removed.
    """
    turned = (base - torch.eye(len(base))[list(places)]).abs()
    signs = ["-" if base[place] else "+" for place in places]
    labels = [f"{sign}{names[place]}" for sign, place in zip(signs, places, strict=True)]
    return torch.cat([base[None], turned]), [base_label, *labels]


def draw_mixture_points(mixture: Mapping[str, Any], count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw points [count, D] of a mixture, and their components, int64 [count].

    Args:
        mixture: `means` [K, D] and `std` of the components, as `DataSpec.mixture` has them.
        count: Number of points.
        seed: Seed of the draws.
    """
    means = torch.tensor(mixture["means"])
    draws = make_generator(seed, "mixture")
    y = torch.randint(len(means), (count,), generator=draws)
    return means[y] + float(mixture["std"]) * torch.randn(len(y), means.shape[1], generator=draws), y


def draw_mixture(
    model: InferenceModel,
    mixture: Mapping[str, Any],
    x: Tensor,
    y: Tensor,
    x_tilde: Tensor,
    *,
    seed: int,
    device: torch.device | str,
) -> MixtureGallery:
    """Reconstruct points of a mixture beside decoder samples.

    Args:
        model: The trained networks.
        mixture: `means` [K, D] and `std` of the components, as `DataSpec.mixture` has them.
        x: Points of the mixture [M, D].
        y: Their components, int64 [M].
        x_tilde: Decoder samples [N, D].
        seed: Seed of the draws of z.
        device: Where the model is.
    """
    c = conditions_from_labels(model, y)
    z_hat = _encode(model, x, c, seed, device)
    x_rec = decode_batched(model, z_hat, device, c)
    return MixtureGallery(torch.tensor(mixture["means"]), float(mixture["std"]), x_tilde, x, x_rec, z_hat, y)


def has_galleries(spec: DataSpec) -> bool:
    """Whether data can be shown: points of a known mixture, or images of 1 or 3 channels."""
    return spec.mixture is not None or has_pictures(spec)


def has_pictures(spec: DataSpec) -> bool:
    """Whether data are images of 1 or 3 channels."""
    return spec.is_images and spec.shape[0] in (1, 3)


def choose_shown(spec: DataSpec, count: int, *, seed: int) -> Tensor:
    """Choose the samples of a split that the galleries of a run show: nothing else of it need be read.

    Args:
        spec: What the data are.
        count: Samples of the split.
        seed: Seed of the choice.

    Returns:
        Sample ids, int64, in the order in which they are shown.
    """
    if spec.mixture is not None:
        return torch.arange(min(count, FIGURE_POINTS))
    order = _shuffled_order(count, seed)
    return order if count <= IMAGES_NEEDED else torch.cat([order[:RECONSTRUCTIONS], order[-2 * ROWS :]])


def _shuffled_order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def draw_run_galleries(
    model: InferenceModel,
    data: LabelledArrays,
    spec: DataSpec,
    *,
    seed: int,
    device: torch.device | str,
    labels: Tensor | None = None,
) -> dict[str, Gallery]:
    """Draw the galleries that a run shows of itself while it trains.

    Args:
        model: The networks as they are now.
        data: The samples of a split that `choose_shown` names, in its order.
        spec: What the data are; `has_galleries` must hold.
        seed: Seed of every draw and of the choice of images.
        device: Where the model is.
        labels: Labels of the whole split, for a conditional model: what samples are drawn under.

    Returns:
        Galleries by kind, in alphabetical order of their kinds. A single image has no interpolations.
    """
    if spec.mixture is not None:
        return {"mixture": _draw_run_mixture(model, data, spec.mixture, seed, device)}
    x = data.x
    c = conditions_from_labels(model, data.y)
    c_split = None
    if c is not None:
        assert labels is not None, "a conditional model is shown under the conditions of the split"
        c_split = conditions_from_labels(model, labels[_shuffled_order(len(labels), seed)])
    galleries: dict[str, Gallery] = {}
    if c_split is not None:
        columns, titles = _run_columns(c_split, spec)
        galleries["conditions"] = draw_conditions(model, columns, titles, count=ROWS, seed=seed, device=device)
    # The first images are reconstructed, the last ones are ends of paths: an even number of them.
    pairs = slice(0, RECONSTRUCTIONS)
    first_end = max(0, len(x) - 2 * ROWS)
    ends = slice(first_end, first_end + min(2 * ROWS, len(x) // 2 * 2))
    if len(x) > 1:
        galleries["interpolations"] = draw_interpolations(model, x[ends], _take(c, ends), seed=seed, device=device)
    galleries["reconstructions"] = draw_reconstructions(model, x[pairs], _take(c, pairs), seed=seed, device=device)
    c_samples = None if c_split is None else draw_rows(c_split, SAMPLES, seed)
    galleries["samples"] = draw_samples(model, SAMPLES, c_samples, seed=seed, device=device)
    return galleries


def _take(c: Tensor | None, rows: slice) -> Tensor | None:
    return None if c is None else c[rows]


def _run_columns(c: Tensor, spec: DataSpec) -> tuple[Tensor, list[str]]:
    """Conditions to compare: every class; or the data's usual attributes with one after another turned over.

    `c` [N, A] are the conditions of the data.
    """
    size = c.shape[1]
    if spec.classes:
        return class_columns(spec.classes, size)
    usual = (c.mean(0) > 0.5).float()
    return attribute_columns(spec.attributes, usual, "usual", range(size))


def _draw_run_mixture(
    model: InferenceModel, data: LabelledArrays, mixture: Mapping[str, Any], seed: int, device: torch.device | str
) -> MixtureGallery:
    assert data.y is not None, "points of a mixture are labelled with their components"
    x = data.x[:FIGURE_POINTS]
    y = data.y[:FIGURE_POINTS]
    c = conditions_from_labels(model, y)
    c_samples = None if c is None else draw_rows(c, FIGURE_POINTS, seed)
    x_tilde = sample_decoder(model, FIGURE_POINTS, seed, device, c_samples)
    return draw_mixture(model, mixture, x, y, x_tilde, seed=seed, device=device)


def _encode(
    model: InferenceModel,
    x: Tensor,
    c: Tensor | None,
    seed: int,
    device: torch.device | str,
    *,
    use_mean: bool = False,
) -> Tensor:
    """Latents [N, n_z] of `x`: draws z ~ q(z|x), or their means."""
    mu, _, z_hat = encode_batched(model, x, seed, device, c)
    return mu if use_mean else z_hat
