"""Augmentation: what is done to images, by draws that follow from the row, for D alone, without bending a gradient.

Run: `make test ARGS=tests/unit/training/test_augmentation.py`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ali_dist.config import AUGMENTATIONS, Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World
from ali_dist.errors import InputError, Stopped
from ali_dist.model.ali import ALI
from ali_dist.model.augmentation import (
    NUMBERS_PER_IMAGE,
    Augmentation,
    AugmentationParameters,
    augment_images,
    parameters_from_numbers,
)
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.training.adaptive_augmentation import ADAPT_EVERY, AugmentationProbability
from ali_dist.training.loop import fit
from ali_dist.training.randomness import AugmentationDraws
from ali_dist.training.state import build_train_state
from ali_dist.training.step import LossWeights, TrainBatch, loss_weights_at
from tests.helpers.networks import (
    BATCH_SIZE,
    CPU,
    gradients_of_step,
    gradients_of_two_backward_passes,
    make_inputs,
    make_networks,
    relative_error,
)
from tests.helpers.runs import (
    StoppingContext,
    assert_bitwise_equal,
    index_without_shards,
    load_weights,
    tiny_config,
)
from tests.helpers.variants import VARIANTS

SYMMETRIC, UNIT = (-1.0, 1.0), (0.0, 1.0)
SIDE = 8


def parameters(count: int = 1, **given: float | list[float]) -> AugmentationParameters:
    """Parameters of `count` images of side `SIDE` that change nothing but what is given."""
    values: dict[str, Any] = {
        "brightness": 0.0,
        "saturation": 1.0,
        "contrast": 1.0,
        "down": 0.0,
        "right": 0.0,
        "top": float(SIDE),
        "left": float(SIDE),
    } | given
    return AugmentationParameters(
        *(torch.tensor(values[name]).expand(count) for name in AugmentationParameters._fields)
    )


def random_images(count: int = 3, channels: int = 3, seed: int = 0) -> Tensor:
    """Draw images [count, channels, SIDE, SIDE] in [-1, 1]."""
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_parameters(count: int, side: int = SIDE, probability: float = 1.0, seed: int = 0) -> AugmentationParameters:
    """Draw the parameters of `count` images."""
    numbers = torch.rand(count, NUMBERS_PER_IMAGE, generator=torch.Generator().manual_seed(seed))
    return parameters_from_numbers(numbers, torch.tensor(probability), side)


# ---- each operation ------------------------------------------------------------------------------------------------


def test_brightness_adds_a_part_of_half_the_range():
    x = random_images()
    changed = augment_images(x, parameters(3, brightness=[0.5, -0.5, 0.1]), ("color",), SYMMETRIC)
    torch.testing.assert_close(changed, x + torch.tensor([0.5, -0.5, 0.1]).view(3, 1, 1, 1))
    in_unit = augment_images((x + 1) / 2, parameters(3, brightness=[0.5, -0.5, 0.1]), ("color",), UNIT)
    torch.testing.assert_close(in_unit, (changed + 1) / 2)


def test_saturation_goes_from_gray_to_twice_the_color_and_gray_images_have_none():
    x = random_images()
    gray = x.mean(1, keepdim=True)
    changed = augment_images(x, parameters(3, saturation=[0.0, 2.0, 1.0]), ("color",), SYMMETRIC)
    torch.testing.assert_close(changed[0], gray[0].expand(3, -1, -1))
    torch.testing.assert_close(changed[1], (2 * x - gray)[1])
    torch.testing.assert_close(changed[2], x[2])
    one_channel = random_images(channels=1)
    unchanged = augment_images(one_channel, parameters(3, saturation=0.0), ("color",), SYMMETRIC)
    torch.testing.assert_close(unchanged, one_channel)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_is_about_the_image_s_mean(channels):
    x = random_images(channels=channels)
    mean = x.mean((1, 2, 3), keepdim=True)
    changed = augment_images(x, parameters(3, contrast=1.5), ("color",), SYMMETRIC)
    torch.testing.assert_close(changed, mean + 1.5 * (x - mean))


def test_colors_change_one_after_the_other_as_in_diffaugment():
    x = random_images(16)
    p = random_parameters(16)
    brightness, saturation, contrast = (t[:, None, None, None] for t in p[:3])
    y = x + brightness
    y = (y - y.mean(1, keepdim=True)) * saturation + y.mean(1, keepdim=True)
    y = (y - y.mean((1, 2, 3), keepdim=True)) * contrast + y.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(augment_images(x, p, ("color",), SYMMETRIC), y)


@pytest.mark.parametrize(("pixel_range", "fill"), [(SYMMETRIC, 0.0), (UNIT, 0.5)])
def test_translation_moves_whole_pixels_and_bares_the_middle_of_the_range(pixel_range, fill):
    x = random_images(4)
    moved = augment_images(
        x, parameters(4, down=[0.0, 1.0, -1.0, 2.0], right=[1.0, 0.0, 0.0, -3.0]), ("translation",), pixel_range
    )
    expected = torch.full_like(x, fill)
    expected[0, :, :, 1:] = x[0, :, :, :-1]
    expected[1, :, 1:] = x[1, :, :-1]
    expected[2, :, :-1] = x[2, :, 1:]
    expected[3, :, 2:, :-3] = x[3, :, :-2, 3:]
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(("pixel_range", "fill"), [(SYMMETRIC, 0.0), (UNIT, 0.5)])
def test_cutout_is_a_square_of_half_the_side_cut_off_at_the_border(pixel_range, fill):
    x = random_images(3)
    cut = augment_images(x, parameters(3, top=[2.0, -2.0, 8.0], left=[3.0, 6.0, 8.0]), ("cutout",), pixel_range)
    expected = x.clone()
    expected[0, :, 2:6, 3:7] = fill
    expected[1, :, :2, 6:] = fill
    assert torch.equal(cut, expected)


def test_only_what_is_asked_for_is_done():
    x, p = random_images(6), random_parameters(6)
    assert augment_images(x, p, (), SYMMETRIC) is x
    by_one = x
    for name in AUGMENTATIONS:
        by_one = augment_images(by_one, p, (name,), SYMMETRIC)
    torch.testing.assert_close(augment_images(x, p, AUGMENTATIONS, SYMMETRIC), by_one)


@pytest.mark.parametrize(("channels", "operations"), [(1, AUGMENTATIONS), (3, AUGMENTATIONS), (3, ("translation",))])
def test_augmentation_is_differentiable_twice(channels, operations):
    x = random_images(2, channels)[..., :5, :5].double().requires_grad_()
    p = AugmentationParameters(*(t.double() for t in random_parameters(2, 5, seed=4)))

    def augment_square(x: Tensor) -> Tensor:
        return augment_images(x, p, operations, SYMMETRIC).square()

    assert torch.autograd.gradcheck(augment_square, x)
    assert torch.autograd.gradgradcheck(augment_square, x)


# ---- what is drawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 28, 5])
def test_parameters_have_the_strengths_of_diffaugment(side):
    p = random_parameters(4000, side)
    hole, reach = int(side / 2 + 0.5), int(side / 8 + 0.5)
    for values, low, high in ((p.brightness, -0.5, 0.5), (p.saturation, 0, 2), (p.contrast, 0.5, 1.5)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
    for values in (p.down, p.right):
        assert values.unique().tolist() == list(range(-reach, reach + 1))
    for values in (p.top, p.left):
        assert values.unique().tolist() == list(range(-(hole // 2), side + 1 - hole % 2 - hole // 2))
    largest = parameters_from_numbers(torch.full((1, NUMBERS_PER_IMAGE), 1 - 2**-24), torch.tensor(1.0), side)
    assert largest.down.item() == reach
    assert largest.top.item() == side - hole % 2 - hole // 2


def test_each_operation_is_applied_with_the_probability():
    p = random_parameters(4000, probability=0.3)
    has_color, has_hole = p.brightness != 0, p.top < SIDE
    is_moved = (p.down != 0) | (p.right != 0)
    assert has_color.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert has_hole.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert is_moved.float().mean().item() == pytest.approx(0.3 * 8 / 9, abs=0.03)  # one in nine moves is none
    assert (has_color & has_hole).float().mean().item() == pytest.approx(0.09, abs=0.02)
    assert torch.equal(p.saturation != 1, has_color)
    never = random_parameters(50, probability=0.0)
    assert all(torch.equal(a, b) for a, b in zip(never, parameters(50), strict=True))


def drawn_parameters(
    rows: slice = slice(0, 12), *, step: int = 4, seed: int = 1, passes: int = 1, probability: float = 1.0
) -> Tensor:
    """Draw the parameters [7, 2 parts, rows] of a pass."""
    augmentation = Augmentation(AUGMENTATIONS, SYMMETRIC, SIDE)
    draws = AugmentationDraws(
        augmentation, torch.tensor(probability), seed=seed, rows=rows, global_batch_size=12, parts=2
    )
    draws.start_update(step)
    for _ in range(passes):
        draws.draw()
    assert augmentation._parameters is not None
    return torch.stack(augmentation._parameters).unflatten(1, (2, -1))


@pytest.mark.parametrize("cuts", [(0, 6, 12), (0, 1, 5, 12), tuple(range(13))])
def test_ranks_draw_the_rows_of_one_set_of_parameters(cuts):
    parts = [drawn_parameters(slice(a, b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    assert torch.equal(drawn_parameters(), torch.cat(parts, dim=2))


def test_parameters_are_new_in_every_row_part_pass_update_and_seed():
    first = drawn_parameters()
    assert torch.equal(first, drawn_parameters())
    for other in (drawn_parameters(step=5), drawn_parameters(seed=2), drawn_parameters(passes=2)):
        assert not torch.equal(first, other)
    assert first.flatten(1).unique(dim=1).shape[1] == 24


def test_the_probability_is_read_when_parameters_are_drawn():
    probability = torch.tensor(0.0)
    augmentation = Augmentation(AUGMENTATIONS, SYMMETRIC, SIDE)
    draws = AugmentationDraws(augmentation, probability, seed=0, rows=slice(0, 6), global_batch_size=6, parts=1)
    x = random_images(6)
    draws.draw()
    torch.testing.assert_close(augmentation((x,))[0], x)
    probability.fill_(1.0)
    draws.draw()
    assert not torch.allclose(augmentation((x,))[0], x)


def test_parts_take_their_rows_one_after_the_other_and_no_others():
    augmentation = Augmentation(AUGMENTATIONS, SYMMETRIC, SIDE)
    p = random_parameters(7)
    augmentation.take_parameters(p)
    x = random_images(7)
    together = augment_images(x, p, AUGMENTATIONS, SYMMETRIC)
    torch.testing.assert_close(torch.cat(augmentation((x[:3], x[3:5], x[5:]))), together)
    with pytest.raises(RuntimeError, match="for 7 images"):
        augmentation((x[:3],))


def test_nothing_is_waited_for_on_a_gpu():
    """Neither drawing nor altering nor adapting has a value that the host must know: a graph can be captured."""
    with FakeTensorMode():
        probability = AugmentationProbability(
            1.0, 0.6, global_batch_size=6, run_images=10**7, device=torch.device("cuda"), world=World()
        )
        numbers = torch.rand(6, NUMBERS_PER_IMAGE, device="cuda")
        p = parameters_from_numbers(numbers, probability.value, SIDE)
        x = torch.rand(6, 3, SIDE, SIDE, device="cuda")
        altered = augment_images(x, p, AUGMENTATIONS, UNIT)
        for step in range(ADAPT_EVERY):
            probability.count_signs(altered.sum().sign(), 6, step)
    assert altered.shape == x.shape
    assert altered.device.type == probability.value.device.type == "cuda"


# ---- in the update -------------------------------------------------------------------------------------------------


def augment_networks(ali: ALI, name: str = "digits") -> ALI:
    """Give `ali` every operation, with fixed parameters for two parts of a batch."""
    side = {"digits": 16, "cifar10": 32}[name]
    ali.augmentation = Augmentation(AUGMENTATIONS, SYMMETRIC, side)
    ali.augmentation.take_parameters(random_parameters(2 * BATCH_SIZE, side))
    return ali.train()


@pytest.mark.parametrize("loss", ["nonsaturating", "relativistic"])
@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("scaled", LossWeights(cycle_x=0.3, cycle_z=0.2, cycle_samples=0.1)),
        ("coupled", LossWeights()),
        ("penalised", LossWeights(r1=0.7, r2=0.4, cycle_x=0.3, cycle_z=0.2, cycle_samples=0.1)),
    ],
)
def test_exact_rules_stay_exact(rule, weights, loss):
    """Both players get the gradients of two backward passes; the penalty is of the image before it is altered."""
    ali = augment_networks(make_networks(cycle=weights.cycle_x > 0))
    batch = make_inputs()
    expected = gradients_of_two_backward_passes(ali, loss, weights, 0, batch)
    gradients, losses = gradients_of_step(ali, rule, loss, weights, 0, batch)
    assert relative_error(gradients, expected, 1e-3 * max(t.norm().item() for t in expected)) < 1e-5
    ali.augmentation = None
    plain, plain_losses = gradients_of_step(ali, rule, loss, weights, 0, batch)
    assert relative_error(gradients, plain) > 0.1
    assert losses.d_loss != plain_losses.d_loss


class _Recorder(nn.Module):
    """A network that keeps what it was given first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Any] = []

    def forward(self, x: Any, *rest: Any) -> Any:
        self.seen.append(x)
        return self.network(x, *rest)


