"""Loading a trained model: the networks of a checkpoint, ready to be used, without the data they were trained on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ali_dist.config import Config, StorageConfig
from ali_dist.config.loading import from_mapping
from ali_dist.data.shards.index import find_split, load_index
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI
from ali_dist.model.build import build_networks
from ali_dist.model.data_space import DataSpace
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.inference_model import InferenceModel
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.checkpoint_files import Checkpoint, CheckpointMetadata
from ali_dist.runs.datasets import open_url
from ali_dist.runs.find_run import find_run
from ali_dist.storage.base import Store

_ONLY_IN_EXPORTS = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run, loaded from one of its checkpoints.

    Attributes:
        store: The run's folder.
        config: The run's config, as the checkpoint has it.
        metadata: Where training stood (`step`, `images_seen`), and the evaluation before that (`metrics`).
        weights: ema: the averaged encoder and decoder; raw: the networks as last updated.
        spec: What the training data are.
        space: The ranges of stored, [0, 1] and model values.
        model: The networks, in evaluation mode, on the device asked for.
    """

    store: Store
    config: Config
    metadata: CheckpointMetadata
    weights: Literal["ema", "raw"]
    spec: DataSpec
    space: DataSpace
    model: InferenceModel

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.run.name


def load_run(
    path: str,
    storage: StorageConfig | None = None,
    *,
    weights: Literal["auto", "ema", "raw"] = "auto",
    device: torch.device | str = "cpu",
) -> LoadedRun:
    """Load the newest complete checkpoint of a run, or a given one.

    Args:
        path: A run folder or a checkpoint folder in one, local or s3://; or the name of a run under runs/.
        storage: How to reach S3; None: as by default.
        weights: auto: the averages of encoder and decoder if the run has them.
        device: Where the networks are put.

    Raises:
        InputError: There is no such run (the message names the nearest), no complete checkpoint, no such weights, or
            one that this version cannot read.
    """
    storage = storage or StorageConfig()
    store, step = find_run(path, storage)
    if store.stat(_ONLY_IN_EXPORTS) is not None and not store.list("checkpoints/"):
        raise InputError(
            f"{path!r} is an exported model, not a run, and has no checkpoints: open it in Python with ali_dist.load, "
            "or give the run that it was exported from."
        )
    checkpoints = CheckpointStore(store, 1, _write_warning)
    skip = ("optimizer",)
    checkpoint = checkpoints.read_newest(skip) if step is None else checkpoints.read_step(step, skip)
    if checkpoint is None:
        raise InputError(
            f"Run {path!r} has no complete checkpoint in {store.url}: wait for its first one "
            "(report.checkpoint_every), or run the train command again to finish it."
        )
    config = _read_config(checkpoint, store)
    spec = _read_data_spec(checkpoint.metadata, config, storage)
    ali, space = build_networks(config, spec, config.run.seed)
    loaded_weights = _load_weights(ali, checkpoint.tensors, weights, store)
    return LoadedRun(
        store=store,
        config=config,
        metadata=checkpoint.metadata,
        weights=loaded_weights,
        spec=spec,
        space=space,
        model=make_inference_model(ali, space, config, spec, device),
    )


def _write_warning(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _read_config(checkpoint: Checkpoint, store: Store) -> Config:
    try:
        return from_mapping(checkpoint.metadata.config)
    except InputError as error:
        raise InputError(
            f"The checkpoint in {store.url} was written by another version of ali_dist, and this one cannot use its "
            f"settings ({str(error).rstrip('.')}): use the version that wrote it."
        ) from error


def _read_data_spec(metadata: CheckpointMetadata, config: Config, storage: StorageConfig) -> DataSpec:
    """Read what the data are from the checkpoint, or, where an older one does not say it, from their index."""
    if metadata.data:
        return DataSpec.from_mapping(metadata.data)
    try:
        root = open_url(config.data.url, storage_for_data(config, storage))
        return load_index(find_split(root, config.data.split)).spec
    except InputError as error:
        raise InputError(
            f"This older checkpoint does not say what its data are, and they cannot be opened to find out: {error}"
        ) from error


def storage_for_data(config: Config, storage: StorageConfig) -> StorageConfig:
    """Choose how to reach a run's data: by the endpoint that was given now, else by the run's own settings."""
    if storage.endpoint_url is not None:
        return storage
    return dataclasses.replace(config.storage, anonymous=config.storage.anonymous or storage.anonymous)


def _load_weights(
    ali: ALI, tensors: Mapping[str, dict[str, Tensor]], weights: Literal["auto", "ema", "raw"], store: Store
) -> Literal["ema", "raw"]:
    """Fill the networks with the weights asked for, and say which of the two they are."""
    if weights == "auto":
        weights = "ema" if "ema" in tensors else "raw"
    if weights == "ema" and "ema" not in tensors:
        raise InputError(
            f"--weights is ema, but the run in {store.url} keeps no average (its optim.ema_half_life is 0): use raw."
        )
    try:
        ali.load_state_dict(tensors["model"])
        if weights == "ema":
            unknown = ali.load_state_dict(tensors["ema"], strict=False).unexpected_keys
            if unknown:
                raise RuntimeError(f"{unknown[0]} has no place in the networks")
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300]
        raise InputError(
            f"The weights in {store.url} do not fit the networks of their own config ({reason}): they were written by "
            "another version of ali_dist, so use that one."
        ) from error
    return weights


def make_inference_model(
    ali: ALI, space: DataSpace, config: Config, spec: DataSpec, device: torch.device | str
) -> InferenceModel:
    """Put networks to use: without gradients, on a device."""

    def make_untrained(seed: int) -> dict[str, nn.Module]:
        return _networks_by_name(build_networks(config, spec, seed)[0])

    return InferenceModel(_networks_by_name(ali.to(device).requires_grad_(False)), space, make_untrained)


def _networks_by_name(ali: ALI) -> dict[str, nn.Module]:
    return dict(ali.named_children())
