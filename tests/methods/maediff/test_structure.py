"""Side networks: what the edges lose, and that a fresh or switched-off side network leaves the base bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maediff.config import parse_config
from maediff.errors import ConfigError
from maediff.methods.build import build_network
from maediff.methods.maediff.structure import edges
from maediff.training.stream import SampleStream

CPU = torch.device("cpu")
CONDITIONS = [
    "model.condition=residual",
    "model.condition=cross_attention",
    "model.condition=none",
    "model.mirror=true",
]
EDGES = ("structure.kinds=[controlnet]", "structure.guides=[edges]")
BOTH = ("data.channels=[flair, t1]", "structure.kinds=[controlnet, t2i]", "structure.guides=[edges, t1]")


def textured(seed, shape=(2, 1, 20, 24)):
    """Images of whole numbers with many ties, which float32 holds exactly under the changes below."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.cumsum(rng.integers(-3, 4, shape), -1)).float()


# Edges


@given(seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_edges_are_the_same_under_any_strictly_monotone_change(seed):
    images = textured(seed)
    levels = images.unique()  # sorted
    steps = torch.from_numpy(np.random.default_rng(seed + 1).integers(1, 50, len(levels))).cumsum(0).float()
    rising = steps[torch.searchsorted(levels, images)]  # any order-preserving new values
    assert torch.equal(edges(rising), edges(images))
    assert torch.equal(edges(-rising), edges(images))  # a bright lesion and a dark one leave the same edges


def test_edges_are_the_same_under_an_offset_of_a_region_except_at_its_rim():
    images = textured(3, (1, 1, 40, 40))
    shifted = images.clone()
    shifted[..., 10:30, 10:30] += 7
    same = edges(images) == edges(shifted)
    inside, outside = same[..., 13:26, 13:26], same.clone()
    outside[..., 6:34, 6:34] = True
    assert bool(inside.all())
    assert bool(outside.all())


def test_edges_find_the_rim_of_a_disc_and_nothing_in_a_constant_image():
    rows, columns = np.indices((32, 32)) - 16
    disc = torch.from_numpy(rows**2 + columns**2 < 81).float()[None, None]
    found = edges(disc)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    radius = np.hypot(rows + 0.5, columns + 0.5)[found[0, 0].numpy() > 0]
    assert radius.min() > 4
    assert radius.max() < 14
    assert not edges(torch.full((1, 1, 16, 16), 0.7)).any()


def test_edges_of_a_slice_do_not_depend_on_the_others():
    images = textured(5, (11, 2, 16, 16))
    assert torch.equal(edges(images)[9:], edges(images[9:]))


# Laws of side networks


def steered(config, base, omega=(), seed=1):
    """Build the network of a configuration around the weights of a base, its side networks random."""
    network = build_network(
        config.model_copy(update={"structure": config.structure.model_copy(update={"omega": omega})})
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.structure.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    network.load_state_dict(base.state_dict(), strict=False)
    return network.eval()


def slices_of(discs, channels):
    first = torch.from_numpy(discs(3).images).float()
    return first if channels == 1 else torch.stack([first, first.flip(2)], 1)


def reconstructed(network, config, slices, discs):
    return network.engine(config, CPU, bf16=False)(slices, torch.from_numpy(discs(3).masks), ("key",)).mean


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", ["controlnet", "t2i"])
def test_a_fresh_side_network_is_the_base_bit_for_bit(tiny, random_network, discs, condition, kind):
    base = random_network(tiny(condition))
    config = tiny(condition, f"structure.kinds=[{kind}]", "structure.guides=[edges]")
    network = build_network(config)
    network.load_state_dict(base.state_dict(), strict=False)
    network.start_side()
    slices = slices_of(discs, 1)
    plain = reconstructed(base, tiny(condition), slices, discs)
    assert torch.equal(reconstructed(network.eval(), config, slices, discs), plain)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_factors_of_zero_are_the_base_bit_for_bit_and_others_are_not(tiny, random_network, discs, condition):
    base, config = random_network(tiny(condition)), tiny(condition, *BOTH)
    both = slices_of(discs, 2)
    plain = reconstructed(base, tiny(condition), both[:, 0], discs)
    maps = {
        w: reconstructed(steered(config, base, w), config, both, discs) for w in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    }
    assert maps[0.0, 0.0].shape == plain.shape  # the guide is not reconstructed
    assert torch.equal(maps[0.0, 0.0], plain)
    assert not torch.equal(maps[1.0, 0.0], plain)
    assert not torch.equal(maps[0.0, 1.0], maps[1.0, 0.0])


def test_the_guide_steers_only_the_side_network_that_sees_it(tiny, random_network, discs):
    base, config = random_network(tiny()), tiny(*BOTH)
    both = slices_of(discs, 2)
    other = both.clone()
    other[:, 1] = other[:, 1].flip(1)
    for omega, same in (((1.0, 0.0), True), ((0.0, 1.0), False)):
        network = steered(config, base, omega)
        found = [reconstructed(network, config, images, discs) for images in (both, other)]
        assert torch.equal(*found) is same


def test_residuals_add_up_with_their_factors(tiny, random_network):
    """With one skip tensor of each side network known, what the U-Net is given is m + w1 r1 + w2 r2."""
    base, config = random_network(tiny()), tiny(*BOTH)
    network = steered(config, base, (0.5, -2.0))
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, 2, 32, 32, generator=rng)
    mask, t = torch.zeros(2, 1, 32, 32), torch.tensor([3, 300])
    mask[..., 8:24, 8:24] = 1
    given, produced = [], []
    network.unet.register_forward_pre_hook(lambda _m, _a, kwargs: given.append(kwargs), with_kwargs=True)
    for side in network.structure:
        side.register_forward_hook(lambda _m, _a, out: produced.append(out))
    features = network.features(images[:, :1], mask)
    network(images[:, :1], mask, t, features, guide=network.guides(images))
    base.unet.register_forward_pre_hook(lambda _m, _a, kwargs: given.append(kwargs), with_kwargs=True)
    base(images[:, :1], mask, t, features)
    names = ("down_block_additional_residuals", "mid_block_additional_residual")
    (skips, middle), (own_skips, own_middle) = ([one[name] for name in names] for one in given)
    first, second = produced
    for total, own, a, b in zip(skips, own_skips, first.skips, second.skips, strict=True):
        torch.testing.assert_close(total, own + 0.5 * a - 2 * b)
    torch.testing.assert_close(middle, own_middle + 0.5 * first.middle - 2 * second.middle)


@pytest.mark.parametrize("kind", ["controlnet", "t2i"])
def test_training_reaches_the_side_network_and_leaves_the_base(tiny, random_network, discs, kind):
    config = tiny(f"structure.kinds=[{kind}]", "structure.guides=[edges]")
    base = random_network(tiny())
    network = build_network(config)
    network.load_state_dict(base.state_dict(), strict=False)
    parameters = network.start_side()
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    stream = SampleStream(discs(), config, 8, augmented=True)
    batch = {name: torch.stack([stream[k][name] for k in range(8)]) for name in stream[0]}
    for _ in range(3):
        optimizer.zero_grad()
        sum(network.train().losses(batch)).backward()
        optimizer.step()
    assert all(value.grad is not None and bool(value.grad.any()) for value in parameters)
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in base.state_dict().items())


def test_the_controlnet_starts_as_a_copy_of_the_encoder(tiny, random_network):
    network = random_network(tiny(*EDGES))
    network.start_side()
    copy, unet = network.structure[0].copy.state_dict(), network.unet.state_dict()
    shared = copy.keys() & unet.keys()
    assert {name.split(".")[0] for name in shared} == {"conv_in", "time_embed", "down_blocks", "middle_block"}
    assert all(torch.equal(copy[name], unet[name]) for name in shared)
    assert all(name.startswith("controlnet_") for name in copy.keys() - shared)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("structure.kinds=[t2i]",), "guides names 0 for 1 kinds"),
        ((*EDGES, "structure.omega=[1, 2]"), "omega has 2 factors for 1 side networks"),
        ((*EDGES, "method=ddpm"), "structure goes with method maediff, not 'ddpm'"),
        (("structure.kinds=[t2i]", "structure.guides=[t1]"), "t1 must be the last of data.channels"),
        ((*BOTH, "data.channels=[t1, flair]"), "t1 must be the last of data.channels"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(*overrides)
    assert parse_config({}).structure.factors == ()
