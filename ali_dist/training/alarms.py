"""Alarms: what tells a sick run, from measures of its networks at some moments. Pure.

A rule compares one measure (see `health_probe.py`) with a threshold that no healthy run comes near. It must hold at two
looks or more, over at least `HOLD_UPDATES` updates, before its alarm is raised, and an alarm is raised once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOOK_EVERY = 25
"""Fewest updates between two looks, unless a checkpoint is saved: a look takes as long as about half an update."""

HOLD_UPDATES = 100
"""Updates over which a rule must hold at every look: what passes sooner, such as Adam's first steps, is no trouble."""

_LOWER_RATES = "Lower optim.lr_d and optim.lr_g, or raise objective.r1 and objective.r2."


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRule:
    """When an alarm is raised, and what is said.

    Attributes:
        name: Of the alarm.
        measure: Key of the measure; where a game does not have it, the rule never holds.
        threshold: The rule holds beyond it. A measure that is NaN is beyond every threshold.
        is_low: Whether it holds below the threshold, and not above.
        meaning: What it means, as a clause.
        advice: What to do, in a sentence.
    """

    name: str
    measure: str
    threshold: float
    is_low: bool
    meaning: str
    advice: str

    def holds(self, value: float) -> bool:
        """Whether the measure is beyond the threshold."""
        return not (value >= self.threshold if self.is_low else value <= self.threshold)


def _dead_network(network: str, advice: str) -> AlarmRule:
    return AlarmRule(
        name=f"dead_{network}",
        measure=f"gradient_{network}",
        threshold=1e-6,  # Adam's means forget a factor of 2 an update at beta1 0.5, and of 1e6 in 131 at 0.9
        is_low=True,
        meaning=f"no gradient reaches the {network}",
        advice=advice,
    )


RULES = (
    AlarmRule(
        name="discriminator_won",
        measure="d_loss_share",
        threshold=0.005,  # of an undecided D's; with V, D is sure of both pairs at 99.65 %; images has come to 0.03
        is_low=True,
        meaning="the discriminator is right about every pair, and leaves encoder and decoder no direction",
        advice="Lower optim.lr_d, or raise objective.r1 and objective.r2.",
    ),
    AlarmRule(
        name="discriminator_saturated",
        measure="logits_beyond_30",
        threshold=0.5,  # beyond 30 D's own gradient is below 1e-13
        is_low=False,
        meaning="most of the discriminator's logits are so large that its gradients vanish",
        advice=_LOWER_RATES,
    ),
    AlarmRule(
        name="discriminator_blind_to_z",
        measure="z_effect",
        threshold=0.01,  # of what exchanging x moves; healthy runs have 0.09 to 1
        is_low=True,
        meaning="the discriminator does not look at z, so that encoder and decoder need not agree",
        advice="Lower optim.lr_d, give z more latents (model.latent_size), or raise objective.cycle_x.",
    ),
    AlarmRule(
        name="encoder_collapsed",
        measure="sigma",
        threshold=1e-5,  # of the prior's 1, near fp32's rounding of mu; mixture ends healthy with 0.001
        is_low=True,
        meaning="the encoder's sigma has gone to 0, so that q(z|x) is a point",
        advice="Lower optim.lr_g and objective.cycle_x; where a point is what you want, set model.encoder.",
    ),
    AlarmRule(
        name="latents_off_prior",
        measure="latent_kl",
        threshold=1.0,  # nats a latent: a mean of 1.4, or a standard deviation of 0.22 or 2.2; healthy runs have 0.5
        is_low=False,
        meaning="the latents of data, q(z), are far from the prior, so that samples and data live apart",
        advice="Lower optim.lr_g, or give objective.cycle_x less weight.",
    ),
    AlarmRule(
        name="modes_dropped",
        measure="sample_spread",
        threshold=0.1,  # of the data's; healthy runs have 0.4 soon, and 0.7 to 1.4 later; one picture alone has 0
        is_low=True,
        meaning="the decoder's samples are nearly all the same",
        advice=f"{_LOWER_RATES[:-1]}, or give objective.cycle_x more weight.",
    ),
    _dead_network("discriminator", "Start again with a lower optim.lr_d."),
    _dead_network("encoder", "Start again with a lower optim.lr_g, or raise objective.cycle_x."),
    _dead_network("decoder", "Start again with lower optim.lr_d and optim.lr_g."),
)
"""Every rule; a new one is a row here, and a measure of `HealthProbe`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm that has been raised.

    Attributes:
        name: Of its rule.
        measure: What was measured.
        value: At the last look.
        threshold: Beyond which it is.
        since_step: Updates done at the first look of those at which the rule held without a break.
        looks: Their number.
        meaning: See `AlarmRule`.
        advice: See `AlarmRule`.
    """

    name: str
    measure: str
    value: float
    threshold: float
    since_step: int
    looks: int
    meaning: str
    advice: str

    def describe(self, images: int) -> str:
        """What is said of it after so many images."""
        return (
            f"Alarm {self.name} after {images:,} images: {self.meaning} ({self.measure} {self.value:.3g} at the last "
            f"of {self.looks} looks since update {self.since_step:,}, threshold {self.threshold:g}). {self.advice}"
        )

    def to_record(self) -> dict[str, Any]:
        """The alarm as records have it."""
        return {
            "alarm": self.name,
            "measure": self.measure,
            "value": self.value,
            "threshold": self.threshold,
            "since_step": self.since_step,
            "looks": self.looks,
            "meaning": self.meaning,
            "advice": self.advice,
        }


