"""From a config and what the data are to an ALI: the layer tables chosen, sizes filled in, weights drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ali_dist.config import Config, ObjectiveConfig
from ali_dist.config.suggestions import did_you_mean
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI, GameSpec
from ali_dist.model.architectures import ARCHITECTURES, SIZED_ARCHITECTURES, Architecture, residual
from ali_dist.model.data_space import DataSpace
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.networks import Decoder, Discriminator, Encoder, NetworkSizes, initialize_weights, with_dropout

_IMPLICIT_REFUSAL = "model.encoder is 'implicit', which is for points: use 'gaussian' or 'deterministic'."


def find_architecture(config: Config, spec: DataSpec) -> Architecture:
    """The layer tables that the config names, at the side that they will see of data like `spec`.

    Raises:
        InputError: There are none of this name, or none that fit the data.
    """
    name, depth = config.model.architecture, config.model.depth
    if name in SIZED_ARCHITECTURES:
        return SIZED_ARCHITECTURES[name](_residual_side(config, spec), depth)
    if name not in ARCHITECTURES:
        names = sorted([*ARCHITECTURES, *SIZED_ARCHITECTURES])
        hint = did_you_mean(name, names) or "."
        raise InputError(f"model.architecture is {name!r}, but must be one of {', '.join(names)}{hint}")
    if depth != 1:
        raise InputError(
            f"model.depth is {depth}, but architecture {name!r} has no residual blocks: leave model.depth out, or set "
            "model.architecture to 'residual'."
        )
    _check_fit(config, spec, ARCHITECTURES[name])
    return ARCHITECTURES[name]


def _residual_side(config: Config, spec: DataSpec) -> int:
    """The side at which networks for several sides will see the data.

    Raises:
        InputError: There are no networks of that side or of these channels.
    """
    name, requested = config.model.architecture, config.data.image_size
    if len(spec.shape) != 3:
        raise InputError(_kind_refusal(name, spec, "images [C, H, W]"))
    channels, height, width = spec.shape
    if channels not in residual.CHANNELS:
        raise InputError(
            f"The data have images of {channels} channels, but architecture {name!r} takes 1 (gray) or 3 (color): "
            "prepare them as such, or choose another model.architecture."
        )
    sides = f"the sides {', '.join(map(str, residual.SIDES))}"
    if requested is not None and requested not in residual.SIDES:
        raise InputError(
            f"data.image_size is {requested}, but architecture {name!r} works at {sides}: set data.image_size to "
            f"{_nearest_side(requested)}, or choose another model.architecture."
        )
    if requested is None and (height != width or height not in residual.SIDES):
        raise InputError(
            f"The data have images of {height}x{width}, but architecture {name!r} takes squares of {sides}: set "
            f"data.image_size to {_nearest_side(max(height, width))} to have them resized, or choose another data.url "
            "or model.architecture."
        )
    if config.model.encoder == "implicit":
        raise InputError(_IMPLICIT_REFUSAL)
    return requested or height


def usual_image_size(config: Config) -> int | None:
    """The side of the images that the config is likely to be for, before there are data; None: points."""
    name = config.model.architecture
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].image_size
    return config.data.image_size or 32


def _nearest_side(side: int) -> int:
    return min(residual.SIDES, key=lambda s: abs(s - side))


def network_sizes(config: Config, spec: DataSpec) -> NetworkSizes:
    """What the config and the data's labels fill into the layer tables.

    Raises:
        InputError: The config needs labels that the data do not have.
    """
    model = config.model
    objective = config.objective
    label_counts = {"none": 0, "classes": len(spec.classes), "attributes": len(spec.attributes)}
    if model.condition != "none" and not label_counts[model.condition]:
        other = "attributes" if model.condition == "classes" else "classes"
        count = label_counts[other]
        have = f"have {count} {other}: use {other!r}" if count else "have no labels: use 'none'"
        raise InputError(
            f"model.condition is {model.condition!r}, but the data at {config.data.url} {have}, or give data with "
            f"{model.condition}."
        )
    if objective.supervised and len(spec.classes) < 2:
        raise InputError(
            f"objective.supervised is {objective.supervised:g}, which makes D a classifier, but the data at "
            f"{config.data.url} have no class labels: set it to 0, or give data with classes."
        )
    return NetworkSizes(
        latent=model.latent_size,
        width=model.width,
        condition=label_counts[model.condition],
        embedding_size=model.embedding_size,
        classes=len(spec.classes) if objective.supervised else 0,
        unary=objective.unary,
        packing=objective.packing,
        sees_z=objective.game == "ali",
    )


def game_from_config(objective: ObjectiveConfig) -> GameSpec:
    """Who plays, and which cycles are taken."""
    return GameSpec(
        kind=objective.game,
        cycle_x=objective.cycle_x > 0,
        cycle_z=objective.cycle_z > 0,
        cycle_samples=objective.cycle_samples > 0,
    )


def build_networks(config: Config, spec: DataSpec, seed: int) -> tuple[ALI, DataSpace]:
    """Freshly initialized networks for data like `spec`, on the CPU, and the space they work in.

    Raises:
        InputError: The architecture does not fit the data, or the config needs labels that these lack.
    """
    architecture = find_architecture(config, spec)
    space = DataSpace.for_architecture(architecture, spec.shape)
    with _refuse_too_large(config):
        ali = build_ali(
            architecture,
            space.model_shape,
            network_sizes(config, spec),
            encoder=config.model.encoder,
            discriminator_dropout=config.model.discriminator_dropout,
            game=game_from_config(config.objective),
            native=space.native_from_unit,
            seed=seed,
        )
    return ali, space


def describe_resize(config: Config, spec: DataSpec) -> str:
    """Say in a sentence how images like `spec` are resized; empty where they are not.

    Raises:
        InputError: The architecture does not fit the data.
    """
    return DataSpace.for_architecture(find_architecture(config, spec), spec.shape).describe_resize()


@contextmanager
def _refuse_too_large(config: Config) -> Iterator[None]:
    """Refuse networks whose weights this machine's memory does not hold.

    Raises:
        InputError: It could not be had.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not any(word in text for word in ("allocate memory", "overflow")):
            raise
        model = config.model
        raise InputError(
            f"The networks are too large for this machine's memory (architecture {model.architecture!r} with "
            f"model.width {model.width:g}, model.latent_size {model.latent_size}): lower these."
        ) from error


