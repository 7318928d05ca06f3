"""FID and KID are those of torch-fidelity's own command, and the user's file of weights is only read."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.inception import check_inception_available, inception_distances, read_weights


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published names, without counters of batches: the published file has none."""
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    draws = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        like = torch.empty(tensor.shape)
        if name.endswith(("running_var", "bn.weight")):
            state[name] = like.uniform_(0.5, 1.5, generator=draws)
        elif "num_batches" not in name:
            scale = (2 / max(1, like[0].numel())) ** 0.5 if like.ndim > 1 else 0.1
            state[name] = like.normal_(0, scale, generator=draws)
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights(), path, _use_new_zipfile_serialization=False)  # as old as the published file
    return path


def images(count: int, channels: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, channels, 16, 16), generator=torch.Generator().manual_seed(seed)) / 255


def write_pngs(x: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for number, image in enumerate((x * 255).round().to(torch.uint8)):
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.slow
def test_the_figures_are_those_of_the_command_on_the_same_pngs(file: Path, tmp_path: Path) -> None:
    """Gray images, through safetensors, from a seed of the caller's and without a change to its generator."""
    pytest.importorskip("torch_fidelity", reason="needs the extra 'fid'")
    from safetensors.torch import save_file

    generated, real = images(6, 1, 0), images(9, 1, 1) ** 2
    folders = [write_pngs(generated, tmp_path / "generated"), write_pngs(real, tmp_path / "real")]
    command = [sys.executable, "-m", "torch_fidelity.fidelity", "--cpu", "--fid", "--kid", "--json", "--silent"]
    command += ["--input1", str(folders[0]), "--input2", str(folders[1]), "--no-cache"]
    command += ["--kid-subset-size", "6", "--rng-seed", "7", "--feature-extractor-weights-path", str(file)]
    expected = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    save_file(weights(), tmp_path / "w.safetensors")
    state = torch.get_rng_state()
    read: list[int] = []
    figures = inception_distances(
        generated + 0.3 / 255,  # rounded as in a PNG
        real,
        weights=tmp_path / "w.safetensors",
        seed=7,
        device="cpu",
        on_images=read.append,
    )
    assert figures["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert figures["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert figures["kid_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3, abs=1e-9)
    assert figures["fid"] > 0
    assert sum(read) == 15
    assert torch.equal(torch.get_rng_state(), state)


# ---- the file --------------------------------------------------------------------------------------------------


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
        read_weights(tmp_path / "bad.pth")
    assert not victim.exists()
    pickle.loads(pickle.dumps(Payload(victim)))  # the payload does work
    assert victim.exists()


def test_what_is_wrong_with_the_file_is_named(tmp_path: Path) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(InputError) as caught:
            read_weights(tmp_path / name)
        return str(caught.value)

    assert "no file" in refusal("absent.pth")
    assert "not downloaded" in refusal("absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pth", "text.safetensors"):
        assert "cannot be read as plain tensors" in refusal(name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds a Tensor, not a state dict" in refusal("tensor.pth")
    torch.save({"fc.bias": "none"}, tmp_path / "word.pth")
    assert "not a state dict of tensors" in refusal("word.pth")
    torch.save({"fc.bias": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pth")
    assert "fc.bias holds NaN" in refusal("nan.pth")


@pytest.mark.parametrize(
    ("state", "named"),
    [({"conv.weight": torch.zeros(1)}, "Conv2d_1a_3x3.conv.weight"), (None, "fc.weight")],
    ids=["other", "imagenet"],
)
def test_another_network_is_refused_before_a_download_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor] | None, named: str
) -> None:
    pytest.importorskip("torch_fidelity", reason="needs the extra 'fid'")
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.save(state or weights() | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    x = images(2, 1, 0)
    for path, words in ((tmp_path / "other.pth", named), (tmp_path / "absent.pth", "not downloaded")):
        with pytest.raises(InputError, match=words):
            inception_distances(x, x, weights=path, seed=0, device="cpu")


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"pip install 'ali-dist\[fid\]'"):
        check_inception_available()
