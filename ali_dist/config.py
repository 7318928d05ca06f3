"""The one schema of `ali_dist`: frozen dataclasses that YAML presets, the command line and Tune share.

Every setting has one dotted name (`optim.lr_d`), used the same way in a preset file, as a command-line
override (`--optim.lr_d 1e-4`) and in a search space; `settings.py` turns those into a `Config`. Each section
checks its own values. Importing this module imports neither torch nor ray.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ali_dist.errors import InputError


def _doc(default: Any, text: str) -> Any:
    """A field whose help text lives beside it."""
    return field(default=default, metadata={"help": text})


def _require(ok: bool, key: str, value: object, expected: str) -> None:
    if not ok:
        raise InputError(f"{key} is {value!r}, but must be {expected}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What is run, for how long, and where its results go."""

    name: str = _doc("run", "name of the run; the same name continues it")
    dir: str = _doc("runs", "folder or s3://bucket/prefix that holds run folders")
    images: int = _doc(64_000, "training length: real images seen, counted over all workers")
    seed: int = _doc(0, "seed of weights, order, noise and dropout")

    def __post_init__(self) -> None:
        plain = "/" not in self.name and self.name not in (".", "..")
        _require(plain, "run.name", self.name, "a folder name: without '/', and not '.' or '..'")
        _require(self.images > 0, "run.images", self.images, "at least 1")
        _require(0 <= self.seed < 2**31, "run.seed", self.seed, "from 0 to 2147483647")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """S3-compatible storage. Credentials come from the standard AWS variables, never from here."""

    endpoint_url: str | None = _doc(None, "S3 endpoint, e.g. http://127.0.0.1:8080; default: AWS_ENDPOINT_URL or AWS")
    timeout_seconds: float = _doc(20.0, "connect and read timeout of one request")
    attempts: int = _doc(6, "tries of one request before giving up (429, 5xx, resets, timeouts)")

    def __post_init__(self) -> None:
        _require(self.timeout_seconds > 0, "storage.timeout_seconds", self.timeout_seconds, "more than 0")
        _require(self.attempts >= 1, "storage.attempts", self.attempts, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where samples come from and in what order they are used."""

    url: str = _doc("data/digits", "folder or s3://bucket/prefix with prepared or indexed shards")
    source: Literal["digits", "mixture-grid", "mixture-ring", "shapes", "shapes-attributes"] | None = _doc(
        None, "built-in data written to a local data.url on first use"
    )
    split: str = _doc("train", "split that is trained on")
    holdout: str = _doc("test", "split that evaluation uses")
    image_size: int | None = _doc(
        None, "the architecture's own side, to have images of other sizes resized to it; none: they must fit"
    )
    global_batch_size: int = _doc(64, "real images per update, over all workers")
    lanes: int | None = _doc(None, "lanes of the data order; divides the batch; default: largest divisor up to 32")
    window_mb: float = _doc(32.0, "megabytes of a lane that are shuffled together")
    residency: Literal["auto", "device", "ram", "stream"] = _doc("auto", "where decoded samples live during training")
    memory_mb: int = _doc(4096, "largest decoded data set (in MB) that auto keeps in memory")
    prefetch: int = _doc(4, "global batches read ahead when streaming")
    bad_samples: Literal["stop", "substitute"] = _doc("stop", "what to do with a sample that fails its check")
    labelled: int | None = _doc(
        None, "training samples whose class the K+1 discriminator may see, equally many of each; default: all"
    )
    labelled_seed: int = _doc(0, "seed of the draw of those samples")

    def __post_init__(self) -> None:
        size, lanes = self.global_batch_size, self.lanes
        _require(self.labelled is None or self.labelled >= 2, "data.labelled", self.labelled, "at least 2")
        _require(size >= 1, "data.global_batch_size", size, "at least 1")
        if lanes is not None:
            _require(lanes >= 1, "data.lanes", lanes, "at least 1")
            if size < lanes or size % lanes:
                raise InputError(
                    f"data.global_batch_size is {size} and data.lanes is {lanes}, but every lane must give the same "
                    f"number of at least 1 sample to a batch: choose a batch that is a multiple of {lanes}, "
                    f"or leave data.lanes out ({self.default_lanes()} would be used)."
                )
        _require(self.image_size is None or self.image_size > 0, "data.image_size", self.image_size, "at least 1")
        _require(self.window_mb > 0, "data.window_mb", self.window_mb, "more than 0")
        _require(self.memory_mb >= 0, "data.memory_mb", self.memory_mb, "at least 0")
        _require(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")

    def default_lanes(self) -> int:
        """The largest divisor of the global batch size up to 32."""
        return max(c for c in range(1, 33) if self.global_batch_size % c == 0)

    def num_lanes(self) -> int:
        """Lanes in force."""
        return self.lanes if self.lanes is not None else self.default_lanes()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The three networks."""

    architecture: str = _doc("digits", "layer tables to build: a name in ali_dist/model/tables")
    latent_size: int = _doc(16, "number of latent variables n_z")
    encoder: Literal["gaussian", "deterministic", "implicit"] = _doc(
        "gaussian", "gaussian: reparametrised q(z|x); deterministic: BiGAN's z = E(x); implicit: noise beside x"
    )
    width: float = _doc(1.0, "factor on every hidden layer's number of channels")
    discriminator_dropout: float | None = _doc(
        None, "dropout on every discriminator layer's input; default: as in the layer table"
    )
    output_bias_from_data: bool = _doc(False, "start the decoder's output bias at the data's mean (paper's code)")
    condition: Literal["none", "classes", "attributes"] = _doc(
        "none", "conditional ALI: what of the data's labels all three networks are given"
    )
    embedding_size: int = _doc(256, "size of the linear embedding of the condition that the networks share")
    decoder_from: str | None = _doc(
        None, "run folder whose decoder is taken and kept as it is: only inference is learnt (post hoc)"
    )

    def __post_init__(self) -> None:
        _require(self.latent_size >= 1, "model.latent_size", self.latent_size, "at least 1")
        _require(self.width > 0, "model.width", self.width, "more than 0")
        p = self.discriminator_dropout
        _require(p is None or 0 <= p < 1, "model.discriminator_dropout", p, "from 0 to less than 1")
        _require(self.embedding_size >= 1, "model.embedding_size", self.embedding_size, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """The adversarial game. Everything beyond `loss` is off in the paper."""

    game: Literal["ali", "gan", "inverse"] = _doc(
        "ali",
        "ali: D judges pairs (x, z); gan: D judges x alone, and E learns to invert G's samples; "
        "inverse: no D, E alone learns that",
    )
    loss: Literal["nonsaturating", "minimax", "relativistic", "hinge"] = _doc(
        "nonsaturating", "nonsaturating: V' (paper); minimax: V; relativistic: paired logits; hinge"
    )
    update: Literal["auto", "scaled", "penalised", "coupled", "alternating"] = _doc(
        "auto", "how gradients are taken; auto picks the cheapest exact simultaneous way"
    )
    r1: float = _doc(0.0, "weight of the gradient penalty on encoder pairs")
    r2: float = _doc(0.0, "weight of the gradient penalty on decoder pairs")
    penalty_final: float = _doc(1.0, "factor on r1 and r2 reached at the end, exponentially from half time on")
    penalty_every: int = _doc(1, "take the penalty every k-th update with k times its weight")
    cycle_x: float = _doc(0.0, "weight of |x - G(E(x))|^2 (ALICE); 0 is pure ALI")
    cycle_z: float = _doc(0.0, "weight of |z - E(G(z))|^2 (ALICE); 0 is pure ALI")
    cycle_samples: float = _doc(0.0, "weight of |x' - G(E(x'))|^2 on samples x' = G(z), held constant; 0 is pure ALI")
    unary: bool = _doc(False, "let D also judge x alone and z alone, each with the same loss (BigBiGAN)")
    packing: int = _doc(1, "pairs that D judges together (PacGAN)")
    supervised: float = _doc(
        0.0, "weight of the class loss that makes D a classifier of K + 1 classes (semi-supervised); 0: off"
    )

    def __post_init__(self) -> None:
        _require(self.packing >= 1, "objective.packing", self.packing, "at least 1")
        for name in ("r1", "r2", "cycle_x", "cycle_z", "cycle_samples", "supervised"):
            _require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "at least 0")
        _require(0 < self.penalty_final <= 1, "objective.penalty_final", self.penalty_final, "more than 0, up to 1")
        _require(self.penalty_every >= 1, "objective.penalty_every", self.penalty_every, "at least 1")
        self._check_game()
        if self.supervised and self.packing > 1:
            raise InputError(
                f"objective.packing is {self.packing}, but a discriminator that classifies (objective.supervised is "
                f"{self.supervised:g}) judges samples one by one: set objective.packing to 1, or objective.supervised "
                f"to 0."
            )
        if self.update == "scaled" and self.loss == "hinge":
            raise InputError(
                "objective.update is 'scaled', which cannot serve objective.loss 'hinge' (its discriminator gradient "
                "vanishes where the generators' does not): use 'auto' or 'coupled'."
            )
        if self.update == "scaled" and (self.r1 or self.r2) and self.penalty_every == 1:
            raise InputError(
                "objective.update is 'scaled', but objective.r1 or objective.r2 asks for a gradient penalty: "
                "use 'auto' or 'penalised', or set both to 0."
            )

    def _check_game(self) -> None:
        """Refuse what the game would leave out without a word."""
        pairs_only = {"cycle_x": 0, "cycle_z": 0, "cycle_samples": 0, "unary": False, "supervised": 0}
        needs_d = {"r1": 0, "r2": 0, "packing": 1}
        off: dict[str, int] = {"ali": {}, "gan": pairs_only, "inverse": pairs_only | needs_d}[self.game]
        for name, value in off.items():
            if getattr(self, name) != value:
                now, instead = (str(v).lower() for v in (getattr(self, name), value))
                raise InputError(
                    f"objective.{name} is {now}, which has no place in objective.game {self.game!r}: set "
                    f"objective.{name} to {instead}, or objective.game to 'ali'."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Adam for both players, and the average of the generators' weights."""

    lr_d: float = _doc(1e-4, "learning rate of the discriminator")
    lr_g: float = _doc(1e-4, "learning rate of encoder and decoder")
    beta1: float = _doc(0.5, "Adam's first-moment decay")
    beta2: float = _doc(0.999, "Adam's second-moment decay")
    eps: float = _doc(1e-8, "Adam's epsilon")
    schedule: Literal["constant", "cosine"] = _doc("constant", "constant, or cosine to 0 over the second half")
    ema_half_life: float = _doc(0.0, "half-life (in images) of the average of E's and G's weights; 0: no average")

    def __post_init__(self) -> None:
        for name in ("lr_d", "lr_g", "eps"):
            _require(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "more than 0")
        _require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "from 0 to less than 1")
        if self.beta2 < 0.5:
            raise InputError(
                f"optim.beta2 is {self.beta2!r}, but must be from 0.5 to less than 1; the paper's tables print "
                f"1 - beta2, so its 0.001 is written 0.999 here."
            )
        _require(self.beta2 < 1, "optim.beta2", self.beta2, "from 0.5 to less than 1")
        _require(self.ema_half_life >= 0, "optim.ema_half_life", self.ema_half_life, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """On what the run is spread. None of this changes what is learnt, up to rounding and batch-norm statistics."""

    workers: str = _doc("auto", "auto, 0 (in this process, no Ray), N Ray Train workers, or MIN:MAX elastic")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _doc("auto", "auto: bf16 where the GPU has it, else fp32")
    device: Literal["auto", "cpu", "cuda"] = _doc("auto", "auto: the GPU if there is one")
    backend: Literal["auto", "gloo", "nccl"] = _doc("auto", "auto: nccl on GPUs, gloo on CPUs")
    threads: int | None = _doc(None, "CPU threads per worker; default: torch's own, or the cores shared out")
    gpus_per_worker: float = _doc(1.0, "GPUs each Ray worker asks for, on a GPU cluster")
    cpus_per_worker: float = _doc(1.0, "CPUs each Ray worker asks for")
    max_failures: int = _doc(3, "restarts from the newest checkpoint after a worker is lost")
    compile: bool = _doc(False, "torch.compile the three networks (CUDA)")

    def __post_init__(self) -> None:
        low, high = self.worker_range() or (0, 0)
        _require(0 <= low <= high, "scale.workers", self.workers, "auto, 0, N or MIN:MAX with 1 <= MIN <= MAX")
        _require(self.threads is None or self.threads >= 1, "scale.threads", self.threads, "at least 1")
        _require(self.max_failures >= 0, "scale.max_failures", self.max_failures, "at least 0")
        _require(self.gpus_per_worker > 0, "scale.gpus_per_worker", self.gpus_per_worker, "more than 0")
        _require(self.cpus_per_worker > 0, "scale.cpus_per_worker", self.cpus_per_worker, "more than 0")

    def worker_range(self) -> tuple[int, int] | None:
        """(fewest, most) Ray workers; (0, 0) is in-process; None is auto."""
        if self.workers == "auto":
            return None
        low, colon, high = self.workers.partition(":")
        if not low.isdecimal() or (colon and (not high.isdecimal() or int(low) < 1)):
            raise InputError(f"scale.workers is {self.workers!r}, but must be auto, 0, N or MIN:MAX with MIN >= 1.")
        return int(low), int(high) if colon else int(low)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How often something is written, in images seen; 0 means only at the end."""

    log_every: int = _doc(6_400, "images between lines of metrics.jsonl and TensorBoard scalars")
    gallery_every: int = _doc(0, "images between sample, reconstruction and interpolation grids")
    evaluate_every: int = _doc(0, "images between evaluations on the holdout split")
    checkpoint_every: int = _doc(32_000, "images between checkpoints")
    keep_checkpoints: int = _doc(2, "newest checkpoints that are kept")
    evaluation: Literal["auto", "none"] = _doc("auto", "auto: the metrics that apply to the data")
    evaluation_samples: int = _doc(2_000, "decoder samples that evaluation draws")

    def __post_init__(self) -> None:
        for name in ("gallery_every", "evaluate_every", "checkpoint_every"):
            _require(getattr(self, name) >= 0, f"report.{name}", getattr(self, name), "at least 0")
        _require(self.log_every >= 1, "report.log_every", self.log_every, "at least 1")
        _require(self.keep_checkpoints >= 1, "report.keep_checkpoints", self.keep_checkpoints, "at least 1")
        _require(self.evaluation_samples >= 2, "report.evaluation_samples", self.evaluation_samples, "at least 2")


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
        if self.objective.supervised and self.model.condition != "none":
            raise InputError(
                f"model.condition is {self.model.condition!r}, which tells D the labels that objective.supervised "
                f"({self.objective.supervised:g}) asks it for: set model.condition to 'none', or objective.supervised "
                f"to 0."
            )
        post_hoc, game = self.model.decoder_from is not None, self.objective.game
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
