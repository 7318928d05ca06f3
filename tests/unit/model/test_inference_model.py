"""The trained networks of every variant as users see them, against the networks themselves.

Run: `make test ARGS=tests/unit/model/test_inference_model.py`
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ali_dist.model.ali import GameSpec
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.build import build_ali
from ali_dist.model.data_space import DataSpace
from ali_dist.model.inference_model import InferenceModel
from ali_dist.model.networks import Discriminator
from tests.helpers.networks import LATENT_SIZE, SAMPLE_SHAPES
from tests.helpers.variants import (
    ATTRIBUTE_COUNT,
    UNARY_VARIANTS,
    VARIANTS,
    Variant,
    compute_scores,
    decode_by_hand,
    embed_condition,
    encode_by_hand,
)

N = 5
TRAINED = {"plain": Variant()} | VARIANTS | UNARY_VARIANTS


def trained(variant: Variant) -> tuple[InferenceModel, Tensor, Tensor, Tensor | None]:
    """A model as users see it, with x in [0, 1] or points, z and c."""
    tables = ARCHITECTURES[variant.architecture]
    shape = (2,) if tables.image_size is None else SAMPLE_SHAPES[variant.architecture]

    def fresh(seed: int) -> dict[str, torch.nn.Module]:
        game = GameSpec(kind=variant.kind)  # type: ignore[arg-type]
        ali = build_ali(tables, shape, variant.network_sizes(), encoder=variant.encoder, game=game, seed=seed)
        return dict(ali.named_children())

    g = torch.Generator().manual_seed(1)
    x, z = torch.rand(N, *shape, generator=g), torch.randn(N, LATENT_SIZE, generator=g)
    c = torch.randint(0, 2, (N, ATTRIBUTE_COUNT), generator=g).float() if variant.conditional else None
    return (
        InferenceModel(dict(variant.build().named_children()), DataSpace.for_architecture(tables, shape), fresh),
        x,
        z,
        c,
    )


@pytest.mark.parametrize("name", TRAINED)
@torch.inference_mode()
def test_a_trained_model_of_every_variant_gives_one_row_for_each_sample_and_draws_nothing(name):
    variant = TRAINED[name]
    model, x, z, c = trained(variant)
    before = torch.get_rng_state()
    mu, log_sigma = model.encode(x, c)
    assert mu.shape == (N, LATENT_SIZE)
    assert (log_sigma is None) == (variant.encoder == "deterministic")
    assert model.decode(z, c).shape == x.shape
    assert model.score(x, z, c).shape == (N,)
    features = model.joint_features(x, z, c)
    assert features.dim() == 2
    assert len(features) == N
    assert len(model.features(x, c)) == N
    assert {len(h) for h in model.hidden(x, c=c)} == {N}
    assert model.condition_size == (ATTRIBUTE_COUNT if variant.conditional else 0)
    assert model.num_classes == variant.classes
    if variant.classes:
        assert model.classify(x).shape == (N, variant.classes)
    other = model.untrained(7)
    assert not torch.equal(other.decode(z, c), model.decode(z, c))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", TRAINED)
@torch.inference_mode()
def test_scores_and_codes_of_a_trained_model_are_those_of_the_networks(name):
    """A pair is packed with copies of itself, x is brought to the model's range, and c is embedded."""
    variant = TRAINED[name]
    model, x, z, c = trained(variant)
    ali, space = variant.build(), model._space
    e = embed_condition(ali, c)
    inside, m = space.model_from_unit(x), variant.packing
    mu = encode_by_hand(ali, inside, torch.zeros(N, LATENT_SIZE), e)[1]
    torch.testing.assert_close(model.encode(x, c)[0], mu)
    torch.testing.assert_close(model.decode(z, c), space.unit_from_model(decode_by_hand(ali, z, e)))
    x_pack, z_pack = inside.repeat_interleave(m, dim=0), z.repeat_interleave(m, dim=0)
    e_pack = None if e is None else e.repeat_interleave(m, dim=0)
    torch.testing.assert_close(model.score(x, z, c), compute_scores(ali, variant, x_pack, z_pack, e_pack).joint)
    if variant.classes:
        classes = compute_scores(ali, variant, inside, mu, e).classes
        torch.testing.assert_close(model.classify(x), classes)
        torch.testing.assert_close(model.score(x, mu), classes.logsumexp(1))


@pytest.mark.parametrize("name", ["plain", "conditional", "packing", "gan", "k+1"])
@torch.inference_mode()
def test_features_of_a_pair_are_what_the_last_layer_reads(name):
    """The logit is the last layer of the joint features."""
    variant = TRAINED[name]
    model, x, z, c = trained(variant)
    discriminator = variant.build().discriminator
    assert isinstance(discriminator, Discriminator)
    h = model.joint_features(x, z, c)
    out = discriminator.d_xz.layers[-1](h[:, :, None, None]).flatten(1)
    d = out.logsumexp(1) if variant.classes else out[:, 0]
    torch.testing.assert_close(model.score(x, z, c), d)


def test_a_condition_is_required_by_conditional_models_and_refused_by_others():
    conditional, x, z, c = trained(TRAINED["conditional"])
    plain, *_ = trained(TRAINED["plain"])
    with pytest.raises(ValueError, match="needs c"):
        conditional.encode(x)
    with pytest.raises(ValueError, match="not conditional"):
        plain.decode(z, c)
