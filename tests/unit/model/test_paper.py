"""The paper's image presets against its tables and the authors' code, number by number, and in real updates.

Numbers were counted by hand from the tables of arXiv 1606.00704, appendix A, with the biases of the authors' code.
Run: `make test ARGS=tests/unit/model/test_paper.py`
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.distributed import World
from ali_dist.errors import Stopped
from ali_dist.model.ali import ALI
from ali_dist.model.build import build_networks
from ali_dist.model.data_spec import DataSpec
from ali_dist.model.layers import BatchNorm, Dropout, PixelBias
from ali_dist.runs.datasets import open_run_data
from ali_dist.training.loop import fit
from ali_dist.training.state import TrainState, build_train_state
from ali_dist.training.step import TrainBatch, loss_weights_at
from tests.helpers.arrays import labelled, write
from tests.helpers.runs import StoppingContext, assert_same, tiny, weights

ATTRIBUTES = tuple(f"attribute {k}" for k in range(40))
CPU = torch.device("cpu")
SIDES = {"cifar10": 32, "svhn": 32, "celeba": 64, "celeba-conditional": 64, "imagenet64": 64}
OURS = ("shapes", "shapes-conditional")  # not the paper's, but colour presets all the same
WAYS = {"cifar10": "scaled", **dict.fromkeys(OURS, "penalised")}  # batch norm in D makes all others coupled

# preset, other settings: encoder, decoder, discriminator, all
PARAMETERS = [
    ("cifar10", {}, (3_118_496, 981_152, 2_611_009), 6_710_657),
    # a bias for each pixel: 32 x 28 x 28 + 64 x 13 x 13 + 128 x 10 x 10 + 256 x 4 x 4 + 512 instead of 992
    ("cifar10", {"model.architecture": "cifar10-untied"}, (3_118_496, 981_152, 2_611_009 + 52_320), 6_762_977),
    ("cifar10", {"model.architecture": "cifar10-table"}, (3_118_496, 981_152, 10_366_593), 14_466_241),
    ("cifar10", {"model.encoder": "deterministic"}, (3_118_496 - 64 * 513, 981_152, 2_611_009), 6_710_657 - 64 * 513),
    ("svhn", {}, (3_315_488, 1_767_584, 5_283_073), 10_366_145),
    ("celeba", {}, (6_794_880, 11_811_392, 15_189_057), 33_795_329),
    # one layer of 64 channels has scale and shift instead of a bias
    ("celeba", {"model.architecture": "celeba-table"}, (6_794_880, 11_811_392, 15_189_057 + 64), 33_795_329 + 64),
    # besides these three the embedding: 40 x 256 + 256
    ("celeba-conditional", {}, (6_925_952, 13_908_544, 15_713_345), 36_547_841 + 10_496),
    ("imagenet64", {}, (7_812_352, 3_164_224, 32_985_793), 43_962_369),
    ("mixture-paper", {}, (164_002, 484_802, 407_201), 1_056_005),
    ("mixture-paper", {"objective.game": "gan"}, (164_002, 484_802, 405_201), 1_054_005),
]

# output side of every layer of E, G and D(x); all others work on single pixels
SPATIAL = {
    "cifar10": ((28, 13, 10, 4, 1, 1, 1), (4, 10, 13, 28, 32, 32, 32), (28, 13, 10, 4, 1)),
    "svhn": ((28, 13, 10, 4, 1, 1, 1), (4, 10, 13, 28, 32, 32, 32), (28, 13, 10, 4, 1)),
    "celeba": ((63, 29, 13, 4, 1, 1), (4, 13, 29, 63, 64, 64), (63, 29, 13, 4, 1)),
    "imagenet64": (
        (31, 28, 13, 10, 4, 1, 1, 1, 1),
        (1, 1, 4, 10, 13, 28, 31, 64, 64),
        (31, 28, 13, 10, 4, 1),
    ),
}

# D(x), D(z), D(x, z): how many layers, what each adds to its convolution, dropout on its input
PLACES = {
    "cifar10": (
        [(1, "bias", 0.2), (4, "bias", 0.5)],
        [(1, "", 0.2), (1, "", 0.5)],
        [(3, "bias", 0.5)],
    ),
    "cifar10-untied": (
        [(1, "pixel", 0.2), (4, "pixel", 0.5)],
        [(1, "", 0.2), (1, "", 0.5)],
        [(3, "bias", 0.5)],
    ),
    "svhn": ([(1, "bias", 0.2), (4, "norm", 0.2)], [(2, "", 0.2)], [(3, "bias", 0.2)]),
    "celeba": ([(1, "bias", 0.2), (4, "norm", 0.2)], [(2, "", 0.2)], [(3, "bias", 0.2)]),
    "celeba-table": ([(5, "norm", 0.0)], [(2, "", 0.2)], [(3, "bias", 0.2)]),
    "imagenet64": ([(1, "bias", 0.2), (5, "norm", 0.2)], [(2, "bias", 0.2)], [(3, "bias", 0.2)]),
}
SLOPES = {"cifar10": 0.1, "svhn": 0.01, "celeba": 0.02, "imagenet64": 0.01}


def config_of(preset: str, **changes: object) -> Config:
    return from_mapping(load_preset(preset), changes)


def networks(preset: str, **changes: object) -> ALI:
    """A preset's networks for data of the paper's shape."""
    side = SIDES.get(preset)
    shape = (2,) if side is None else (3, side, side)
    attributes = ATTRIBUTES if preset == "celeba-conditional" else ()
    return build_networks(config_of(preset, **changes), DataSpec(shape, "uint8", (), attributes), seed=0)[0]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "changes", "parts", "total"), PARAMETERS)
def test_parameters_of_every_network_equal_the_papers_to_the_unit(preset, changes, parts, total):
    ali = networks(preset, **changes)
    assert tuple(count(part) for part in (ali.encoder, ali.decoder, ali.discriminator)) == parts
    assert count(ali) == total


@pytest.mark.parametrize("name", SPATIAL)
def test_every_layer_has_the_papers_output_size(name):
    ali, side = networks(name, **{"model.width": 0.125}).eval(), SIDES[name]
    found = []
    for path, shape in {
        "encoder.stack": (3, side, side),
        "decoder.stack": (config_of(name).model.latent_size, 1, 1),
        "discriminator.d_x": (3, side, side),
    }.items():
        x, sides = torch.zeros(1, *shape), []
        for layer in ali.get_submodule(f"{path}.layers").children():
            x = layer(x)
            sides.append(x.shape[-1])
        found.append(tuple(sides))
    assert tuple(found) == SPATIAL[name]


def additions(ali: ALI, stack: str) -> list[tuple[int, str, float]]:
    """Runs of equal layers of a stack: how many, bias or batch norm, dropout."""
    found = []
    for layer in ali.get_submodule(f"{stack}.layers").children():
        modules = list(layer.children())
        kinds = ["norm" for m in modules if isinstance(m, BatchNorm)]
        kinds += ["pixel" for m in modules if isinstance(m, PixelBias)]
        kinds += ["bias" for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.bias is not None]
        assert len(kinds) <= 1, "a bias beside batch norm or another bias does nothing"
        dropout = sum(m.p for m in modules if isinstance(m, Dropout))
        if dropout:
            assert isinstance(modules[0], Dropout), "dropout is on the layer's input"
        found.append(("".join(kinds), dropout))
    return [(len(list(run)), *kind) for kind, run in itertools.groupby(found)]


@pytest.mark.parametrize("name", PLACES)
def test_batch_norm_biases_and_dropout_are_where_the_authors_have_them(name):
    preset = name.removesuffix("-table").removesuffix("-untied")
    ali = networks(preset, **{"model.architecture": name, "model.width": 0.125})
    stacks = ("discriminator.d_x", "discriminator.d_z", "discriminator.d_xz")
    assert tuple(additions(ali, stack) for stack in stacks) == PLACES[name]
    *hidden, last = additions(ali, "encoder.stack")
    assert ([kind for _, *kind in hidden], last) == ([["norm", 0]], (1, "bias", 0))
    *hidden, last = additions(ali, "decoder.stack")
    assert ([kind for _, *kind in hidden], last) == ([["norm", 0]], (1, "pixel", 0))


@pytest.mark.parametrize("name", SLOPES)
def test_set_up_is_the_papers(name):
    """Slopes, batch norm's constants, N(0, 0.01^2) weights, biases 0, identity batch norm."""
    ali = networks(name, **{"model.width": 0.25})
    assert {m.negative_slope for m in ali.modules() if isinstance(m, nn.LeakyReLU)} == {SLOPES[name]}
    norms = [m for m in ali.modules() if isinstance(m, BatchNorm)]
    assert {(m.eps, m.momentum, m.affine) for m in norms} == {(1e-4, 0.05, True)}
    assert all(bool((m.weight == 1).all() and (m.bias == 0).all()) for m in norms)
    for part in (ali.encoder, ali.decoder, ali.discriminator):
        maps = torch.cat([p.flatten() for p in part.parameters() if p.dim() == 4])
        assert maps.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(maps.mean().item()) < 1e-4
    biases = [p for n, p in ali.named_parameters() if n.endswith("bias")]
    assert biases
    assert all(not p.any() for p in biases)


