"""The one schema of `ali_dist`: frozen dataclasses that YAML presets, the command line and Tune share.

Every setting has one dotted name (`optim.lr_d`), used the same way in a preset file, as a command-line override
(`--optim.lr_d 1e-4`) and in a search space; `loading.py` turns those into a `Config`. Each section checks its own
values. Importing this package imports neither torch nor ray.
"""

from __future__ import annotations

from ali_dist.config.learning import AUGMENTATIONS, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig
from ali_dist.config.running import ReportConfig, RunConfig, ScaleConfig, StorageConfig
from ali_dist.config.schema import Config

__all__ = [
    "AUGMENTATIONS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ReportConfig",
    "RunConfig",
    "ScaleConfig",
    "StorageConfig",
]
