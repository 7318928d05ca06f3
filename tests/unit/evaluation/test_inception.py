"""FID and KID: the network, its images and its distances are the published ones, and its weights are only read."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ali_dist.errors import InputError
from ali_dist.evaluation import inception
from ali_dist.evaluation.inception import (
    InceptionNetwork,
    Repooled,
    enlarge_images,
    inception_distances,
    inner_mean,
    kernel_distances,
    largest_of_neighbours,
    load_inception,
)


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published names, without counters of batches: the published file has none."""
    draws = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in inception._build_network().state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            state[name] = torch.empty_like(tensor).uniform_(0.5, 1.5, generator=draws)
        elif "num_batches" not in name:
            fan_in = max(1, tensor[0].numel())
            state[name] = torch.empty_like(tensor).normal_(
                0, (2 / fan_in) ** 0.5 if tensor.ndim > 1 else 0.1, generator=draws
            )
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights(), path)
    return path


@pytest.fixture(scope="module")
def extractor(file: Path) -> InceptionNetwork:
    return load_inception(file, device="cpu")


def images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)) / 255


# ---- the network -----------------------------------------------------------------------------------------------


def test_features_have_2048_numbers_that_depend_on_the_image_not_on_its_neighbours(extractor: InceptionNetwork) -> None:
    batches: list[int] = []
    x = images(3, 16)
    features = extractor.features(x, on_batch=batches.append)
    assert features.shape == (3, 2048)
    assert batches == [3]
    torch.testing.assert_close(extractor.features(x[1:2])[0], features[1], rtol=1e-4, atol=1e-4)
    assert float((features[0] - features[1]).abs().max()) > 0.01


def test_gray_images_count_as_color_images_and_values_are_rounded_as_in_a_png(extractor: InceptionNetwork) -> None:
    gray = images(1, 16)[:, :1]
    features = extractor.features(gray)
    assert torch.equal(features, extractor.features(gray.expand(-1, 3, -1, -1)))
    assert torch.equal(features, extractor.features((gray + 0.4 / 255).clamp(0, 1)))
    assert not torch.equal(features, extractor.features((gray + 0.6 / 255).clamp(0, 1)))


