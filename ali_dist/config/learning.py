"""Settings that decide what is learned: data, model, objective and optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ali_dist.config.setting import require_value, setting
from ali_dist.config.suggestions import did_you_mean
from ali_dist.errors import InputError

AUGMENTATIONS = ("color", "translation", "cutout")
"""What `objective.augment` may name."""


def _hint_for_words(names: tuple[str, ...]) -> str:
    """'; did you mean X' for the first word of an augmentation that is none but is close to one."""
    unknown = [name for name in names if name not in AUGMENTATIONS]
    return did_you_mean(unknown[0], AUGMENTATIONS).removesuffix("?") if unknown else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where samples come from and in what order they are used."""

    url: str = setting("data/digits", "folder or s3://bucket/prefix with prepared or indexed shards")
    source: Literal["digits", "mixture-grid", "mixture-ring", "shapes", "shapes-attributes"] | None = setting(
        None, "built-in data written to a local data.url on first use"
    )
    split: str = setting("train", "split that is trained on")
    holdout: str = setting("test", "split that the final evaluation reports on")
    image_size: int | None = setting(
        None, "resize images to this side, which the architecture must work at; none: sizes must match"
    )
    global_batch_size: int = setting(64, "real images per update, over all workers")
    lanes: int | None = setting(None, "lanes of the data order; divides the batch; default: largest divisor up to 32")
    window_mb: float = setting(32.0, "megabytes of a lane that are shuffled together")
    residency: Literal["auto", "device", "ram", "stream"] = setting(
        "auto", "where decoded samples live during training"
    )
    memory_mb: int = setting(
        4096, "largest decoded data set (in MB) that auto keeps in memory, and that evaluation uses all of"
    )
    cache_dir: str | None = setting(
        None, "folder on a local disk that keeps what is read of data in S3, for all runs and workers of a machine"
    )
    cache_gb: float = setting(50.0, "most gigabytes in data.cache_dir; what was not used for longest goes first")
    prefetch: int = setting(4, "global batches read ahead when streaming")
    bad_samples: Literal["stop", "substitute"] = setting("stop", "what to do with a sample that fails its check")
    flip: bool = setting(False, "mirror half of the training images, left to right, anew each time")
    labelled: int | None = setting(
        None, "training samples whose class the K+1 discriminator may see, equally many of each; default: all"
    )
    labelled_seed: int = setting(0, "seed of the draw of those samples")
    labelled_shift: int = setting(0, "stored pixels by which labelled images are shifted at random, at most")

    def __post_init__(self) -> None:
        size = self.global_batch_size
        lanes = self.lanes
        require_value(self.labelled_shift >= 0, "data.labelled_shift", self.labelled_shift, "at least 0")
        require_value(self.labelled is None or self.labelled >= 2, "data.labelled", self.labelled, "at least 2")
        require_value(size >= 1, "data.global_batch_size", size, "at least 1")
        if lanes is not None:
            require_value(lanes >= 1, "data.lanes", lanes, "at least 1")
            if size < lanes or size % lanes:
                raise InputError(
                    f"data.global_batch_size is {size} and data.lanes is {lanes}, but every lane must give the same "
                    f"number of at least 1 sample to a batch: choose a batch that is a multiple of {lanes}, "
                    f"or leave data.lanes out ({self.default_lanes()} would be used)."
                )
        require_value(self.image_size is None or self.image_size > 0, "data.image_size", self.image_size, "at least 1")
        require_value(self.window_mb > 0, "data.window_mb", self.window_mb, "more than 0")
        is_folder = self.cache_dir is None or "://" not in self.cache_dir
        require_value(is_folder, "data.cache_dir", self.cache_dir, "a folder on a disk of this machine")
        require_value(0 < self.cache_gb < math.inf, "data.cache_gb", self.cache_gb, "more than 0")
        require_value(self.memory_mb >= 0, "data.memory_mb", self.memory_mb, "at least 0")
        require_value(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")

    def default_lanes(self) -> int:
        """The largest divisor of the global batch size up to 32."""
        return max(c for c in range(1, 33) if self.global_batch_size % c == 0)

    def num_lanes(self) -> int:
        """Lanes in force."""
        return self.lanes if self.lanes is not None else self.default_lanes()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The three networks."""

    architecture: str = setting(
        "digits", "architecture of the networks, such as digits, cifar10 or residual; an unknown name lists all"
    )
    latent_size: int = setting(16, "number of latent variables n_z")
    encoder: Literal["gaussian", "deterministic", "implicit"] = setting(
        "gaussian", "gaussian: reparametrized q(z|x); deterministic: BiGAN's z = E(x); implicit: noise beside x"
    )
    width: float = setting(1.0, "factor on every hidden layer's number of channels")
    depth: int = setting(1, "residual blocks at each side of the maps, of architecture residual")
    discriminator_dropout: float | None = setting(
        None, "dropout on every discriminator layer's input; default: as in the layer table"
    )
    output_bias_from_data: bool = setting(False, "start the decoder's output bias at the data's mean (paper's code)")
    condition: Literal["none", "classes", "attributes"] = setting(
        "none", "conditional ALI: what of the data's labels all three networks are given"
    )
    embedding_size: int = setting(256, "size of the linear embedding of the condition that the networks share")
    decoder_from: str | None = setting(
        None, "run folder whose decoder is taken and kept as it is: only inference is learned (post hoc)"
    )

    def __post_init__(self) -> None:
        latent, width, depth = self.latent_size, self.width, self.depth
        require_value(1 <= latent <= 100_000, "model.latent_size", latent, "from 1 to 100,000")
        require_value(0 < width <= 64, "model.width", width, "more than 0, up to 64")
        require_value(1 <= depth <= 1000, "model.depth", depth, "from 1 to 1,000")
        p = self.discriminator_dropout
        require_value(p is None or 0 <= p < 1, "model.discriminator_dropout", p, "from 0 to less than 1")
        embedding = self.embedding_size
        require_value(1 <= embedding <= 100_000, "model.embedding_size", embedding, "from 1 to 100,000")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """The adversarial game. Everything beyond `loss` is off in the paper."""

    game: Literal["ali", "gan", "inverse"] = setting(
        "ali",
        "ali: D judges pairs (x, z); gan: D judges x alone, and E learns to invert G's samples; "
        "inverse: no D, E alone learns that",
    )
    loss: Literal["nonsaturating", "minimax", "relativistic", "hinge"] = setting(
        "nonsaturating", "nonsaturating: V' (paper); minimax: V; relativistic: paired logits; hinge"
    )
    update: Literal["auto", "scaled", "penalised", "coupled", "alternating"] = setting(
        "auto",
        "update rule: scaled, coupled and penalised are exact where they apply, alternating is for comparison; "
        "auto takes the first exact one",
    )
    r1: float = setting(0.0, "weight of the gradient penalty on encoder pairs")
    r2: float = setting(0.0, "weight of the gradient penalty on decoder pairs")
    penalty_final: float = setting(1.0, "factor on r1 and r2 reached at the end, exponentially from half time on")
    penalty_every: int = setting(1, "take the penalty every k-th update with k times its weight")
    cycle_x: float = setting(0.0, "weight of |x - G(E(x))|^2 (ALICE); 0 is pure ALI")
    cycle_z: float = setting(0.0, "weight of |z - E(G(z))|^2 (ALICE); 0 is pure ALI")
    cycle_samples: float = setting(
        0.0, "weight of |x' - G(E(x'))|^2 on samples x' = G(z), held constant; 0 is pure ALI"
    )
    unary: bool = setting(False, "let D also judge x alone and z alone, each with the same loss (BigBiGAN)")
    packing: int = setting(1, "pairs that D judges together (PacGAN)")
    supervised: float = setting(
        0.0, "weight of the class loss that makes D a classifier of K + 1 classes (semi-supervised); 0: off"
    )
    entropy: float = setting(0.0, "weight of the entropy of the classes that D gives unlabelled data; 0 in the paper")
    balance: float = setting(
        0.0, "weight of a penalty on uneven classes of unlabelled data, assuming that all are equally frequent; 0: off"
    )
    augment: str = setting(
        "none",
        "how images of both kinds are altered for D alone, for small data (DiffAugment): names of color, translation "
        "and cutout with commas between them",
    )
    augment_probability: float = setting(
        1.0, "probability with which each of these is applied to an image; with augment_target, the most it may become"
    )
    augment_target: float | None = setting(
        None,
        "let the probability start at 0 and rise while the mean sign of D's logits of data (relativistic: of their "
        "lead) exceeds this, such as 0.6, and fall while it does not (ADA); none: fixed",
    )

    def __post_init__(self) -> None:
        require_value(self.packing >= 1, "objective.packing", self.packing, "at least 1")
        for name in ("r1", "r2", "cycle_x", "cycle_z", "cycle_samples", "supervised", "entropy", "balance"):
            require_value(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "at least 0")
        require_value(
            0 < self.penalty_final <= 1, "objective.penalty_final", self.penalty_final, "more than 0, up to 1"
        )
        require_value(self.penalty_every >= 1, "objective.penalty_every", self.penalty_every, "at least 1")
        self._check_game()
        self._check_augmentation()
        for name in ("entropy", "balance"):
            if (value := getattr(self, name)) and not self.supervised:
                raise InputError(
                    f"objective.{name} is {value:g}, which is of a discriminator's classes, but objective.supervised "
                    f"is 0: give both, or set objective.{name} to 0."
                )
        if self.supervised and self.packing > 1:
            raise InputError(
                f"objective.packing is {self.packing}, but a discriminator that classifies (objective.supervised is "
                f"{self.supervised:g}) sees samples one by one: set objective.packing to 1, or objective.supervised "
                f"to 0."
            )
        # Whether an update rule is exact also depends on the networks: `training/update_rules.py` decides the rest.
        if self.update == "scaled" and (self.r1 or self.r2) and self.penalty_every == 1:
            raise InputError(
                "objective.update is 'scaled', but objective.r1 or objective.r2 asks for a gradient penalty: "
                "use 'auto' or 'penalised', or set both to 0."
            )

    def augmentations(self) -> tuple[str, ...]:
        """The operations that `augment` names; empty where there are none."""
        return () if self.augment == "none" else tuple(name.strip() for name in self.augment.split(","))

    def _check_augmentation(self) -> None:
        names = self.augmentations()
        if len(set(names)) < len(names) or not set(names) <= set(AUGMENTATIONS):
            raise InputError(
                f"objective.augment is {self.augment!r}, but must be 'none', or some of {', '.join(AUGMENTATIONS)}, "
                f"each once, with commas between them, such as 'color,translation'{_hint_for_words(names)}."
            )
        if names and self.game == "inverse":
            raise InputError(
                f"objective.augment is {self.augment!r}, which has no place in objective.game 'inverse', where no D "
                f"looks at images: set objective.augment to 'none'."
            )
        p, target = self.augment_probability, self.augment_target
        require_value(0 < p <= 1, "objective.augment_probability", p, "more than 0, up to 1")
        require_value(target is None or 0 < target < 1, "objective.augment_target", target, "between 0 and 1, or none")
        for name, value, default in (("probability", p, 1.0), ("target", target, None)):
            if value != default and not names:
                raise InputError(
                    f"objective.augment_{name} is {value:g}, but objective.augment is 'none', so that nothing is "
                    f"altered: name what is, such as 'color,translation', or leave objective.augment_{name} out."
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

    lr_d: float = setting(1e-4, "learning rate of the discriminator")
    lr_g: float = setting(1e-4, "learning rate of encoder and decoder")
    beta1: float = setting(0.5, "Adam's first-moment decay")
    beta2: float = setting(0.999, "Adam's second-moment decay")
    eps: float = setting(1e-8, "Adam's epsilon")
    eps_inside: bool = setting(
        False, "add epsilon before Adam's bias correction (the paper's code): 1e-8 then acts as 3.2e-7 in update 1"
    )
    schedule: Literal["constant", "cosine"] = setting("constant", "constant, or cosine to 0 over the second half")
    warmup: float = setting(0.0, "images over which the learning rates rise from 0; 0: from the first update on")
    ema_half_life: float = setting(0.0, "half-life (in images) of the average of E's and G's weights; 0: no average")

    def __post_init__(self) -> None:
        for name in ("lr_d", "lr_g", "eps"):
            require_value(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "more than 0")
        require_value(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "from 0 to less than 1")
        if self.beta2 < 0.5:
            raise InputError(
                f"optim.beta2 is {self.beta2!r}, but must be from 0.5 to less than 1; the paper's tables print "
                f"1 - beta2, so its 0.001 is written 0.999 here."
            )
        require_value(self.beta2 < 1, "optim.beta2", self.beta2, "from 0.5 to less than 1")
        require_value(self.warmup >= 0, "optim.warmup", self.warmup, "at least 0")
        require_value(self.ema_half_life >= 0, "optim.ema_half_life", self.ema_half_life, "at least 0")
