"""Which of the ways of `step.py` an update is computed in."""

from __future__ import annotations

from ali_dist.config import ObjectiveConfig
from ali_dist.errors import InputError
from ali_dist.model.losses import OBJECTIVES


def choose_way(objective: ObjectiveConfig, *, couples_samples: bool, precision: str) -> str:
    """The way an update is computed.

    Args:
        objective: The game; its `update` is the user's choice, or auto.
        couples_samples: Whether D's logit of one sample depends on the others (batch norm).
        precision: fp32, bf16 or fp16.

    Raises:
        InputError: The choice is not exact for this model and objective.
    """
    update, penalised = objective.update, objective.r1 > 0 or objective.r2 > 0
    if objective.game == "inverse":
        return "inverse"
    penalties = f"objective.r1 is {objective.r1:g} and objective.r2 is {objective.r2:g}"
    if objective.unary and penalised:
        raise InputError(
            f"objective.unary is true, which gives D three logits for each pair, but {penalties}, and a gradient "
            f"penalty is of one logit: set objective.unary to false, or both penalties to 0."
        )
    if penalised and couples_samples:
        raise InputError(
            f"{penalties}, but this discriminator has batch norm, whose input gradients mix samples: set both to 0, or "
            f"choose an architecture without batch norm in D."
        )
    if update == "auto":
        if penalised:
            return "penalised"
        linear = not couples_samples and not objective.unary and not objective.entropy and not objective.balance
        exact = linear and OBJECTIVES[objective.loss].factors is not None and precision != "fp16"
        return "scaled" if exact else "coupled"
    for name in ("entropy", "balance"):
        if update == "scaled" and (value := getattr(objective, name)):
            raise InputError(
                f"objective.update is 'scaled', but objective.{name} is {value:g}, a loss of D that is not of the "
                f"game: use 'auto' or 'coupled'."
            )
    if update in ("scaled", "penalised") and objective.unary:
        raise InputError(
            f"objective.update is {update!r}, but objective.unary gives D three logits for each pair, whose gradients "
            f"do not share one factor: use 'auto' or 'coupled'."
        )
    if update in ("scaled", "penalised") and couples_samples:
        raise InputError(
            f"objective.update is {update!r}, but this discriminator has batch norm, which couples samples: "
            "use 'auto' or 'coupled'."
        )
    if update == "scaled" and precision == "fp16":
        raise InputError("objective.update is 'scaled', whose factors overflow fp16: use bf16, fp32 or 'auto'.")
    if update == "coupled" and penalised:
        raise InputError(
            f"objective.update is 'coupled', but {penalties}, which asks for a gradient penalty: use 'auto' or "
            f"'penalised', or set both to 0."
        )
    return update
