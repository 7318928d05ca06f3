"""Fréchet and kernel Inception distance by torch-fidelity, on weights that the user supplies.

Sources: FID, Heusel et al., NeurIPS 2017 (arXiv 1706.08500); KID, Binkowski et al., ICLR 2018 (arXiv 1801.01401). The
figures are those of torch-fidelity's own command on folders of PNG files with the same images. The weights are those of
the 2015 Inception in its published conversion; the file is read as tensors only, and nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ali_dist.errors import InputError

EXPECTED_FILE = "the converted 2015 Inception that FID is defined by (weights-inception-2015-12-05-6726825d.pth)"
SUBSET_SIZE = 1000
"""Images in each of KID's 100 subsets; where a side has fewer, all of them."""
_IMAGES_AT_ONCE = 50


def check_inception_available() -> None:
    """Find out before anything is computed.

    Raises:
        InputError: torch-fidelity is not installed.
    """
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"FID and KID need torch-fidelity, which cannot be imported ({error}): pip install 'ali-dist[fid]'."
        ) from error


def inception_distances(
    generated: Tensor,
    real: Tensor,
    *,
    weights: Path | str,
    seed: int,
    device: torch.device | str,
    on_images: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """FID and KID of two sets of images, [N, 1 or 3, H, W] in [0, 1] with at least 2 each.

    Gray images are taken as equal red, green and blue. Values are first rounded to 256 levels, as in a PNG file. FID is
    biased by the number of images (fewer: larger), so only figures with the same numbers compare; the usual numbers are
    all training images and 50,000 samples. KID has no such bias.

    Args:
        generated: Decoder samples.
        real: Training images.
        weights: File with the weights: a .pth state dict of tensors, or .safetensors.
        seed: Seed of KID's subsets.
        device: Where the network runs.
        on_images: Called with the number of images that were read since the last call; N + M in all.

    Returns:
        fid: In squared feature units, at least 0.
        kid, kid_std: Mean and population standard deviation of the subsets' estimates; may fall below 0 by chance.

    Raises:
        InputError: torch-fidelity is missing, or the file is missing or another one.
    """
    check_inception_available()
    from torch_fidelity import calculate_metrics

    # The network draws initial weights, which the file's replace, from the generator that belongs to the caller.
    with _weights_for_fidelity(Path(weights)) as file, torch.random.fork_rng(devices=[]):
        try:
            figures = calculate_metrics(
                input1=_PngLevels(generated, on_images),
                input2=_PngLevels(real, on_images),
                fid=True,
                kid=True,
                kid_subset_size=min(SUBSET_SIZE, len(generated), len(real)),
                rng_seed=seed,
                feature_extractor_weights_path=str(file),
                batch_size=_IMAGES_AT_ONCE,
                cuda=torch.device(device).type == "cuda",
                cache=False,
                verbose=False,
                save_cpu_ram=True,  # reads images in this process, so that progress is seen
            )
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise InputError(
                f"{weights} is not {EXPECTED_FILE} ({_first_problem(error)}): give that file, or choose another --what."
            ) from error
    return {
        "fid": max(0.0, float(figures["frechet_inception_distance"])),
        "kid": float(figures["kernel_inception_distance_mean"]),
        "kid_std": float(figures["kernel_inception_distance_std"]),
    }


class _PngLevels(Dataset[Tensor]):
    """Images as torch-fidelity takes them: uint8 [3, H, W]."""

    def __init__(self, x: Tensor, on_images: Callable[[int], None]) -> None:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"Images must be [N, 1 or 3, H, W], not {tuple(x.shape)}.")
        self._x = x
        self._on_images = on_images
        self._read = 0

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> Tensor:
        if index >= self._read:  # the first image is looked at once more
            self._on_images(index + 1 - self._read)
            self._read = index + 1
        return (self._x[index] * 255).round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


@contextlib.contextmanager
def _weights_for_fidelity(file: Path) -> Iterator[Path]:
    """A file with the tensors of `file` and nothing else, which is removed afterwards.

    torch-fidelity unpickles what it is given, whatever that is, and downloads where it is given nothing: so the file is
    read here, by the unpickler that knows nothing but tensors.

    Raises:
        InputError: There is no such file, or it holds more than tensors.
    """
    weights = dict(read_weights(file))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "weights.pth"
        torch.save(weights, copy)
        yield copy


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Read a state dict of tensors and nothing else.

    Raises:
        InputError: There is no such file, or it holds something else, or values that are not finite.
    """
    if not file.is_file():
        raise InputError(f"There is no file {file}: FID and KID need {EXPECTED_FILE}, which is not downloaded for you.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # garbled bytes make torch's restricted unpickler fail in any way there is
        raise InputError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}), and nothing else is ever loaded: "
            f"give {EXPECTED_FILE} as a .pth state dict or a .safetensors file, not a TorchScript or pickled model."
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{file} holds a {type(weights).__name__}, not a state dict of tensors: give {EXPECTED_FILE}.")
    bad = next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)
    if bad is not None:
        raise InputError(f"{file} is damaged: its {bad} holds NaN or infinity; fetch {EXPECTED_FILE} anew.")
    return weights


def _first_problem(error: RuntimeError) -> str:
    """The first thing that torch says of a state dict that does not fit, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[1] if len(lines) > 1 else lines[0]
    return text if len(text) <= 150 else f"{text[:150]}..."