@pytest.mark.parametrize("preset", SIDES)
def test_presets_train_as_the_paper_says(preset):
    """Objective, Adam, batch, and nothing that the paper does not have."""
    config = config_of(preset)
    objective, optim = config.objective, config.optim
    assert (objective.game, objective.loss, objective.update) == ("ali", "nonsaturating", "auto")
    extras = ("r1", "r2", "cycle_x", "cycle_z", "cycle_samples", "supervised")
    assert not any(getattr(objective, name) for name in extras)
    assert (optim.lr_d, optim.lr_g, optim.beta1, optim.beta2) == (1e-4, 1e-4, 0.5, 0.999)
    assert (optim.eps, optim.eps_inside) == (1e-8, True)
    assert (optim.schedule, optim.ema_half_life) == ("constant", 0.0)
    large = preset in ("imagenet64", "celeba-conditional")
    assert config.data.global_batch_size == (128 if large else 100)
    assert config.model.latent_size == (64 if preset == "cifar10" else 256)
    assert config.model.encoder == "gaussian"


# ---- real updates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Folder of a few random images, by preset; of SVHN's splits, the one that the preset trains on."""
    root = tmp_path_factory.mktemp("made-up")

    def folder(preset: str) -> str:
        if not (root / preset).exists():
            side = SIDES.get(preset, 32)
            x, y = labelled(24, shape=(3, side, side))
            names: dict = {"classes": [str(k) for k in range(10)]}
            if preset.endswith("-conditional"):
                y = torch.randint(0, 2, (24, 40), generator=torch.Generator().manual_seed(0)).float().numpy()
                names = {"attributes": ATTRIBUTES}
            write(root / preset / config_of(preset).data.split, x, y, **names)
        return str(root / preset)

    return folder


