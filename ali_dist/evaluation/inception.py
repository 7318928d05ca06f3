"""Fréchet and kernel Inception distance, comparable with published figures, on weights that the user supplies.

Sources: FID, Heusel et al., NeurIPS 2017 (arXiv 1706.08500); KID, Binkowski et al., ICLR 2018 (arXiv 1801.01401).
The features are those of the 2015 TensorFlow Inception that both papers used, in its published PyTorch conversion
(`pt_inception-2015-12-05-6726825d.pth`, also known as `weights-inception-2015-12-05-6726825d.pth`). torchvision has
the blocks; that network differs from torchvision's in its pooling, in 1008 classes, and in how it enlarges images.
The file is read as tensors only, never unpickled, and nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.errors import InputError
from ali_dist.evaluation.batched import in_batches
from ali_dist.evaluation.frechet import Gaussian, frechet_distance

SIDE = 299
CLASSES = 1008
SUBSETS = 100
SUBSET_SIZE = 1000
IMAGES_AT_ONCE = 50
EXPECTED_FILE = "the converted 2015 Inception that FID is defined by (pt_inception-2015-12-05-6726825d.pth)"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class InceptionNetwork:
    """The feature extractor of FID and KID; made by `load_inception`."""

    network: nn.Module
    device: torch.device

    def features(self, x: Tensor, on_batch: Callable[[int], None] | None = None) -> Tensor:
        """Pooled features float32 [N, 2048] of images [N, 1 or 3, H, W] in [0, 1], on the CPU.

        Grey images are taken as equal red, green and blue. Values are first rounded to 256 levels, as in a PNG file.
        `on_batch` is called after each batch with the number of images in it.

        Raises:
            FloatingPointError: A feature is not finite.
        """
        assert x.ndim == 4 and x.shape[1] in (1, 3), f"images must be [N, 1 or 3, H, W], not {tuple(x.shape)}"
        features = []
        for batch in x.split(IMAGES_AT_ONCE):
            features.append(in_batches(self._features, batch, self.device, "Inception's feature map"))
            if on_batch is not None:
                on_batch(len(batch))
        return torch.cat(features)

    def _features(self, x: Tensor) -> Tensor:
        levels = (x.float() * 255).round().clamp(0, 255).expand(-1, 3, -1, -1)
        return self.network((enlarge_images(levels, SIDE) - 128) / 128)


def load_inception(file: Path | str, *, device: torch.device | str) -> InceptionNetwork:
    """Load the extractor with weights from a .pth (a state dict of tensors) or .safetensors file.

    Raises:
        InputError: torchvision is not installed, there is no such file, or it holds more than tensors or other ones.
    """
    network = _build_network()
    weights = _read_weights(Path(file))
    expected = {name: tensor.shape for name, tensor in network.state_dict().items() if "num_batches" not in name}
    for name, shape in expected.items():
        stored = weights.get(name)
        if not isinstance(stored, Tensor) or stored.shape != shape:
            problem = f"has {list(stored.shape)}" if isinstance(stored, Tensor) else "does not hold it"
            raise InputError(
                f"{file} is not {EXPECTED_FILE}: {name} should be a tensor of {list(shape)}, but the file {problem}; "
                f"give that file, or leave FID and KID out."
            )
    network.load_state_dict({name: weights[name] for name in expected}, strict=False)
    _replace_pooling(network)
    return InceptionNetwork(network.requires_grad_(False).eval().to(device), torch.device(device))


def inception_distances(real: Tensor, generated: Tensor, *, seed: int) -> dict[str, float]:
    """FID and KID of two sets of `InceptionNetwork.features`, [N, 2048] and [M, 2048], N and M >= 2.

    FID is biased by the number of images (fewer: larger), so only figures with the same numbers compare; the usual
    numbers are all training images and 50,000 samples. KID has no such bias.

    Returns:
        fid: In squared feature units, at least 0.
        kid, kid_std: Mean and population standard deviation of the subsets' estimates; may fall below 0 by chance.
    """
    estimates = kernel_distances(real, generated, seed=seed)
    return {
        "fid": frechet_distance(Gaussian.fit(real), Gaussian.fit(generated)),
        "kid": float(estimates.mean()),
        "kid_std": float(estimates.std()),
    }


def kernel_distances(
    real: Tensor, generated: Tensor, *, seed: int, subsets: int = SUBSETS, size: int = SUBSET_SIZE
) -> Array:
    """Estimate the unbiased squared MMD of random subsets, [subsets], with the kernel (u . v / F + 1)^3.

    Each subset draws `size` features of either side without replacement (all, where a side has fewer).
    Source: Binkowski et al., section 4, and Gretton et al., JMLR 13 (2012), lemma 6.
    """
    rng = np.random.default_rng([seed, subsets, size])
    size = min(size, len(real), len(generated))
    assert size >= 2, "needs at least 2 features of either side"
    sides = [real.double().numpy(), generated.double().numpy()]
    return np.array(
        [_mmd2(*(side[rng.choice(len(side), size, replace=False)] for side in sides)) for _ in range(subsets)]
    )


def _mmd2(a: Array, b: Array) -> float:
    def kernel(u: Array, v: Array) -> Array:
        value: Array = u @ v.T / u.shape[1] + 1
        return value * value * value  # several times faster than ** 3

    def within(u: Array) -> float:  # mean over pairs of different points
        values = kernel(u, u)
        return float((values.sum() - np.trace(values)) / (len(u) * (len(u) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def enlarge_images(x: Tensor, side: int) -> Tensor:
    """Resize images [N, C, H, W] to side x side by TensorFlow 1's bilinear rule, which FID's figures rest on.

    Output pixel i lies at i * H / side of the input (corner to corner on the left, not center to center as in
    `torch.nn.functional.interpolate`), and the last row and column repeat beyond the edge.
    """

    def weights(size: int) -> Tensor:  # [side, size]; at most two in each row, which sum to 1
        position = torch.arange(side, dtype=torch.float32) * (size / side)
        low = position.floor().long()
        high = (low + 1).clamp(max=size - 1)
        share = (position - low)[:, None]
        unit = torch.eye(size)
        return ((1 - share) * unit[low] + share * unit[high]).to(x)

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).T


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise InputError(f"There is no file {file}: FID and KID need {EXPECTED_FILE}, which is not downloaded for you.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # garbled bytes make torch's restricted unpickler fail in any way there is
        raise InputError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}), and nothing else is ever loaded: "
            f"give {EXPECTED_FILE} as a .pth state dict or a .safetensors file, not a TorchScript or pickled model."
        ) from error
    if not isinstance(weights, Mapping):
        raise InputError(f"{file} holds a {type(weights).__name__}, not a state dict: give {EXPECTED_FILE}.")
    return weights


class Repooled(nn.Module):
    """An Inception block of torchvision's with another pooling in its pooled branch, whose output it puts last."""

    def __init__(self, block: Any, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = block
        self.pool = pool
        self.branch_pool = block.branch_pool
        block.branch_pool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        others = self.block(x)[:, : -x.shape[1]]
        return torch.cat([others, self.branch_pool(self.pool(x))], dim=1)


def inner_mean(x: Tensor) -> Tensor:
    """3x3 means [N, C, H, W] at stride 1 of the pixels inside the image, as in TensorFlow; torchvision adds zeros."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def largest_of_neighbours(x: Tensor) -> Tensor:
    """3x3 maxima [N, C, H, W] at stride 1: what the last block of the 2015 network takes in place of means."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _replace_pooling(network: Any) -> None:
    """Give the network the 2015 pooling, in place; last, because it changes the names of the weights."""
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        setattr(network, f"Mixed_{name}", Repooled(getattr(network, f"Mixed_{name}"), inner_mean))
    network.Mixed_7c = Repooled(network.Mixed_7c, largest_of_neighbours)
    network.fc = nn.Identity()


def _build_network() -> nn.Module:
    """Build torchvision's Inception for 1008 classes, without weights; its state dict has the published file's names.

    Raises:
        InputError: torchvision is not installed.
    """
    try:
        from torchvision.models import inception_v3
    except ImportError as error:
        raise InputError(f"FID and KID need torchvision, which cannot be imported ({error}): install it.") from error
    with torch.device("meta"):  # initializing would draw from torch's global generator, which belongs to the caller
        network: nn.Module = inception_v3(
            weights=None, num_classes=CLASSES, aux_logits=False, transform_input=False, init_weights=False
        )
    return network.to_empty(device="cpu")