def alarm_of_divergence(step: int, measure: str = "d_loss + g_loss", meaning: str = "a loss is not finite") -> Alarm:
    """The alarm of what is not finite, which has to hold at no second look."""
    return Alarm(
        name="not_finite",
        measure=measure,
        value=float("nan"),
        threshold=float("inf"),
        since_step=step,
        looks=1,
        meaning=meaning,
        advice=_LOWER_RATES,
    )


@dataclass(slots=True)
class AlarmWatch:
    """Follows the measures of a run from look to look; the same on every rank.

    Attributes:
        last_step: Updates done at the last look.
        clear_step: Updates done at the last look at which no rule held, or at the start: before the trouble.
        held: For each rule that holds, updates done at the first look since when it does, and the number of looks.
        raised: Names of the alarms that have been raised.
    """

    last_step: int = 0
    clear_step: int = 0
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    raised: set[str] = field(default_factory=set)

    def is_due(self, step: int, *, is_saved: bool) -> bool:
        """Whether to look after so many updates, at a moment that is recorded; `is_saved`: and saved."""
        return is_saved or step - self.last_step >= LOOK_EVERY

    def look(self, measures: Mapping[str, float], step: int) -> list[Alarm]:
        """Take the measures after so many updates, and return the alarms that are to be raised now."""
        self.last_step = step
        held, alarms = {}, []
        for rule in RULES:
            if rule.measure not in measures or not rule.holds(measures[rule.measure]):
                continue
            since, looks = self.held.get(rule.name, (step, 0))
            held[rule.name] = since, looks + 1
            if looks and step - since >= HOLD_UPDATES and rule.name not in self.raised:
                self.raised.add(rule.name)
                alarms.append(_make_alarm(rule, measures[rule.measure], since, looks + 1))
        self.held = held
        if not held:
            self.clear_step = step
        return alarms

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; JSON-able."""
        return {
            "last_step": self.last_step,
            "clear_step": self.clear_step,
            "held": {name: list(pair) for name, pair in self.held.items()},
            "raised": sorted(self.raised),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], step: int) -> AlarmWatch:
        """The watch that a checkpoint of so many updates holds; one that holds nothing counts as healthy.

        Raises:
            AttributeError, TypeError, ValueError: `state` is nothing that `AlarmWatch.state` has made.
        """
        held = {str(name): (int(since), int(looks)) for name, (since, looks) in state.get("held", {}).items()}
        last_step, clear_step = (int(state.get(key, step)) for key in ("last_step", "clear_step"))
        return cls(last_step, clear_step, held, set(map(str, state.get("raised", ()))))


def _make_alarm(rule: AlarmRule, value: float, since: int, looks: int) -> Alarm:
    return Alarm(
        name=rule.name,
        measure=rule.measure,
        value=value,
        threshold=rule.threshold,
        since_step=since,
        looks=looks,
        meaning=rule.meaning,
        advice=rule.advice,
    )
