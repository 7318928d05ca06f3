"""Networks against the paper's tables, and the properties of the encoder and the data space."""

import pytest
import torch
from torch import nn

from ali_dist.model.ali import GameSpec
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.build import build_ali
from ali_dist.model.data_space import DataSpace
from ali_dist.model.gradient_gates import PassThrough
from ali_dist.model.layers import FullConv, FullConvTranspose, Maxout
from ali_dist.model.networks import NetworkSizes

# encoder, decoder, discriminator, counted from the appendix's tables with the widths of the authors' code
PARAMETERS = {
    ("cifar10", (3, 32, 32), 64, "gaussian"): (3_118_496, 981_152, 2_611_009),
    ("mixture-paper", (2,), 2, "implicit"): (164_002, 484_802, 407_201),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("case", "expected"), PARAMETERS.items())
def test_parameter_counts_equal_the_papers_to_the_unit(case, expected):
    name, shape, latent_size, encoder = case
    ali = build_ali(ARCHITECTURES[name], shape, NetworkSizes(latent=latent_size), encoder=encoder)
    assert tuple(count(part) for part in (ali.encoder, ali.decoder, ali.discriminator)) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_networks_fit_together(name):
    tables = ARCHITECTURES[name]
    shape = (2,) if tables.image_size is None else (3, tables.image_size, tables.image_size)
    ali = build_ali(tables, shape, NetworkSizes(latent=5, width=0.25))
    x, z = torch.rand(3, *shape), torch.randn(3, 5)
    z_hat, mu, log_sigma = ali.encoder(x, torch.randn(3, 5))
    assert z_hat.shape == mu.shape == log_sigma.shape == (3, 5)
    assert ali.decoder(z).shape == x.shape
    assert ali.discriminator((x,), z).d.shape == (3,)


def test_gaussian_encoder_reparametrises_with_the_exponential_of_its_second_half():
    ali = build_ali(ARCHITECTURES["digits"], (1, 16, 16), NetworkSizes(latent=4))
    ali.eval()
    x, epsilon = torch.rand(6, 1, 16, 16), torch.randn(6, 4)
    z_hat, mu, log_sigma = ali.encoder(x, epsilon)
    torch.testing.assert_close(z_hat, mu + log_sigma.exp() * epsilon)
    assert not torch.equal(z_hat, ali.encoder(x, torch.zeros_like(epsilon))[0])
    assert log_sigma.mean().item() == pytest.approx(ARCHITECTURES["digits"].log_sigma_bias, abs=0.5)


def test_deterministic_encoder_ignores_the_noise():
    ali = build_ali(ARCHITECTURES["digits"], (1, 16, 16), NetworkSizes(latent=4), encoder="deterministic")
    ali.eval()
    x = torch.rand(6, 1, 16, 16)
    first, second = (ali.encoder(x, torch.randn(6, 4))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_implicit_encoder_uses_each_samples_own_noise():
    ali = build_ali(ARCHITECTURES["mixture-paper"], (2,), NetworkSizes(latent=2), encoder="implicit")
    ali.eval()
    x = torch.zeros(3, 2)
    epsilon = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    a, b, c = ali.encoder(x, epsilon)[0]
    assert torch.allclose(a, b)
    assert not torch.allclose(a, c)


def test_the_seed_decides_the_weights_and_global_randomness_is_untouched():
    before = torch.get_rng_state()
    first, same, other = (
        build_ali(ARCHITECTURES["digits"], (1, 16, 16), NetworkSizes(latent=4), seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(first.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_paper_weights_start_at_a_standard_deviation_of_one_hundredth():
    ali = build_ali(ARCHITECTURES["cifar10"], (3, 32, 32), NetworkSizes(latent=64))
    weights = torch.cat([p.flatten() for n, p in ali.named_parameters() if p.dim() == 4])
    assert weights.std().item() == pytest.approx(0.01, rel=0.01)


def test_dropout_override_reaches_every_discriminator_layer_and_nothing_else():
    ali = build_ali(ARCHITECTURES["digits"], (1, 16, 16), NetworkSizes(latent=4), discriminator_dropout=0.3)
    layers = sum(
        len(t) for t in (ARCHITECTURES["digits"].d_x, ARCHITECTURES["digits"].d_z, ARCHITECTURES["digits"].d_xz)
    )
    assert [m.p for m in ali.discriminator.modules() if isinstance(m, nn.Dropout)] == [0.3] * layers
    assert not [m for part in (ali.encoder, ali.decoder) for m in part.modules() if isinstance(m, nn.Dropout)]


def test_maxout_takes_the_larger_of_adjacent_channels():
    x = torch.tensor([[1.0, 5.0, -2.0, -3.0]]).view(1, 4, 1, 1)
    assert Maxout(2)(x).flatten().tolist() == [5.0, -2.0]
    assert Maxout(4)(x).flatten().tolist() == [5.0]


def test_matrix_products_equal_the_convolutions_they_stand_for():
    x = torch.randn(3, 5, 4, 4)
    full, conv = FullConv(5, 7, 4), nn.Conv2d(5, 7, 4)
    conv.load_state_dict(full.state_dict())
    torch.testing.assert_close(full(x), conv(x), rtol=1e-4, atol=1e-5)
    z = torch.randn(3, 5, 1, 1)
    full_t, conv_t = FullConvTranspose(5, 7, 4), nn.ConvTranspose2d(5, 7, 4)
    conv_t.load_state_dict(full_t.state_dict())
    torch.testing.assert_close(full_t(z), conv_t(z), rtol=1e-4, atol=1e-5)


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


def test_cycle_terms_are_mean_squared_errors_at_the_stored_size():
    space = DataSpace.for_architecture(ARCHITECTURES["digits"], (1, 8, 8))
    ali = build_ali(
        ARCHITECTURES["digits"],
        (1, 16, 16),
        NetworkSizes(latent=4),
        encoder="deterministic",
        native=space.native_from_unit,
        game=GameSpec(cycle_x=True, cycle_z=True, cycle_samples=True),
    )
    ali.eval()  # batch norm would tell one batch from two
    x, z, epsilon = torch.rand(3, 1, 16, 16), torch.randn(3, 4), torch.randn(3, 4)
    pairs = ali(x, z, epsilon, PassThrough())

    def error(a, b):
        return (space.native_from_unit(a) - space.native_from_unit(b)).square().mean((1, 2, 3))

    def through(image):
        return ali.decoder(ali.encoder(image, epsilon)[0])

    torch.testing.assert_close(pairs.cycle.x, error(through(x), x))
    torch.testing.assert_close(pairs.cycle.samples, error(through(pairs.x_tilde), pairs.x_tilde))
    torch.testing.assert_close(pairs.cycle.z, (ali.encoder(pairs.x_tilde, epsilon)[1] - z).square().mean(1))
