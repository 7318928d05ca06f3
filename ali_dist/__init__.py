"""Adversarially Learned Inference (Dumoulin et al., ICLR 2017) as a distributed training system.

`ali_dist.load` opens a trained model; docs/python.md shows what it can do. Importing the package loads nothing heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from ali_dist.version import VERSION

if TYPE_CHECKING:
    import torch

    from ali_dist.inference.trained_model import TrainedModel

__all__ = ["__version__", "load"]

__version__ = VERSION


def load(
    path: str | os.PathLike[str],
    *,
    checkpoint: int | str | None = None,
    weights: Literal["auto", "ema", "raw"] = "auto",
    device: str | torch.device = "auto",
    endpoint_url: str | None = None,
    anonymous: bool = False,
) -> TrainedModel:
    """Open a trained model: the newest complete checkpoint of a run, or what `python -m ali_dist.export` wrote.

    Args:
        path: A run folder, a checkpoint folder in one, the name of a run under runs/, an exported folder, or
            s3://bucket/prefix of any of these.
        checkpoint: One checkpoint of the run, by its update (8000) or by its folder's name ("step-000008000"); None:
            the newest.
        weights: auto: the averaged encoder and decoder if the run keeps them; ema, raw: these.
        device: auto: the GPU if there is one; or as torch names it: "cpu", "cuda", "cuda:1".
        endpoint_url: S3 endpoint; None: AWS_ENDPOINT_URL or AWS.
        anonymous: Whether public buckets are read without credentials.

    Raises:
        InputError: There is no such run, checkpoint, weights or device; the message names what there is.
        StorageError: The storage itself failed.
    """
    from ali_dist.inference.trained_model import load_model

    return load_model(
        path,
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        endpoint_url=endpoint_url,
        anonymous=anonymous,
    )
