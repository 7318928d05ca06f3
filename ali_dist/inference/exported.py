"""The folder that an exported model is: written from a run, and read again without it.

    config.json               the networks' settings, the data's shape and labels, where training stood
    model.safetensors         weights of encoder and decoder (and of the discriminator, where it was asked for)
    preprocessor_config.json  what becomes of pixels before the encoder
    README.md                 the model card
    encoder.pt2, decoder.pt2, encoder.onnx, decoder.onnx    where these formats were asked for

No file names a place of the machine or the bucket that the run was made on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ali_dist import __version__
from ali_dist.config import StorageConfig
from ali_dist.config.loading import from_mapping
from ali_dist.errors import InputError
from ali_dist.inference.load import LoadedRun, make_inference_model
from ali_dist.model.build import build_networks
from ali_dist.model.data_spec import DataSpec
from ali_dist.runs.checkpoint_files import CheckpointMetadata
from ali_dist.runs.datasets import open_url
from ali_dist.runs.find_run import RUNS
from ali_dist.storage.base import Store

CONFIG, WEIGHTS = "config.json", "model.safetensors"
EXPORT_VERSION = 1
_MODEL_TYPE = "ali_dist"
# Of a checkpoint's metadata: said elsewhere, moot, or of the machines that trained it.
_NOT_EXPORTED = ("config", "data", "precision", "format_version", "spent", "starts")


def native_shape(run: LoadedRun) -> tuple[int, ...]:
    """Shape of one sample as users see it: (C, H, W) at the data's size or the networks', the smaller; or (D,)."""
    if run.space.image_size is None:
        return run.spec.shape
    side = min(run.spec.shape[-1], run.space.image_size)
    return (run.spec.shape[0], side, side)


def write_export(folder: Path, run: LoadedRun, metrics: Mapping[str, float], *, with_discriminator: bool) -> list[str]:
    """Write the configuration, the preprocessing and the weights of a run's model.

    Args:
        folder: Where they go; it exists.
        run: The run.
        metrics: What the model measured, for the configuration.
        with_discriminator: Whether its discriminator is exported, too.

    Returns:
        Names of the files.
    """
    metadata = dataclasses.asdict(run.metadata)
    training = {key: value for key, value in metadata.items() if key not in _NOT_EXPORTED} | {"metrics": dict(metrics)}
    config = {
        "library_name": "ali_dist",
        "model_type": _MODEL_TYPE,
        "format_version": EXPORT_VERSION,
        "ali_dist_version": __version__,
        "weights": run.weights,
        "has_discriminator": with_discriminator,
        "sample_shape": list(native_shape(run)),
        "latent_size": run.model.latent_size,
        "data": run.spec.to_mapping(),
        "training": training,
        "settings": _settings_without_places(run),
    }
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, network in run.model.networks.items()
        if name != "discriminator" or with_discriminator
        for key, tensor in network.state_dict().items()
    }
    _write_json(folder / CONFIG, config)
    _write_json(folder / "preprocessor_config.json", _preprocessing(run))
    # In one piece through Python: a full disk is then an OSError, and the file has the permissions of those beside it.
    (folder / WEIGHTS).write_bytes(dump_tensors(tensors, metadata={"format": "pt"}))
    return [CONFIG, "preprocessor_config.json", WEIGHTS]


def _settings_without_places(run: LoadedRun) -> dict[str, Any]:
    """The run's settings; of paths and urls the last part alone, and nothing of how storage is reached."""
    settings = run.config.to_mapping()
    del settings["storage"], settings["run"]["dir"], settings["data"]["cache_dir"]
    for section, key in (("data", "url"), ("model", "decoder_from")):
        if settings[section][key] is not None:
            settings[section][key] = settings[section][key].rstrip("/").rpartition("/")[2]
    return settings


def _preprocessing(run: LoadedRun) -> dict[str, Any]:
    """What is done to pixels, in the words of image processors; graphs and `ali_dist.load` do the rest themselves."""
    if run.space.image_size is None:
        return {"do_resize": False, "do_rescale": False, "do_normalize": False, "coordinates": run.spec.shape[0]}
    channels, height, width = native_shape(run)
    low, high = run.space.pixel_range
    return {
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,  # bilinear, with smoothing where images shrink
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,  # graphs take [0, 1], and bring it into the networks' range themselves
        "num_channels": channels,
        "network_size": run.space.image_size,
        "network_range": [low, high],
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def open_export(path: str, storage: StorageConfig, device: torch.device) -> tuple[LoadedRun, bool] | None:
    """Open an exported model.

    Args:
        path: Its folder, s3:// or local; or its name under runs/.
        storage: How to reach S3.
        device: Where the networks are put.

    Returns:
        The model as of a run, and whether its discriminator is there; None if there is no exported model.

    Raises:
        InputError: It is damaged, or of another version.
    """
    candidates = [path, f"{RUNS}/{path}"] if "/" not in path and path else [path]
    for candidate in candidates:
        store = open_url(candidate, storage)
        if store.stat(CONFIG) is not None and store.stat(WEIGHTS) is not None:
            return _read_export(store, device)
    return None


def _read_export(store: Store, device: torch.device) -> tuple[LoadedRun, bool]:
    try:
        saved = json.loads(store.get(CONFIG))
        if saved.get("model_type") != _MODEL_TYPE or saved.get("format_version") != EXPORT_VERSION:
            raise InputError(
                f"{CONFIG} in {store.url} is of {saved.get('model_type')!r}, format {saved.get('format_version')}, but "
                f"this version of ali_dist reads {_MODEL_TYPE!r}, format {EXPORT_VERSION}: use the version that wrote "
                "it."
            )
        config = from_mapping(saved["settings"])
        metadata = CheckpointMetadata(config=saved["settings"], data=saved["data"], **saved["training"])
        has_discriminator = bool(saved["has_discriminator"])
        tensors = load_tensors(store.get(WEIGHTS))
        weights = saved["weights"]
        if weights not in ("ema", "raw"):
            raise ValueError(f"weights is {weights!r}")
        spec = DataSpec.from_mapping(saved["data"])
        ali, space = build_networks(config, spec, config.run.seed)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The exported model in {store.url} is damaged ({type(error).__name__}: {error}): export it again."
        ) from error
    _fill(ali, tensors, store, has_discriminator=has_discriminator)
    model = make_inference_model(ali, space, config, spec, device)
    return LoadedRun(store, config, metadata, weights, spec, space, model), has_discriminator


def _fill(ali: torch.nn.Module, tensors: Mapping[str, Tensor], store: Store, *, has_discriminator: bool) -> None:
    try:
        missing, unexpected = ali.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        missing, unexpected = [" ".join(str(error).split())[:300]], []
    if not has_discriminator:
        missing = [name for name in missing if not name.startswith("discriminator.")]
    if missing or unexpected:
        raise InputError(
            f"{WEIGHTS} in {store.url} does not fit {CONFIG} beside it ({[*missing, *unexpected][0]}): export the "
            "model again."
        )