def run(folder: Path, preset: str, data: str, **changes: object) -> Config:
    """Three updates of 4 images at an eighth of the width."""
    small = {"run__images": 12, "data__global_batch_size": 4, "data__lanes": 2, "report__log_every": 4}
    return tiny(folder, preset, data__url=data, **{**small, "model__width": 0.125, **changes})


@pytest.mark.parametrize("preset", [*SIDES, *OURS])
def test_a_preset_takes_real_updates_and_its_checkpoint_goes_on_bit_for_bit(preset, tmp_path, made_up):
    unbroken, broken = (run(tmp_path, preset, made_up(preset), run__name=name) for name in ("unbroken", "broken"))
    summary = fit(unbroken, StoppingContext())
    assert summary is not None
    assert summary["update"] == WAYS.get(preset, "coupled")
    assert losses_of(unbroken) == {"d_loss": 3, "g_loss": 3}
    assert_all_moved(unbroken)
    with pytest.raises(Stopped):
        fit(broken, StoppingContext(stop_before=2))
    fit(broken, StoppingContext())
    for file in ("model", "optimizer") + (("ema",) if preset in OURS else ()):
        assert_same(weights(unbroken, file), weights(broken, file))


def losses_of(config: Config) -> dict[str, int]:
    """How many finite losses were logged."""
    text = (Path(config.run.dir) / config.run.name / "metrics.jsonl").read_text()
    rows = [row for row in map(json.loads, text.splitlines()) if row["event"] == "train"]
    return {name: sum(math.isfinite(row[name]) for row in rows) for name in ("d_loss", "g_loss")}


def assert_all_moved(config: Config) -> None:
    """Every tensor of every network has left its start."""
    index = open_run_data(config).train.index
    start = build_train_state(config, index, CPU, World()).ali
    after = weights(config)
    assert {name.partition(".")[0] for name in after} >= {"encoder", "decoder", "discriminator"}
    still = [name for name, p in start.named_parameters() if torch.equal(p, after[name])]
    assert not still, f"{still} have not moved"


def full_width_update(preset: str, data: str) -> tuple[dict[str, Tensor], TrainState]:
    """Parameters before, and the players after, one update of 2 images at the paper's width."""
    latent_size = config_of(preset).model.latent_size
    config = run(Path(), preset, data, model__width=1.0, model__latent_size=latent_size)
    players = build_train_state(config, open_run_data(config).train.index, CPU, World())
    before = {name: p.detach().clone() for name, p in players.ali.named_parameters()}
    side, g = SIDES[preset], torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, side, side, generator=g)
    z, epsilon = torch.randn(2, 2, latent_size, generator=g)
    c = torch.ones(2, 40) if preset == "celeba-conditional" else None
    batch = TrainBatch(x=x, z=z, epsilon=epsilon, c=c)
    torch.manual_seed(0)
    losses = players.step(batch, loss_weights_at(config.objective, 0, 1.0))
    assert math.isfinite(losses.d_loss.item() + losses.g_loss.item())
    return before, players


@pytest.mark.parametrize("preset", SIDES)
def test_one_update_at_full_width_moves_all_networks_by_about_the_learning_rate(preset, made_up):
    """Adam's first step has the length of its learning rate wherever a gradient is not zero or lost to rounding."""
    before, players = full_width_update(preset, made_up(preset))
    assert sum(p.numel() for p in before.values()) == next(t for p, c, _, t in PARAMETERS if p == preset and not c)
    for name, p in players.ali.named_parameters():
        change = (p.detach() - before[name]).abs()
        assert 0 < change.max().item() < 1.01e-4, name


def test_output_bias_starts_as_the_logit_of_the_mean_image(made_up):
    config = run(Path(), "svhn", made_up("svhn"))
    index = open_run_data(config).train.index
    players = build_train_state(config, index, CPU, World())
    bias = next(m for m in players.ali.decoder.modules() if isinstance(m, PixelBias)).bias
    torch.testing.assert_close(torch.sigmoid(bias).flatten(), torch.tensor(index.pixel_mean), rtol=0, atol=1e-6)
