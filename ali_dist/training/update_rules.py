"""How the gradients of both players are computed: one function and one `UpdateRule` for each way.

scaled       One backward pass of d_loss; a gate before D multiplies each sample's gradient by g_loss' / d_loss'.
coupled      Two backward passes over one forward pass: for discriminators with batch norm.
penalised    D's input gradient J, which R1 and R2 need anyway, times each sample's g_loss' is the generators' gradient.
alternating  Updates D, runs a second forward pass, then updates E and G: not the paper's rule, for comparison.
inverse      No game: the encoder alone learns to invert a decoder.

The first three are exact: they give both players the gradients of two separate backward passes at the same parameters.
Each of them says in `why_not` where it is not exact, so that a choice is refused with the reason, and `auto` takes the
first one that is exact. Steps (1) to (6) are those of `step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.config import ObjectiveConfig
from ali_dist.errors import InputError
from ali_dist.model.ali import ALIOutput
from ali_dist.model.gradient_gates import PassThrough, ScaleGradient, StopGradient
from ali_dist.model.losses import bound_slope
from ali_dist.model.piecewise_linear import record_terms
from ali_dist.training.step import InputGradients, LossWeights, Step, StepResult, TrainBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What decides whether an update rule is exact.

    Attributes:
        objective: The game and its terms.
        couples_samples: Whether D's logit of one sample depends on the others (batch norm).
        precision: fp32, bf16 or fp16.
    """

    objective: ObjectiveConfig
    couples_samples: bool
    precision: str

    @property
    def has_penalty(self) -> bool:
        """Whether a gradient penalty is asked for."""
        return self.objective.r1 > 0 or self.objective.r2 > 0

    @property
    def penalties(self) -> str:
        """The penalties in words, for refusals."""
        return f"objective.r1 is {self.objective.r1:g} and objective.r2 is {self.objective.r2:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRule:
    """How step (5) of Algorithm 1 is computed.

    Attributes:
        name: As in `objective.update`.
        gradients: Leaves the gradients of both players in their parameters, and says what is reported.
        why_not: None where a user may choose the rule; else the sentence that refuses it. For the rules of
            `AUTOMATIC_RULES`, None means that they are exact.
        backward_passes: 1 takes one DDP wrapper around ALI, more take one for each network.
        forward_passes: Of all networks together; each draws its own dropout.
        reuses_discriminator_graph: Whether D's graph is used or differentiated twice, which compiled code cannot be.
            With a gradient penalty, D is never compiled, whatever the rule.
    """

    name: str
    gradients: Callable[[Step, TrainBatch, LossWeights], StepResult]
    why_not: Callable[[Situation], str | None]
    backward_passes: int = 1
    forward_passes: int = 1
    reuses_discriminator_graph: bool = False


def choose_update_rule(choice: str, situation: Situation) -> UpdateRule:
    """The rule that `objective.update` names, or for auto the first of `AUTOMATIC_RULES` that is exact.

    Raises:
        InputError: The choice is not exact for this model and objective, or no rule is.
    """
    if situation.objective.game == "inverse":
        return UPDATE_RULES["inverse"]  # there is no D whose gradients could be taken in another way
    candidates = AUTOMATIC_RULES if choice == "auto" else (choice,)
    refusal = None
    for name in candidates:
        rule = UPDATE_RULES[name]
        refusal = rule.why_not(situation)
        if refusal is None:
            return rule
    raise InputError(str(refusal))


# ---- scaled ----------------------------------------------------------------------------------------------------------