@pytest.mark.parametrize("name", ["k+1", "gan", "packing"])
def test_d_alone_sees_augmented_images_and_only_in_training(name):
    variant = VARIANTS[name]
    ali = variant.build()
    batch = variant.make_batch()
    encoder, discriminator = _Recorder(ali.encoder), _Recorder(ali.discriminator)
    labelled_rows = 0 if batch.labelled is None else len(batch.labelled.x)
    ali.augmentation = Augmentation(AUGMENTATIONS, SYMMETRIC, 16)
    ali.augmentation.take_parameters(random_parameters(2 * BATCH_SIZE + labelled_rows, 16))
    networks = ali.with_networks(encoder, ali.decoder, discriminator, ali.embedding)
    output = networks(batch.x, batch.z, batch.epsilon, PassThrough(), batch.c, batch.labelled)
    plain = [batch.x, output.x_tilde] + ([] if batch.labelled is None else [batch.labelled.x])
    (seen,) = discriminator.seen
    for part, was in zip(seen, ali.augmentation(tuple(plain)), strict=True):
        assert torch.equal(part, was)
    assert not any(torch.equal(part, was) for part, was in zip(seen, plain, strict=True))
    if variant.kind == "ali":
        assert torch.equal(encoder.seen[0], torch.cat([batch.x, *plain[2:]]))
    networks.eval()(batch.x, batch.z, batch.epsilon, PassThrough(), batch.c, batch.labelled)
    assert all(torch.equal(part, was) for part, was in zip(discriminator.seen[1], plain, strict=True))


