"""How stored samples, [0, 1] images and the model's own range relate.

Stored: uint8 [B, C, h, w] or float32 points [B, D], as the shards hold them. Unit: images [B, C, H, W] in [0, 1] at
the training size. Model: what the networks take and give. Points have no unit range: unit is as stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ali_dist.model.architectures import Architecture


def _resize_images(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=size < x.shape[-1])


@dataclass(frozen=True, slots=True)
class DataSpace:
    """The maps between the three ranges.

    Attributes:
        stored_shape: Shape of one sample in the shards.
        image_size: Side that the model works at; None for points.
        pixel_range: What [0, 1] becomes inside the model.
        point_scale: What points are divided by inside the model.
    """

    stored_shape: tuple[int, ...]
    image_size: int | None
    pixel_range: tuple[float, float] = (0.0, 1.0)
    point_scale: float = 1.0

    @classmethod
    def for_architecture(cls, architecture: Architecture, stored_shape: tuple[int, ...]) -> DataSpace:
        """The space that an architecture works in, for samples of `stored_shape`."""
        return cls(stored_shape, architecture.image_size, architecture.pixel_range, architecture.point_scale)

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Shape of one sample inside the model."""
        if self.image_size is None:
            return self.stored_shape
        return (self.stored_shape[0], self.image_size, self.image_size)

    def describe_resize(self) -> str:
        """What becomes of the size of images, in a sentence; empty where they stay as they are stored."""
        height, width = self.stored_shape[-2:] if self.image_size is not None else (0, 0)
        if self.image_size is None or (height, width) == (self.image_size, self.image_size):
            return ""
        how = "enlarged" if min(height, width) < self.image_size else "shrunk"
        return f"Images of {height}x{width} are {how} to {self.image_size}x{self.image_size}, the size of the networks."

    def unit_from_stored(self, x: Tensor) -> Tensor:
        """Stored samples as floats in [0, 1] at the training size."""
        if self.image_size is None:
            return x.float()
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return x if x.shape[-2:] == (self.image_size, self.image_size) else _resize_images(x, self.image_size)

    def model_from_unit(self, x: Tensor) -> Tensor:
        """[0, 1] to the model's range."""
        if self.image_size is None:
            return x / self.point_scale
        low, high = self.pixel_range
        return x if (low, high) == (0.0, 1.0) else x * (high - low) + low

    def unit_from_model(self, x: Tensor) -> Tensor:
        """The model's range to [0, 1]."""
        if self.image_size is None:
            return x * self.point_scale
        low, high = self.pixel_range
        return (x - low) / (high - low)

    def native_from_unit(self, x: Tensor) -> Tensor:
        """Images at the training size mapped to the stored size.

        Where training enlarges images, this is the least-squares inverse of the enlargement, so that
        a real image comes back exactly; otherwise images stay at the training size.
        """
        if self.image_size is None or self.stored_shape[-1] >= self.image_size:
            return x
        inverse = _inverse_enlargement(self.stored_shape[-1], self.image_size, x.device, x.dtype)
        return inverse @ x @ inverse.mT


@cache  # on the device, too: a copy from the host would make every update wait for it
def _inverse_enlargement(small: int, large: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[small, large] least-squares inverse of the resize along one axis."""
    columns = torch.eye(small, dtype=torch.float64).view(small, 1, small, 1).expand(-1, -1, -1, small)
    return torch.linalg.pinv(_resize_images(columns, large)[:, 0, :, 0].T).to(device, dtype)


def lay_out_for_device(x: Tensor) -> Tensor:
    """Images [B, C, H, W] channels-last on a GPU, as the weights lie there; anything else as it is."""
    is_image_on_gpu = x.dim() == 4 and x.device.type == "cuda"
    return x.contiguous(memory_format=torch.channels_last) if is_image_on_gpu else x


def condition_vectors(y: Tensor, size: int) -> Tensor:
    """c [B, size] of class numbers int64 [B] (one-hot) or attribute vectors float32 [B, size] (as they are)."""
    c = F.one_hot(y, size).float() if y.dim() == 1 else y.float()
    if c.shape[1] != size:
        raise ValueError(f"conditions have {c.shape[1]} numbers, but the model takes {size}")
    return c
