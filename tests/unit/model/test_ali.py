"""The networks: their sizes, the properties of the encoder and of single layers, cycles, and the data space.

Run: `make test ARGS=tests/unit/model/test_ali.py`
"""

from typing import Any

import pytest
import torch
from torch import nn

from ali_dist.model.ali import ALI, GameSpec
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.build import build_ali
from ali_dist.model.data_space import DataSpace
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.model.layers import ConvTranspose2d, FullConv, FullConvTranspose, Maxout
from ali_dist.model.networks import NetworkSizes

# The parameters of encoder, decoder and discriminator, counted from the appendix's tables with the widths of the
# authors' code.
PARAMETER_COUNTS = {
    ("cifar10", (3, 32, 32), 64, "gaussian"): (3_118_496, 981_152, 2_611_009),
    ("mixture-paper", (2,), 2, "implicit"): (164_002, 484_802, 407_201),
}


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build_digits(**options: Any) -> ALI:
    """Build the networks for digits with 4 latent variables."""
    return build_ali(ARCHITECTURES["digits"], (1, 16, 16), NetworkSizes(latent=4), **options)


@pytest.mark.parametrize(("case", "expected"), PARAMETER_COUNTS.items())
def test_the_networks_have_exactly_as_many_parameters_as_the_papers(case, expected):
    name, shape, latent_size, encoder = case
    ali = build_ali(ARCHITECTURES[name], shape, NetworkSizes(latent=latent_size), encoder=encoder)
    assert tuple(count_parameters(part) for part in (ali.encoder, ali.decoder, ali.discriminator)) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_networks_of_every_architecture_fit_together(name):
    architecture = ARCHITECTURES[name]
    shape = (2,) if architecture.image_size is None else (3, architecture.image_size, architecture.image_size)
    ali = build_ali(architecture, shape, NetworkSizes(latent=5, width=0.25))
    x, z = torch.rand(3, *shape), torch.randn(3, 5)
    z_hat, mu, log_sigma = ali.encoder(x, torch.randn(3, 5))
    assert z_hat.shape == mu.shape == log_sigma.shape == (3, 5)
    assert ali.decoder(z).shape == x.shape
    assert ali.discriminator((x,), z).d.shape == (3,)


def test_the_gaussian_encoder_adds_noise_times_the_exponential_of_log_sigma_to_mu():
    ali = build_digits().eval()
    x, epsilon = torch.rand(6, 1, 16, 16), torch.randn(6, 4)
    z_hat, mu, log_sigma = ali.encoder(x, epsilon)
    torch.testing.assert_close(z_hat, mu + log_sigma.exp() * epsilon)
    assert not torch.equal(z_hat, ali.encoder(x, torch.zeros_like(epsilon))[0])
    assert log_sigma.mean().item() == pytest.approx(ARCHITECTURES["digits"].log_sigma_bias, abs=0.5)


