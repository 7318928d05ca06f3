"""The residual networks: every side they are for, no grid at the start, D at its shortcut, and exact updates.

Run: `make test ARGS=tests/unit/model/test_residual.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.errors import InputError
from ali_dist.model.ali import ALI, GameSpec
from ali_dist.model.architectures.residual import CHANNELS, SIDES, make_residual
from ali_dist.model.architectures.schema import Resize
from ali_dist.model.batch_norm import BatchNorm
from ali_dist.model.build import build_ali, build_networks
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.model.layers import Doubling, ResidualBlock
from ali_dist.model.networks import NetworkSizes
from ali_dist.training.dry_run import describe_run
from ali_dist.training.step import LossWeights
from tests.helpers.networks import (
    EXACT_RULES,
    LATENT_SIZE,
    gradients_of_step,
    gradients_of_two_backward_passes,
    make_inputs,
    relative_error,
)
from tests.helpers.variants import (
    UNARY_VARIANTS,
    VARIANTS,
    Variant,
    expected_d_gradients,
    expected_g_gradients,
    run_update,
)

SMALL = 0.125  # width
PENALISED = LossWeights(r1=0.7, r2=0.3, cycle_x=0.5, cycle_z=0.4, cycle_samples=0.3)


def build_small(side: int = 16, channels: int = 3, **options: Any) -> ALI:
    """Build narrow networks, with the same weights at every call."""
    depth = options.pop("depth", 1)
    sizes = NetworkSizes(latent=LATENT_SIZE, width=SMALL)
    return build_ali(make_residual(side, depth), (channels, side, side), sizes, **options)


def wake_branches(ali: ALI) -> ALI:
    """Draw the convolutions that start at zero, so that every weight has a gradient."""
    torch.manual_seed(5)
    for block in ali.modules():
        if isinstance(block, ResidualBlock):
            nn.init.normal_(block.branch[-1].weight, 0.0, 0.1)  # type: ignore[arg-type]
    return ali


def config_for(**changes: Any) -> Config:
    """The settings of the preset for shapes with residual networks."""
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    return from_mapping(load_preset("shapes"), {"model.architecture": "residual", "model.width": SMALL}, settings)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("side", SIDES)
def test_every_side_and_number_of_channels_has_networks_that_fit_together(side, channels):
    ali, space = build_networks(config_for(), DataSpec((channels, side, side)), seed=0)
    x = torch.rand(2, channels, side, side)
    z, epsilon = torch.randn(2, 2, 32)
    assert space.model_shape == x.shape[1:]
    output = ali(x, z, epsilon, PassThrough())
    assert output.x_tilde.shape == x.shape
    assert output.z_hat.shape == z.shape
    assert output.d_q.shape == output.d_p.shape == (2,)
    assert output.x_tilde.detach().abs().max() <= 1


def test_images_of_other_sides_are_resized_where_the_config_says_so():
    ali, space = build_networks(config_for(data__image_size=32), DataSpec((3, 40, 56)), seed=0)
    assert space.model_shape == (3, 32, 32)
    assert ali.decoder(torch.randn(2, 32)).shape == (2, 3, 32, 32)


def test_depth_adds_blocks_at_every_side():
    counts = []
    for depth in (1, 2, 3):
        ali = build_networks(config_for(model__depth=depth), DataSpec((3, 32, 32)), seed=0)[0]
        counts.append([sum(isinstance(m, ResidualBlock) for m in part.modules()) for part in ali.children()])
    assert counts == [[3 * depth] * 3 for depth in (1, 2, 3)]  # at sides 16, 8 and 4


def test_channels_last_gives_the_same_numbers():
    ali = wake_branches(build_small(32)).eval()
    x = torch.rand(4, 3, 32, 32)
    z, epsilon = torch.randn(2, 4, LATENT_SIZE)
    with torch.no_grad():
        expected = ali(x, z, epsilon, PassThrough())
        other = ali.to(memory_format=torch.channels_last)
        actual = other(x.contiguous(memory_format=torch.channels_last), z, epsilon, PassThrough())
    for name in ("x_tilde", "z_hat", "d_q", "d_p"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


# ---- at the start ----------------------------------------------------------------------------------------------------


def test_residual_branches_of_all_networks_contribute_nothing_at_the_start():
    ali = build_small(64)
    blocks = [m for m in ali.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 3 * 4  # at sides 32, 16, 8 and 4 of E, G and D
    for block in blocks:
        (c, *_) = next(p for p in block.branch.parameters() if p.dim() == 4).shape
        assert block.branch(torch.randn(2, c, 4, 4)).count_nonzero() == 0


def test_only_encoder_and_decoder_have_batch_norm():
    ali = build_small()
    assert not make_residual(16).couples_samples
    assert not any(isinstance(m, BatchNorm) for m in ali.discriminator.modules())
    for part in (ali.encoder, ali.decoder):
        assert any(isinstance(m, BatchNorm) for m in part.modules())
    bare = build_ali(make_residual(16, normalized=False), (3, 16, 16), NetworkSizes(latent=4, width=SMALL))
    assert not any(isinstance(m, BatchNorm) for m in bare.modules())


def resize(x: Tensor, how: Resize) -> Tensor:
    """Let a block that starts at its shortcut resize x, without another number of channels."""
    block = ResidualBlock(x.shape[1], x.shape[1], how, make_residual(16), norm=False)
    block.start_at_shortcut()
    return block(x).detach()


def test_sides_double_by_the_filter_1_3_3_1_and_halve_by_means():
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    torch.testing.assert_close(resize(point, "up")[0, 0, 3:7, 3:7], taps[:, None] * taps)
    assert resize(point, "up").sum() == 4
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(resize(x, "down"), x.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5)))


def unevenness(images: Tensor, period: int) -> float:
    """How unevenly neighbours differ along the rows of a grid: 0 where all phases of `period` are alike.

    The mean absolute difference of adjacent pixels, for each phase of the left one; the largest over the smallest,
    less 1. The outer quarter is left out, where edges are.
    """
    margin = images.shape[-1] // 4
    inside = images[..., margin:-margin, margin:-margin]
    steps = (inside[..., 1:] - inside[..., :-1]).abs().mean((0, 1, 2))
    means = torch.stack([steps[phase::period].mean() for phase in range(period)])
    return float(means.max() / means.min()) - 1


def nyquist_share(images: Tensor) -> float:
    """The share of the images' variance at the highest frequency along either axis, edges faded out."""
    window = torch.hann_window(images.shape[-1])
    faded = (images - images.mean((-1, -2), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(faded).abs().square().mean((0, 1))
    middle = power.shape[-1] // 2
    return float((power[middle].sum() + power[:, middle].sum()) / power.sum())


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_the_decoder_starts_without_a_checkerboard(side):
    torch.manual_seed(1)
    ali = build_ali(make_residual(side), (3, side, side), NetworkSizes(latent=16, width=0.25))
    images = ali.decoder(torch.randn(max(8, 1024 // side), 16))
    assert images.std() > 0.05
    assert unevenness(images, 2) < 0.25
    assert nyquist_share(images) < 1e-3


@pytest.mark.parametrize("side", SIDES)
def test_the_discriminator_tells_the_decoder_of_no_checkerboard(side):
    """D's gradient at a smooth image is nearly as smooth: all pixels are treated alike."""
    ali = build_ali(make_residual(side), (3, side, side), NetworkSizes(latent=16, width=0.5))
    torch.manual_seed(1)
    few = torch.randn(max(4, 256 // side), 3, side // 8, side // 8)
    x = F.interpolate(few, size=(side, side), mode="bilinear").requires_grad_()
    (gradient,) = torch.autograd.grad(ali.discriminator((x,), torch.randn(len(x), 16)).d.sum(), x)
    assert nyquist_share(gradient) < 0.03


@torch.no_grad()
def test_overlapping_kernels_plain_shuffles_and_repeated_pixels_would_not_pass():
    torch.manual_seed(1)
    smooth = F.interpolate(torch.randn(64, 8, 4, 4), scale_factor=4, mode="bilinear")
    overlapping = nn.ConvTranspose2d(8, 3, 3, 2, 1, output_padding=1)(smooth)
    shuffled = F.pixel_shuffle(nn.Conv2d(8, 12, 3, padding=1)(smooth), 2)
    repeated = F.interpolate(nn.Conv2d(8, 3, 3, padding=1)(smooth), scale_factor=2)
    assert nyquist_share(overlapping) > 0.1
    assert nyquist_share(shuffled) > 0.1
    assert unevenness(repeated, 2) > 1


# ---- updates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "rule"), EXACT_RULES)
def test_every_exact_rule_has_the_gradients_of_two_backward_passes(loss, rule):
    game = GameSpec(cycle_x=True, cycle_z=True, cycle_samples=True)
    weights = PENALISED if rule == "penalised" else LossWeights(cycle_x=0.5, cycle_z=0.4, cycle_samples=0.3)
    sizes = NetworkSizes(latent=LATENT_SIZE, width=SMALL)
    ali = wake_branches(build_ali(make_residual(16), (1, 16, 16), sizes, game=game))
    gradients, _ = gradients_of_step(ali, rule, loss, weights, 5, make_inputs())
    expected = gradients_of_two_backward_passes(ali, loss, weights, 5, make_inputs())
    assert relative_error(gradients, expected, floor=1e-6) < 2e-3


PLAYED = {"plain": Variant(), **VARIANTS, **UNARY_VARIANTS}


@pytest.mark.parametrize("name", [name for name, variant in PLAYED.items() if variant.architecture == "digits"])
def test_every_variant_of_the_game_has_the_gradients_computed_by_hand(name):
    variant = PLAYED[name]
    in_game = variant.kind == "ali"
    rule = "coupled" if variant.unary else "penalised"
    weights = LossWeights(
        cycle_x=2.0 * in_game,
        cycle_z=0.5 * in_game,
        cycle_samples=1.5 * in_game,
        r1=0.0 if variant.unary else 0.7,
        r2=0.0 if variant.unary else 0.3,
        supervised=1.3 if variant.classes else 0.0,
    )
    game = GameSpec(kind=variant.kind, cycle_x=in_game, cycle_z=in_game, cycle_samples=in_game)
    sizes = variant.network_sizes()
    ali = build_ali(make_residual(16), (1, 16, 16), sizes, encoder=variant.encoder, game=game, seed=1)
    wake_branches(ali).eval()
    expected = [
        *expected_g_gradients(ali, variant, "relativistic", weights),
        *expected_d_gradients(ali, variant, "relativistic", weights),
    ]
    gradients, _ = run_update(variant, rule, "relativistic", weights, ali)
    floor = 1e-3 * max(t.norm().item() for t in expected)
    assert relative_error(gradients, expected, floor) < 2e-5


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "changes", "sentence"),
    [
        ((3, 40, 40), {}, "images of 40x40, but .* 16, 32, 64, 128, 256: set data.image_size to 32 "),
        ((3, 64, 32), {}, "images of 64x32, but .* squares of .*: set data.image_size to 64 "),
        ((1, 8, 8), {}, "images of 8x8, but .*: set data.image_size to 16 "),
        ((3, 512, 512), {}, "images of 512x512, but .*: set data.image_size to 256 "),
        ((3, 64, 64), {"data__image_size": 48}, "data.image_size is 48, but .*: set data.image_size to "),
        ((4, 32, 32), {}, r"4 channels, but .* takes 1 \(gray\) or 3 \(color\): prepare"),
        ((2,), {}, r"samples of shape \[2\], but .* takes images"),
        ((3, 32, 32), {"model__encoder": "implicit"}, "for points: use 'gaussian' or 'deterministic'"),
        ((3, 32, 32), {"model__architecture": "rgb32", "model__depth": 2}, "model.depth is 2, but .* 'rgb32' has no"),
        ((3, 32, 32), {"model__depth": 0}, "model.depth is 0, but must be from 1 to 1,000"),
        ((3, 32, 32), {"model__architecture": "res"}, "must be one of .*residual"),
    ],
)
def test_what_the_networks_cannot_take_is_refused_in_one_sentence(shape, changes, sentence):
    with pytest.raises(InputError, match=sentence) as refusal:
        build_networks(config_for(**changes), DataSpec(shape), seed=0)
    assert "\n" not in str(refusal.value)


def test_a_dry_run_without_data_assumes_a_side(tmp_path):
    changes = {"data__url": str(tmp_path / "none"), "model__depth": 2}
    assert "penalised" in describe_run(config_for(**changes))
    assert "penalised" in describe_run(config_for(data__image_size=64, **changes))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_doubling_is_bilinear(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=layout)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Doubling()(x), expected)
