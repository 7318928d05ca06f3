"""From a config and what the data are to an ALI: the layer tables chosen, sizes filled in, weights drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ali_dist.config import Config, ObjectiveConfig
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI, GameSpec
from ali_dist.model.architectures import ARCHITECTURES, Architecture
from ali_dist.model.data_space import DataSpace
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.networks import Decoder, Discriminator, Encoder, NetworkSizes, initialize_weights, with_dropout


def find_architecture(name: str) -> Architecture:
    """The architecture of this name.

    Raises:
        InputError: There is none.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"model.architecture is {name!r}, but must be one of {', '.join(sorted(ARCHITECTURES))}.")
    return ARCHITECTURES[name]


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
    architecture = find_architecture(config.model.architecture)
    _check_fit(config, spec, architecture)
    space = DataSpace.for_architecture(architecture, spec.shape)
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
            f"data.image_size to {size} to have them resized, or choose another data.url or model.architecture."
        )
    if (len(spec.shape) == 1) != (size is None):
        kind = "points [D]" if size is None else "images [C, H, W]"
        raise InputError(
            f"The data have samples of shape {list(spec.shape)}, but architecture {name!r} takes {kind}: choose "
            "another data.url or model.architecture."
        )
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
        raise InputError("model.encoder is 'implicit', which is for points: use 'gaussian' or 'deterministic'.")


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