def test_the_deterministic_encoder_ignores_the_noise():
    ali = build_digits(encoder="deterministic").eval()
    x = torch.rand(6, 1, 16, 16)
    first, second = (ali.encoder(x, torch.randn(6, 4))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_implicit_encoder_uses_the_noise_of_each_sample():
    ali = build_ali(ARCHITECTURES["mixture-paper"], (2,), NetworkSizes(latent=2), encoder="implicit")
    ali.eval()
    x = torch.zeros(3, 2)
    epsilon = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    first, with_same_noise, with_other_noise = ali.encoder(x, epsilon)[0]
    assert torch.allclose(first, with_same_noise)
    assert not torch.allclose(first, with_other_noise)


def test_the_seed_decides_the_weights_and_global_randomness_is_untouched():
    before = torch.get_rng_state()
    first, with_same_seed, with_other_seed = (build_digits(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(first.parameters(), with_same_seed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.parameters(), with_other_seed.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_the_papers_weights_start_at_a_standard_deviation_of_one_hundredth():
    ali = build_ali(ARCHITECTURES["cifar10"], (3, 32, 32), NetworkSizes(latent=64))
    weights = torch.cat([p.flatten() for n, p in ali.named_parameters() if p.dim() == 4])
    assert weights.std().item() == pytest.approx(0.01, rel=0.01)


def test_discriminator_dropout_reaches_every_layer_of_the_discriminator_and_nothing_else():
    ali = build_digits(discriminator_dropout=0.3)
    architecture = ARCHITECTURES["digits"]
    layer_count = sum(len(table) for table in (architecture.d_x, architecture.d_z, architecture.d_xz))
    assert [m.p for m in ali.discriminator.modules() if isinstance(m, nn.Dropout)] == [0.3] * layer_count
    assert not [m for part in (ali.encoder, ali.decoder) for m in part.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maxouts_gradient_goes_to_the_larger_channel_in_every_layout(layout):
    """Written twice: for a gradient that is differentiated again, and for one that is not."""
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    x.requires_grad_()
    upstream = torch.randn(2, 3, 3, 4).contiguous(memory_format=layout)
    y = Maxout(2)(x)
    (expected,) = torch.autograd.grad(x.unflatten(1, (3, 2)).amax(2), x, upstream)
    (once,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    assert torch.equal(once, expected)
    assert torch.equal(again, expected)
    assert once.is_contiguous(memory_format=layout)


def test_maxout_takes_the_largest_of_adjacent_channels():
    x = torch.tensor([[1.0, 5.0, -2.0, -3.0]]).view(1, 4, 1, 1)
    assert Maxout(2)(x).flatten().tolist() == [5.0, -2.0]
    assert Maxout(4)(x).flatten().tolist() == [5.0]


def test_matrix_products_equal_the_convolutions_they_stand_for():
    x = torch.randn(3, 5, 4, 4)
    product = FullConv(5, 7, 4)
    convolution = nn.Conv2d(5, 7, 4)
    convolution.load_state_dict(product.state_dict())
    torch.testing.assert_close(product(x), convolution(x), rtol=1e-4, atol=1e-5)
    z = torch.randn(3, 5, 1, 1)
    transposed_product = FullConvTranspose(5, 7, 4)
    transposed_convolution = nn.ConvTranspose2d(5, 7, 4)
    transposed_convolution.load_state_dict(transposed_product.state_dict())
    torch.testing.assert_close(transposed_product(z), transposed_convolution(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (3, 2, 0), (2, 3, 0), (4, 1, 0)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_transposed_convolutions_of_any_size_are_torchs(channels, kernel, stride, padding, bias):
    """Few channels are computed in another way."""
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    ours = ConvTranspose2d(6, channels, kernel, stride, padding, bias=bias).double()
    theirs = nn.ConvTranspose2d(6, channels, kernel, stride, padding, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    mine, expected = ours(x), theirs(x)
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
    inputs = [[x, *layer.parameters()] for layer in (ours, theirs)]
    gradients = [torch.autograd.grad(y.square().sum(), i) for y, i in zip((mine, expected), inputs, strict=True)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_an_enlarged_image_maps_back_to_its_stored_pixels():
    space = DataSpace.for_architecture(ARCHITECTURES["digits"], (1, 8, 8))
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    unit = space.unit_from_stored(x)
    assert unit.shape == (5, *space.model_shape)
    torch.testing.assert_close(space.native_from_unit(unit), x / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(space.unit_from_model(space.model_from_unit(unit)), unit)


def test_points_are_scaled_into_the_model_and_back():
    space = DataSpace.for_architecture(ARCHITECTURES["mixture"], (2,))
    x = torch.randn(4, 2) * 3
    assert space.model_from_unit(space.unit_from_stored(x)).std() < x.std()
    torch.testing.assert_close(space.unit_from_model(space.model_from_unit(x)), x)


def test_cycle_errors_are_mean_squared_errors_at_the_stored_size():
    space = DataSpace.for_architecture(ARCHITECTURES["digits"], (1, 8, 8))
    ali = build_digits(
        encoder="deterministic",
        native=space.native_from_unit,
        game=GameSpec(cycle_x=True, cycle_z=True, cycle_samples=True),
    )
    ali.eval()  # in training mode batch norm would depend on how rows are batched
    x = torch.rand(3, 1, 16, 16)
    z = torch.randn(3, 4)
    epsilon = torch.randn(3, 4)
    output = ali(x, z, epsilon, PassThrough())

    def image_error(a, b):
        return (space.native_from_unit(a) - space.native_from_unit(b)).square().mean((1, 2, 3))

    def reconstruct(image):
        return ali.decoder(ali.encoder(image, epsilon)[0])

    torch.testing.assert_close(output.cycle.x, image_error(reconstruct(x), x))
    torch.testing.assert_close(output.cycle.samples, image_error(reconstruct(output.x_tilde), output.x_tilde))
    torch.testing.assert_close(output.cycle.z, (ali.encoder(output.x_tilde, epsilon)[1] - z).square().mean(1))
