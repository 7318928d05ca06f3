"""`Config`: all sections of the schema, and the rules that span several of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ali_dist.config.learning import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig
from ali_dist.config.running import ReportConfig, RunConfig, ScaleConfig, StorageConfig
from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a run depends on."""

    run: RunConfig = field(default_factory=RunConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if self.run.images < self.data.global_batch_size:
            raise InputError(
                f"run.images is {self.run.images}, which is less than one global batch "
                f"(data.global_batch_size is {self.data.global_batch_size}): train for at least one batch."
            )
        self._check_packing()
        if self.data.labelled is not None and not self.objective.supervised:
            raise InputError(
                f"data.labelled is {self.data.labelled}, but objective.supervised is 0, so that no label is used: give "
                f"objective.supervised, or set data.labelled to none."
            )
        if self.objective.supervised and self.model.condition != "none":
            raise InputError(
                f"model.condition is {self.model.condition!r}, which tells D the labels that objective.supervised "
                f"({self.objective.supervised:g}) asks it for: set model.condition to 'none', or objective.supervised "
                f"to 0."
            )
        post_hoc = self.model.decoder_from is not None
        game = self.objective.game
        if (game == "inverse" and not post_hoc) or (game == "gan" and post_hoc):
            raise InputError(
                f"objective.game is {game!r}, which "
                + ("needs a decoder to invert: give" if game == "inverse" else "trains a decoder: do not give")
                + " model.decoder_from."
            )
        if post_hoc and self.model.condition != "none":
            raise InputError(
                f"model.condition is {self.model.condition!r}, but model.decoder_from takes unconditional decoders: "
                f"set model.condition to 'none', or do not give model.decoder_from."
            )

    def _check_packing(self) -> None:
        size, lanes, packing = self.data.global_batch_size, self.data.num_lanes(), self.objective.packing
        if (size // lanes) % packing:
            fitting = [c for c in range(1, lanes) if size % (c * packing) == 0]
            raise InputError(
                f"objective.packing is {packing}, but each of the {lanes} lanes gives {size // lanes} samples to a "
                f"batch, which must be a multiple of it: set "
                + (
                    f"data.lanes to {fitting[-1]}."
                    if fitting
                    else f"data.global_batch_size to a multiple of {packing}."
                )
            )

    def total_steps(self) -> int:
        """Updates in the run: whole global batches that fit into `run.images`."""
        return self.run.images // self.data.global_batch_size

    def to_mapping(self) -> dict[str, Any]:
        """Nested plain dict, the inverse of `from_mapping`; JSON-able."""
        return dataclasses.asdict(self)