def test_features_equal_those_of_torch_fidelity(extractor: InceptionNetwork, file: Path) -> None:
    """The reference implementation, where it is installed; small, large and already fitting images."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity not installed")
    theirs = module.FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(file))
    for side in (32, 299, 320):
        x = images(2, side, seed=side)
        expected = theirs((x * 255).round().to(torch.uint8))[0]
        torch.testing.assert_close(extractor.features(x), expected, rtol=1e-4, atol=1e-4)


def test_every_pooled_branch_has_the_2015_pooling(extractor: InceptionNetwork) -> None:
    """Eight blocks take means of what lies inside the image, the last one maxima."""
    blocks = {name: part.pool for name, part in extractor.network.named_children() if isinstance(part, Repooled)}
    assert blocks == {f"Mixed_{n}": inner_mean for n in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b")} | {
        "Mixed_7c": largest_of_neighbours
    }
    ones = torch.ones(1, 2, 4, 4)
    assert torch.equal(inner_mean(ones), ones)  # with zeros around, corners would be 4/9
    spot = torch.zeros(1, 1, 5, 5)
    spot[0, 0, 2, 2] = 1
    assert largest_of_neighbours(spot).sum() == 9


def test_a_repooled_block_differs_from_torchvisions_in_its_last_branch_only() -> None:
    """Fails if torchvision moves the pooled branch or renames it."""
    from torchvision.models.inception import InceptionE

    torch.manual_seed(0)
    block: Any = InceptionE(8).eval()
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        before, expected = block(x), block.branch_pool(largest_of_neighbours(x))
        after = Repooled(block, largest_of_neighbours)(x)
    assert torch.equal(after[:, :-192], before[:, :-192])
    assert torch.equal(after[:, -192:], expected)
    assert after.shape == before.shape


def test_images_are_enlarged_by_tensorflows_old_rule() -> None:
    """By hand: 2 -> 4 puts outputs at 0, 0.5, 1, 1.5 of the input and repeats the last; 7 -> 7 does nothing."""
    x = torch.tensor([[0.0, 10.0], [100.0, 110.0]])[None, None]
    rows = torch.tensor([0.0, 50, 100, 100])[:, None]
    assert torch.equal(enlarge_images(x, 4)[0, 0], rows + torch.tensor([0.0, 5, 10, 10]))
    x = images(1, 7)
    assert torch.equal(enlarge_images(x, 7), x)


def test_loading_leaves_the_callers_generator_alone(file: Path) -> None:
    before = torch.get_rng_state()
    load_inception(file, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


# ---- the file --------------------------------------------------------------------------------------------------


def test_safetensors_and_the_old_format_of_torch_are_read_alike(extractor: InceptionNetwork, tmp_path: Path) -> None:
    """The published file dates from before torch's zip format."""
    from safetensors.torch import save_file

    save_file(weights(), tmp_path / "w.safetensors")
    torch.save(weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    x = images(1, 16)
    for name in ("w.safetensors", "old.pth"):
        assert torch.equal(load_inception(tmp_path / name, device="cpu").features(x), extractor.features(x))


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    victim = tmp_path / "victim"
    torch.save({"fc.bias": Payload(victim)}, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="nothing else is ever loaded"):
        load_inception(tmp_path / "bad.pth", device="cpu")
    assert not victim.exists()
    pickle.loads(pickle.dumps(Payload(victim)))  # the payload does work
    assert victim.exists()


def test_what_is_wrong_with_the_file_is_named(tmp_path: Path) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(InputError) as caught:
            load_inception(tmp_path / name, device="cpu")
        return str(caught.value)

    assert "no file" in refusal("absent.pth")
    assert "not downloaded" in refusal("absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pth", "text.safetensors"):
        assert "cannot be read as plain tensors" in refusal(name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds a Tensor, not a state dict" in refusal("tensor.pth")
    torch.save(weights() | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "imagenet.pth")
    assert "fc.weight should be a tensor of [1008, 2048], but the file has [1000, 2048]" in refusal("imagenet.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert "Conv2d_1a_3x3.conv.weight" in refusal("other.pth")
    torch.save(weights() | {"fc.bias": "none"}, tmp_path / "word.pth")
    assert "fc.bias" in refusal("word.pth")


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(InputError, match="need torchvision"):
        load_inception(file, device="cpu")


def test_nothing_touches_the_network(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert isinstance(load_inception(file, device="cpu").network, nn.Module)


# ---- the distances ---------------------------------------------------------------------------------------------


def features(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_distance_is_the_unbiased_estimate_written_out() -> None:
    a, b = features(5, 0), features(5, 1)

    def kernel(u: Tensor, v: Tensor) -> float:
        return (float(u.double() @ v.double()) / 16 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(kernel(u, v) for u in a for v in b) / 25
    assert kernel_distances(a, b, seed=0, subsets=2) == pytest.approx([within - 2 * between] * 2)


def test_kernel_distance_of_equal_distributions_is_zero_on_average_and_of_others_is_not() -> None:
    """Unbiased at any size: 200 subsets of 20, whose mean has a standard error of about 0.004."""
    same = kernel_distances(features(4000, 0), features(4000, 1), seed=0, subsets=200, size=20)
    assert same.shape == (200,)
    assert abs(same.mean()) < 4 * same.std() / np.sqrt(200)
    assert same.min() < 0 < same.max()
    assert kernel_distances(features(4000, 0), features(4000, 1, shift=0.5), seed=0, size=20).mean() > 0.3


def test_distances_of_shifted_features() -> None:
    """A shift by 1 in 16 dimensions alone: FID 16; the same features: 0. The seed moves KID's subsets only."""
    a = features(1100, 0)
    shifted = inception_distances(a, a + 1, seed=0)
    assert shifted["fid"] == pytest.approx(16, rel=1e-6)
    assert inception_distances(a, a, seed=0)["fid"] == pytest.approx(0, abs=1e-6)
    other = inception_distances(a, a + 1, seed=1)
    assert other["fid"] == shifted["fid"]
    assert other["kid"] != shifted["kid"]
    assert other["kid"] == pytest.approx(shifted["kid"], rel=0.05)
    assert shifted["kid_std"] > 0