def scaled_gradients(step: Step, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """One forward and one backward pass: D's gradient, rescaled sample by sample, is the generators'.

    D's slopes vanish where it is sure, and there the generators' slopes are largest. So what is back-propagated into D
    is its slope bounded away from 0, and the gate multiplies with g_loss' / that: the generators' gradient is exact at
    every finite logit, and D's is off by at most `MINIMUM_SLOPE` a logit.
    """
    gate = ScaleGradient()
    output = step.forward(batch, gate)
    d_q, d_p = output.d_q.detach(), output.d_p.detach()
    d_slope_q, d_slope_p = map(bound_slope, step.objective.d_slopes(d_q, d_p))
    g_slope_q, g_slope_p = step.objective.g_slopes(d_q, d_p)
    gate.factor_q = step.per_sample(g_slope_q / d_slope_q)
    gate.factor_p = step.per_sample(g_slope_p / d_slope_p)
    # Its gradient is that of d_loss with bounded slopes; its value means nothing.
    surrogate_d_loss = step.packing * (output.d_q @ d_slope_q + output.d_p @ d_slope_p)
    cycle = step.cycle_loss(output, weights)
    step.backward(surrogate_d_loss + step.class_loss(output, weights) + cycle)
    return step.result(output, cycle=cycle)


def _why_not_scaled(situation: Situation) -> str | None:
    objective = situation.objective
    impossible = _why_no_penalty(situation)
    if impossible is not None:
        return impossible
    for name in ("entropy", "balance"):
        if value := getattr(objective, name):
            return (
                f"objective.update is 'scaled', but objective.{name} is {value:g}, a term of D's loss that the "
                f"generators' loss lacks: use 'auto' or 'coupled'."
            )
    if objective.unary:
        return _unary_refusal("scaled")
    if situation.couples_samples:
        return _coupling_refusal("scaled")
    if situation.precision == "fp16":
        return "objective.update is 'scaled', whose factors overflow fp16: use bf16, fp32 or 'auto'."
    if situation.has_penalty:
        return (
            f"objective.update is 'scaled', but {situation.penalties}, which asks for a gradient penalty: use 'auto' "
            f"or 'penalised', or set both to 0."
        )
    return None


# ---- coupled ---------------------------------------------------------------------------------------------------------


def coupled_gradients(step: Step, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """One forward pass, and a backward pass for each player.

    By `.backward(inputs=...)`, never `autograd.grad`: DistributedDataParallel does not reduce what the latter returns.
    """
    output = step.forward(batch, PassThrough())
    cycle = step.cycle_loss(output, weights)
    step.backward(step.d_loss(output, weights), inputs=step.theta_d, retain=True)
    step.backward(step.g_loss(output) + cycle, inputs=step.theta_g)
    return step.result(output, cycle=cycle)


def _why_not_coupled(situation: Situation) -> str | None:
    impossible = _why_no_penalty(situation)
    if impossible is not None:
        return impossible
    if situation.has_penalty:
        return (
            f"objective.update is 'coupled', but {situation.penalties}, which asks for a gradient penalty: use 'auto' "
            f"or 'penalised', or set both to 0."
        )
    return None


# ---- penalised -------------------------------------------------------------------------------------------------------


def penalised_gradients(step: Step, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """One forward pass, D's input gradient, and one backward pass; a plain scaled update where no penalty is due."""
    if not weights.has_penalty and _can_scale(step, weights):
        return scaled_gradients(step, batch, weights)
    if weights.has_penalty and _can_share_a_pass(step):
        return _penalised_gradients_in_one_pass(step, batch, weights)
    output = step.forward(batch, StopGradient(differentiable=True))
    gradients = step.input_gradients(output)
    penalty = step.gradient_penalty(gradients, weights)
    cycle = step.cycle_loss(output, weights)
    step.backward(step.d_loss(output, weights) + penalty.sum() + _surrogate_g_loss(step, output, gradients) + cycle)
    return step.result(output, penalty=penalty, cycle=cycle)


def _can_scale(step: Step, weights: LossWeights) -> bool:
    """Whether an update without a penalty may be a scaled one."""
    has_class_terms = weights.entropy or weights.balance
    return step.precision.name != "fp16" and not has_class_terms


def _can_share_a_pass(step: Step) -> bool:
    """Whether D's loss may be back-propagated together with its penalty.

    In fp16 the loss scale would multiply what is already divided by slopes down to `MINIMUM_SLOPE`.
    """
    return step.has_piecewise_linear_d and step.precision.name != "fp16"


def _penalised_gradients_in_one_pass(step: Step, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """For a piecewise linear D: its loss and its penalty go back through the graph of its input gradient together.

    That gradient is taken of D's loss, with slopes bounded away from 0, as in `scaled_gradients`; a row of it over that
    slope is the row of J. The gradient of D's loss for its weights is in the same graph (`piecewise_linear`), so D's
    own graph is gone through once and not twice.
    """
    with record_terms(step.discriminator) as terms:
        output = step.forward(batch, StopGradient(differentiable=True))
    d_q, d_p = output.d_q.detach(), output.d_p.detach()
    slope_q, slope_p = map(bound_slope, step.objective.d_slopes(d_q, d_p))
    of_inputs, of_terms = step.gradients_of(output.d_q @ slope_q + output.d_p @ slope_p, output, terms.tensors())
    gradients = _divide_rows(of_inputs, step.per_sample(slope_q), step.per_sample(slope_p))
    surrogate_d_loss = step.packing * terms.surrogate(of_terms)
    penalty = step.gradient_penalty(gradients, weights)
    cycle = step.cycle_loss(output, weights)
    step.backward(surrogate_d_loss + penalty.sum() + _surrogate_g_loss(step, output, gradients) + cycle)
    return step.result(output, penalty=penalty, cycle=cycle)


def _divide_rows(gradients: InputGradients, by_q: Tensor, by_p: Tensor) -> InputGradients:
    """Rows of encoder pairs over `by_q` [b], rows of decoder pairs over `by_p` [b]."""
    x_q, x_p, z = gradients
    return InputGradients(
        x_q=x_q / _per_row(by_q, x_q),
        x_p=x_p / _per_row(by_p, x_p),
        z=None if z is None else z / _per_row(torch.cat([by_q, by_p]), z),
    )


def _surrogate_g_loss(step: Step, output: ALIOutput, gradients: InputGradients) -> Tensor:
    """<generator output, constant>, which has exactly the generators' gradient; its value means nothing."""
    slopes = step.objective.g_slopes(output.d_q.detach(), output.d_p.detach())
    slope_q, slope_p = map(step.per_sample, slopes)
    surrogate = (output.x_tilde * gradients.x_p.detach() * _per_row(slope_p, output.x_tilde)).sum()
    if output.z_hat is not None and gradients.z is not None:
        on_z_hat = gradients.z.detach()[: len(output.z_hat)] * _per_row(slope_q, output.z_hat)
        surrogate = surrogate + (output.z_hat * on_z_hat).sum()
    # Per pack, like the loss: each of its pairs gets the whole pack's gradient.
    return surrogate * step.packing


def _per_row(per_sample: Tensor, like: Tensor) -> Tensor:
    """Values [b], shaped so that they multiply the rows of `like`."""
    return per_sample.view(-1, *[1] * (like.dim() - 1))


def _why_not_penalised(situation: Situation) -> str | None:
    impossible = _why_no_penalty(situation)
    if impossible is not None:
        return impossible
    if situation.objective.unary:
        return _unary_refusal("penalised")
    if situation.couples_samples:
        return _coupling_refusal("penalised")
    return None


# ---- alternating and inverse -----------------------------------------------------------------------------------------


def alternating_gradients(step: Step, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """D moves first; E and G then see the new D in a second forward pass. Not Algorithm 1."""
    output = step.forward(batch, StopGradient(differentiable=weights.has_penalty))
    penalty = output.d_q.new_zeros(2)
    if weights.has_penalty:
        penalty = step.gradient_penalty(step.input_gradients(output), weights)
    step.backward(step.d_loss(output, weights) + penalty.sum(), inputs=step.theta_d)
    step.update_parameters()
    output_of_new_d = step.forward(batch, PassThrough())
    cycle = step.cycle_loss(output_of_new_d, weights)
    step.backward(step.g_loss(output_of_new_d) + cycle, inputs=step.theta_g)
    return step.result(output, penalty=penalty, cycle=cycle)


def inverse_gradients(step: Step, batch: TrainBatch, weights: LossWeights) -> StepResult:
    """The encoder's error as an inverse of the decoder; D takes no part."""
    output = step.forward(batch, StopGradient(differentiable=False))
    cycle = step.cycle_loss(output, weights)
    step.backward(cycle)
    return step.result(output, cycle=cycle)


def _why_not_inverse(situation: Situation) -> str | None:
    if situation.objective.game != "inverse":
        return f"objective.update is 'inverse', but objective.game is {situation.objective.game!r}: use 'auto'."
    return None


# ---- refusals that several rules share -------------------------------------------------------------------------------


def _why_no_penalty(situation: Situation) -> str | None:
    """Why the penalties that are asked for cannot be taken by any rule; None where they can, or none is asked for."""
    if situation.objective.unary and situation.has_penalty:
        return (
            f"objective.unary is true, which gives D three logits for each pair, but {situation.penalties}, and a "
            f"gradient penalty is of one logit: set objective.unary to false, or both penalties to 0."
        )
    if situation.couples_samples and situation.has_penalty:
        return (
            f"{situation.penalties}, but this discriminator has batch norm, whose input gradients mix samples: set "
            f"both to 0, or choose an architecture without batch norm in D."
        )
    return None


def _unary_refusal(name: str) -> str:
    return (
        f"objective.update is {name!r}, but objective.unary gives D three logits for each pair, whose gradients do not "
        f"share one factor: use 'auto' or 'coupled'."
    )


def _coupling_refusal(name: str) -> str:
    return (
        f"objective.update is {name!r}, but this discriminator has batch norm, which couples samples: use 'auto' or "
        f"'coupled'."
    )


UPDATE_RULES = {
    rule.name: rule
    for rule in (
        UpdateRule(name="scaled", gradients=scaled_gradients, why_not=_why_not_scaled),
        UpdateRule(
            name="coupled",
            gradients=coupled_gradients,
            why_not=_why_not_coupled,
            backward_passes=2,
            reuses_discriminator_graph=True,
        ),
        UpdateRule(
            name="penalised",
            gradients=penalised_gradients,
            why_not=_why_not_penalised,
            reuses_discriminator_graph=True,
        ),
        UpdateRule(
            name="alternating",
            gradients=alternating_gradients,
            why_not=_why_no_penalty,
            backward_passes=2,
            forward_passes=2,
        ),
        UpdateRule(name="inverse", gradients=inverse_gradients, why_not=_why_not_inverse),
    )
}
"""All rules by name. A new one is a function and a row here."""

AUTOMATIC_RULES = ("scaled", "coupled", "penalised")
"""The rules that `auto` chooses from; it takes the first that is exact, so the cheapest comes first."""