@pytest.mark.parametrize("changes", [{}, {"objective__update": "alternating"}, {"objective__packing": 2}])
def test_augmentation_of_an_update_follows_from_its_number_alone(tmp_path, changes):
    config = tiny_config(tmp_path, objective__augment="color,translation,cutout", **changes)
    state = build_train_state(config, index_without_shards((1, 8, 8)), CPU, World())
    state.step.optimizer = torch.optim.SGD(state.ali.parameters(), lr=0.0)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(24, *state.space.model_shape, generator=g)
    z, epsilon = torch.randn(2, 24, config.model.latent_size, generator=g)
    weights = loss_weights_at(config.objective, 0, 1.0)

    def losses_of(step: int) -> list[float]:
        state.step.start_update(step)
        return [float(loss) for loss in state.step(TrainBatch(x, z, epsilon), weights)]

    first, other, again = losses_of(3), losses_of(4), losses_of(3)
    assert first == again
    assert first[0] != other[0]


# ---- adaptive probability ------------------------------------------------------------------------------------------


def adapt(probability: AugmentationProbability, shares: list[float], first: int = 0) -> list[float]:
    """Count updates of 8 images whose signs have these means; returns the probability after each."""
    found = []
    for step, share in enumerate(shares, first):
        probability.count_signs(torch.tensor(8 * share), 8, step)
        found.append(probability.value.item())
    return found


