"""Training and evaluation mode of networks that are looked at while they train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(networks: nn.Module) -> Iterator[None]:
    """Give every module the mode it had before the block: dropout and batch norm compute other things in the other one.

    Args:
        networks: Modules whose mode the block may change, each in its own way: a frozen decoder stays in evaluation.
    """
    modes = [(module, module.training) for module in networks.modules()]
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


@contextmanager
def evaluation_mode(networks: nn.Module) -> Iterator[None]:
    """Put all networks into evaluation mode for the block, in which nothing is drawn and no statistics are moved."""
    with modes_kept(networks):
        networks.eval()
        yield