def _check_fit(config: Config, spec: DataSpec, architecture: Architecture) -> None:
    """Refuse data that the architecture cannot take as they are.

    Raises:
        InputError: They have another size or are of another kind.
    """
    name = config.model.architecture
    size = architecture.image_size
    requested_size = config.data.image_size
    if requested_size is not None and requested_size != size:
        raise InputError(
            f"data.image_size is {requested_size}, but architecture {name!r} works at {size}: "
            "leave data.image_size out or choose another model.architecture."
        )
    sides = spec.shape[1:]
    if size is not None and requested_size is None and len(sides) == 2 and sides != (size, size):
        raise InputError(
            f"The data have images of {sides[0]}x{sides[1]}, but architecture {name!r} works at {size}x{size}: set "
            f"data.image_size to {size} to have them resized, take --preset images for pictures of your own, or choose "
            "another data.url or model.architecture."
        )
    if (len(spec.shape) == 1) != (size is None):
        kind = "points [D]" if size is None else "images [C, H, W]"
        raise InputError(_kind_refusal(name, spec, kind))
    for key, value, off in (
        ("data.flip", str(config.data.flip).lower(), "false"),
        ("objective.augment", config.objective.augment, "none"),
    ):
        if size is None and value != off:
            raise InputError(
                f"{key} is {value}, but architecture {name!r} takes points, and only images can be altered: set it to "
                f"{off}."
            )
    if config.model.encoder == "implicit" and size is not None:
        raise InputError(_IMPLICIT_REFUSAL)


def _kind_refusal(name: str, spec: DataSpec, kind: str) -> str:
    own = "take --preset images for pictures of your own, or " if spec.is_images else ""
    return (
        f"The data have samples of shape {list(spec.shape)}, but architecture {name!r} takes {kind}: {own}choose "
        "another data.url or model.architecture."
    )


@torch.no_grad()
def start_output_bias_at_mean(ali: ALI, space: DataSpace, pixel_mean: Sequence[float]) -> None:
    """Set the decoder's output bias to the logit of the data's per-pixel mean.

    Source: the authors' code.

    Args:
        ali: Its decoder ends in a bias and a sigmoid.
        space: The ranges of stored and model values.
        pixel_mean: Of the data, flattened, in [0, 1].

    Raises:
        InputError: The decoder does not end in a sigmoid.
    """
    last = [m for m in ali.decoder.modules() if getattr(m, "bias", None) is not None][-1]
    if not any(isinstance(m, nn.Sigmoid) for m in ali.decoder.modules()):
        raise InputError(
            "model.output_bias_from_data is true, which needs a decoder that ends in a sigmoid: set it to false."
        )
    mean = space.unit_from_stored(torch.tensor(pixel_mean).view(1, *space.stored_shape)).clamp(1e-7, 1 - 1e-7)
    bias = last.bias
    assert isinstance(bias, Tensor)
    bias.copy_(torch.logit(mean)[0] if bias.dim() > 1 else torch.logit(mean.mean((0, 2, 3))))


def build_ali(
    architecture: Architecture,
    x_shape: tuple[int, ...],
    sizes: NetworkSizes,
    *,
    encoder: str = "gaussian",
    discriminator_dropout: float | None = None,
    game: GameSpec | None = None,
    native: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> ALI:
    """A freshly initialized ALI on the CPU; torch's global generator is left as it was.

    Args:
        architecture: Layer tables; see `ali_dist.model.architectures`.
        x_shape: Shape of one sample at the model's size.
        sizes: n_z and whatever else the tables leave open.
        encoder: gaussian, deterministic or implicit.
        discriminator_dropout: Dropout on every D layer's input; None: as in the architecture.
        game: Who plays.
        native: See `ALI`.
        seed: Seed of the weights.

    Raises:
        ValueError: The tables do not fit `x_shape`.
    """
    game = game or GameSpec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        architecture_d = with_dropout(architecture, discriminator_dropout)
        ali = ALI(
            Encoder(architecture, x_shape, sizes, encoder),
            Decoder(architecture, x_shape, sizes),
            Discriminator(architecture_d, x_shape, sizes),
            nn.Linear(sizes.condition, sizes.embedding) if sizes.condition else None,
            game=game,
            native=native,
        )
        initialize_weights(ali, architecture)
    if encoder == "gaussian":
        last = [m for m in ali.encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        assert last.bias is not None
        nn.init.constant_(last.bias[sizes.latent :], architecture.log_sigma_bias)
    if game.kind == "inverse":
        ali.discriminator.requires_grad_(False)
    return ali