def make_probability(
    highest: float = 1.0, target: float | None = 0.6, run_images: int = 25_000_000
) -> AugmentationProbability:
    return AugmentationProbability(
        highest, target, global_batch_size=8, run_images=run_images, device=CPU, world=World()
    )


def test_the_probability_rises_while_d_is_surer_than_the_target_and_falls_while_not():
    """By the mean of four updates; it stays where that is the target, and from 0 on."""
    change = 8 * ADAPT_EVERY / 500_000
    probability = make_probability()
    found = adapt(probability, [1, 1, 1, 0.5] + [1, 0, 1, 0.5] + [0, 0, 1, 0] * 3)
    expected = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert found == pytest.approx([change * n for n in expected], abs=1e-9)
    exactly = make_probability(target=0.5)
    assert adapt(exactly, [0.5] * 4)[-1] == 0


def test_in_a_short_run_the_probability_can_rise_within_a_fifth_of_it():
    probability = make_probability(run_images=800)
    assert adapt(probability, [1.0] * 20)[-2:] == pytest.approx([0.8, 1.0])
    assert adapt(make_probability(run_images=40), [1.0] * 4)[-1] == 1


def test_the_probability_rises_no_higher_than_it_may_and_a_fixed_one_stays():
    probability = make_probability(highest=1e-4)
    assert adapt(probability, [1.0] * 16)[-1] == pytest.approx(1e-4)
    fixed = make_probability(highest=0.7, target=None)
    assert adapt(fixed, [1.0] * 8) == pytest.approx([0.7] * 8)
    assert fixed.tensors() == {}


