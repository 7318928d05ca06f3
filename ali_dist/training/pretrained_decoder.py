"""Inference after the fact: a finished run's decoder is taken as it is, and only the rest is learned.

Source: arXiv 1606.00704, section 4.5: post-hoc ALI (the joint game against a fixed decoder) and the learned inverse
mapping (no game).
"""

from __future__ import annotations

from torch import Tensor

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.checkpoint_files import Checkpoint
from ali_dist.runs.datasets import open_url


def load_frozen_decoder(ali: ALI, config: Config) -> None:
    """Give `ali` the decoder of the run `model.decoder_from` (its average if there is one) and freeze it.

    Raises:
        InputError: There is no such run, it has no checkpoint, or its decoder differs from this run's.
    """
    url = config.model.decoder_from
    if url is None:
        raise ValueError("model.decoder_from is not set")
    checkpoints = CheckpointStore(open_url(url, config.storage), keep=1, say=lambda text: None)
    newest = checkpoints.read_newest(skip=("optimizer",))
    if newest is None:
        raise InputError(
            f"model.decoder_from is {url!r}, but there is no complete checkpoint in that folder: give the folder of a "
            f"run that has one, such as runs/NAME."
        )
    weights = newest.tensors.get("ema", newest.tensors["model"])
    trained = {name.removeprefix("decoder."): t for name, t in weights.items() if name.startswith("decoder.")}
    # The architecture's name counts, too: layers of the same shapes may work in another range of pixels or points.
    same_architecture = newest.metadata.config["model"]["architecture"] == config.model.architecture
    if not same_architecture or _shapes(trained) != _shapes(ali.decoder.state_dict()):
        raise _other_decoder_error(url, newest)
    ali.decoder.load_state_dict(trained)
    ali.decoder.requires_grad_(False).eval()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _other_decoder_error(url: str, checkpoint: Checkpoint) -> InputError:
    model = checkpoint.metadata.config["model"]
    return InputError(
        f"The decoder of {url} differs from this run's: it has model.architecture {model['architecture']!r}, "
        f"model.latent_size {model['latent_size']}, model.width {model['width']}, model.condition "
        f"{model.get('condition', 'none')!r} and samples of shape {checkpoint.metadata.data.get('shape')}; give this "
        f"run the same (unconditional) ones, or another model.decoder_from."
    )
