"""Small classifiers, trained on the training split, that score decoder samples and reconstructions.

On scikit-learn's digits at 16x16 one is right on 97 to 98 % of the test images after about 4 seconds on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from ali_dist.eager_adam import EagerAdam
from ali_dist.evaluation.batched import in_batches, make_generator
from ali_dist.evaluation.interfaces import LabelledArrays

STEPS = 400
LARGEST_FACTOR = 4
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
FEATURES = 64
POOLED_SIDE = 4
LARGEST_SIDE = 64
"""Pixels of the shorter side from which images are averaged down, by a whole factor: time grows with their area."""

OnBatch = Callable[[int], None]
"""Called with the number of samples or updates just done; may raise to end the work."""


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of classes.

    Attributes:
        trunk: Maps images [N, C, H, W] in [0, 1] to features [N, 64].
        head: Maps features to one logit for each class.
        device: Where both are.
    """

    trunk: nn.Module
    head: nn.Module
    device: torch.device

    def features(self, x: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """Penultimate features [N, 64], at least 0, of images [N, C, H, W]; on the CPU."""
        return in_batches(self.trunk, x, self.device, "classifier's feature map", on_batch=on_batch)

    def classify(self, features: Tensor) -> Tensor:
        """Predict classes, int64 [N], from penultimate features [N, 64]."""
        return in_batches(self.head, features, self.device, "classifier's logits").argmax(dim=1)


@dataclass(frozen=True)
class AttributeClassifier:
    """A trained classifier of A binary attributes.

    Attributes:
        network: Maps images [N, C, H, W] in [0, 1] to one logit for each attribute; its first part gives features.
        device: Where it is.
    """

    network: nn.Sequential
    device: torch.device

    def features(self, x: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """Penultimate features [N, 64], at least 0, of images [N, C, H, W]; on the CPU."""
        return in_batches(self.network[0], x, self.device, "attribute classifier's feature map", on_batch=on_batch)

    def detect_attributes(self, x: Tensor) -> Tensor:
        """Predict which attributes images [N, C, H, W] have, bool [N, A] on the CPU."""
        return in_batches(self.network, x, self.device, "attribute classifier's logits") > 0


def classifier_updates(x: Tensor) -> int:
    """Updates that a classifier of images like `x` [N, C, H, W] needs: 400 up to 16x16, then by area, up to 1600.

    On drawn shapes at 32x32 a classifier of classes is right on 70 % after 400 updates and on 97 % after 1000.
    """
    return round(STEPS * min(LARGEST_FACTOR, max(1.0, x.shape[2] * x.shape[3] / 256)))


def train_classifier(
    train: LabelledArrays,
    *,
    seed: int,
    device: torch.device | str,
    steps: int | None = None,
    on_step: OnBatch | None = None,
) -> Classifier:
    """Train a classifier on a labelled split; the same arguments give the same one (bit for bit on a CPU).

    Adam with a cosine decay to 0, cross-entropy, no augmentation; batches are drawn with replacement.

    Args:
        train: Images with class labels.
        seed: Seed of weights and batches.
        device: Where it is trained and used.
        steps: Updates; None: 400, which is too few above about 16x16 (see `classifier_updates`).
        on_step: Called with 1 after each update.

    Raises:
        ValueError: The images have no class labels.
    """
    if train.classes is None:
        raise ValueError("A classifier needs images with class labels, but these have none.")
    device = torch.device(device)
    draws = make_generator(seed, "classifier")
    trunk, head = _build_network(train.x.shape[1], int(train.classes.max()) + 1, draws, device)
    _train_network(trunk, head, train.x, train.classes, F.cross_entropy, draws, steps or STEPS, device, on_step)
    return Classifier(trunk.eval(), head.eval(), device)


def train_attribute_classifier(
    x: Tensor, y: Tensor, *, seed: int, device: torch.device | str, on_step: OnBatch | None = None
) -> AttributeClassifier:
    """Train a classifier of attributes as `train_classifier` does one of classes, for `classifier_updates`.

    The loss is the mean of one binary cross-entropy for each attribute.

    Args:
        x: Images, float32 [N, C, H, W] in [0, 1].
        y: float32 [N, A]; 1 where the image has the attribute, 0 where it does not.
        seed: Seed of weights and batches.
        device: Where it is trained and used.
        on_step: Called with 1 after each update.

    Raises:
        ValueError: The attributes are of another form.
    """
    if y.ndim != 2 or y.dtype != torch.float32 or len(y) != len(x):
        raise ValueError(f"Attributes must be float32 [{len(x)}, A], not {y.dtype} {tuple(y.shape)}.")
    device = torch.device(device)
    draws = make_generator(seed, "attribute judge")  # part of the seed: another word would change every number
    trunk, head = _build_network(x.shape[1], y.shape[1], draws, device)
    criterion = F.binary_cross_entropy_with_logits
    _train_network(trunk, head, x, y, criterion, draws, classifier_updates(x), device, on_step)
    return AttributeClassifier(nn.Sequential(trunk, head).eval(), device)


def _train_network(
    trunk: nn.Module,
    head: nn.Module,
    x: Tensor,
    y: Tensor,
    criterion: Callable[[Tensor, Tensor], Tensor],
    draws: torch.Generator,
    steps: int,
    device: torch.device,
    on_step: OnBatch | None,
) -> None:
    # The pooling is several times as fast where the channels of a pixel lie side by side.
    trunk.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    parameters = [*trunk.parameters(), *head.parameters()]
    optimizer = EagerAdam(parameters, lr=LEARNING_RATE, fused=device.type in ("cpu", "cuda"))
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(x), (BATCH_SIZE,), generator=draws)
            loss = criterion(head(trunk(x[rows].to(device))), y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_step is not None:
                on_step(1)
    trunk.to(memory_format=torch.contiguous_format)  # what it gives is then, bit for bit, what restored weights give


def classifier_tensors(classifier: Classifier | AttributeClassifier) -> dict[str, Tensor]:
    """The weights of a trained classifier by name, on the CPU."""
    if isinstance(classifier, Classifier):
        network = nn.Sequential(classifier.trunk, classifier.head)
    else:
        network = classifier.network
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def restore_classifier(
    tensors: dict[str, Tensor], channels: int, classes: int, device: torch.device | str
) -> Classifier:
    """Build a classifier of classes with weights that `classifier_tensors` gave.

    Raises:
        RuntimeError: They are of another network.
    """
    trunk, head = _build_network(channels, classes, make_generator(0, "classifier"), torch.device(device))
    nn.Sequential(trunk, head).load_state_dict(tensors)
    return Classifier(trunk.eval(), head.eval(), torch.device(device))


def restore_attribute_classifier(
    tensors: dict[str, Tensor], channels: int, attributes: int, device: torch.device | str
) -> AttributeClassifier:
    """Build a classifier of attributes with weights that `classifier_tensors` gave.

    Raises:
        RuntimeError: They are of another network.
    """
    trunk, head = _build_network(channels, attributes, make_generator(0, "classifier"), torch.device(device))
    network = nn.Sequential(trunk, head)
    network.load_state_dict(tensors)
    return AttributeClassifier(network.eval(), torch.device(device))


def _build_network(
    channels: int, classes: int, draws: torch.Generator, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """Build two convolutions and a hidden layer, for images of any size."""
    with torch.device("meta"):
        trunk = _Trunk(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.ReLU(),
            _AverageTo(POOLED_SIDE),
            nn.Flatten(),
            nn.Linear(64 * POOLED_SIDE**2, FEATURES),
            nn.ReLU(),
        )
        head = nn.Linear(FEATURES, classes)
    fill_weights(nn.Sequential(trunk, head), draws)
    return trunk.to(device), head.to(device)


class _AverageTo(nn.AdaptiveAvgPool2d):
    """Averages to a side; where images have it already, torch's own would take a tenth of the training."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[2:] == (self.output_size, self.output_size) else super().forward(x)


class _Trunk(nn.Sequential):
    """A sequence of layers that sees large images smaller."""

    def forward(self, x: Tensor) -> Tensor:
        factor = min(x.shape[2:]) // LARGEST_SIDE
        return super().forward(F.avg_pool2d(x, factor, ceil_mode=True) if factor > 1 else x)


def fill_weights(network: nn.Module, draws: torch.Generator) -> None:
    """Bring a network from the meta device to the CPU, in place, with weights drawn from `draws`.

    Layers are made on the meta device and filled here because their own initialization would draw from torch's global
    generator, which belongs to the caller.
    """
    for layer in network.modules():
        _take_memory(layer)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=draws)
                if layer.bias is not None:
                    layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()  # constants: draws nothing


def _take_memory(layer: nn.Module) -> None:
    """Give a layer's own tensors memory; `Module.to_empty` would do it, but imports SymPy, for half a second."""
    for name, parameter in layer.named_parameters(recurse=False):
        layer.register_parameter(name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
    for name, buffer in layer.named_buffers(recurse=False):
        layer.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