@pytest.mark.parametrize("stop", range(1, 9))
def test_what_was_counted_goes_on_where_it_was_saved(stop):
    shares = [0.75, 0.5, 1.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]
    unbroken = make_probability()
    adapt(unbroken, shares)
    first, second = make_probability(), make_probability()
    adapt(first, shares[:stop])
    first.gather_counts()
    second.restore({name: t.clone() for name, t in first.tensors().items()})
    adapt(second, shares[stop:], stop)
    assert_bitwise_equal(unbroken.tensors(), second.tensors())


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


def test_a_broken_run_with_everything_on_continues_bit_for_bit(tmp_path, digits):
    changes = {
        "data__url": str(digits),
        "data__flip": True,
        "objective__augment": "color,translation,cutout",
        "objective__augment_probability": 0.8,
        "objective__augment_target": 0.1,
        "optim__lr_d": 1e-2,
    }
    unbroken, broken = (tiny_config(tmp_path, run__name=name, **changes) for name in ("unbroken", "broken"))
    fit(unbroken, StoppingContext())
    for updates in (3, 2):  # in the middle of what the probability is adapted by
        with pytest.raises(Stopped):
            fit(broken, StoppingContext(stop_before=updates))
    fit(broken, StoppingContext())
    for file in ("model", "optimizer", "augmentation"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(broken, file))
    lines = (Path(unbroken.run.dir) / "unbroken" / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["event"] == "train"]
    assert records[-1]["augment_probability"] == load_weights(unbroken, "augmentation")["probability"].item() > 0
    assert all(-1 <= r["d_sign"] <= 1 for r in records)


# ---- refusals ------------------------------------------------------------------------------------------------------


def load_config(preset: str, **changes: Any) -> Config:
    return from_mapping(load_preset(preset), {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("preset", "changes", "names"),
    [
        ("digits", {"objective__augment": "colour"}, ("objective.augment is 'colour'", "color, translation, cutout")),
        ("digits", {"objective__augment": "color,color"}, ("objective.augment is 'color,color'", "each once")),
        ("digits", {"objective__augment": "color,"}, ("objective.augment is 'color,'", "'none'")),
        (
            "mixture-inverse",
            {"objective__augment": "color"},
            ("objective.augment is 'color'", "'inverse'", "to 'none'"),
        ),
        (
            "digits",
            {"objective__augment": "color", "objective__augment_probability": 0},
            ("objective.augment_probability is 0.0", "more than 0, up to 1"),
        ),
        (
            "digits",
            {"objective__augment": "color", "objective__augment_target": 1},
            ("objective.augment_target is 1.0", "between 0 and 1"),
        ),
        (
            "digits",
            {"objective__augment_target": 0.6},
            ("objective.augment_target is 0.6", "objective.augment is 'none'", "leave objective.augment_target out"),
        ),
        (
            "digits",
            {"objective__augment_probability": 0.6},
            ("objective.augment_probability is 0.6", "objective.augment is 'none'"),
        ),
    ],
)
def test_nonsense_is_refused_with_a_remedy(preset, changes, names):
    with pytest.raises(InputError) as refusal:
        load_config(preset, **changes)
    for name in names:
        assert name in str(refusal.value)


def test_points_are_not_altered():
    config = load_config("mixture", objective__augment="cutout")
    with pytest.raises(InputError, match="objective.augment is cutout, but architecture 'mixture' takes points"):
        build_train_state(config, index_without_shards((2,)), CPU, World())


def test_spaces_between_names_do_not_matter():
    assert load_config("digits", objective__augment="color, cutout").objective.augmentations() == ("color", "cutout")
