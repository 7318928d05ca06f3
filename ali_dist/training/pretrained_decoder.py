"""Inference after the fact: a finished run's decoder is taken as it is, and only the rest is learnt.

Source: arXiv 1606.00704, section 4.5: post-hoc ALI (the joint game against a fixed decoder) and the learned inverse
mapping (no game).
"""

from __future__ import annotations

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.datasets import open_url


def load_frozen_decoder(ali: ALI, config: Config) -> None:
    """Give `ali` the decoder of the run `model.decoder_from` (its average if there is one) and freeze it.

    Raises:
        InputError: There is no such run, it has no checkpoint, or its decoder is another one than this run's.
    """
    url = config.model.decoder_from
    assert url is not None
    newest = CheckpointStore(open_url(url, config.storage), keep=1, say=lambda text: None).newest(skip=("optimizer",))
    if newest is None:
        raise InputError(
            f"model.decoder_from is {url!r}, but there is no complete checkpoint in that folder: give the folder of a "
            f"run that has one, such as runs/NAME."
        )
    source = newest.tensors.get("ema", newest.tensors["model"])
    theirs = {n.removeprefix("decoder."): t for n, t in source.items() if n.startswith("decoder.")}
    mine, was, now = ali.decoder.state_dict(), newest.metadata.config["model"], config.model
    # The name, too: layers of the same shapes may work in another range of pixels or points.
    same_tables = was["architecture"] == now.architecture
    if not same_tables or {n: t.shape for n, t in theirs.items()} != {n: t.shape for n, t in mine.items()}:
        raise InputError(
            f"The decoder of {url} is another one than this run's: it has model.architecture {was['architecture']!r}, "
            f"model.latent_size {was['latent_size']}, model.width {was['width']}, model.condition "
            f"{was.get('condition', 'none')!r} and samples of shape {newest.metadata.data.get('shape')}; give this run "
            f"the same (unconditional) ones, or another model.decoder_from."
        )
    ali.decoder.load_state_dict(theirs)
    ali.decoder.requires_grad_(False).eval()
