"""The other hemisphere: the midline is where the brain was turned to, and a network sees both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from maediff.config import Config, override
from maediff.diffusion.noise import generator
from maediff.errors import ConfigError
from maediff.methods.build import build_network
from maediff.training.loop import with_other_side
from maediff.working.hemispheres import midlines, mirrored


def brains(count=3, shape=(64, 80)):
    """Smooth slices that are symmetric about the middle row, -1 outside an ellipse."""
    rng = np.random.default_rng(6)
    row, column = np.indices(shape) - (np.array(shape)[:, None, None] - 1) / 2
    inside = (row / 20) ** 2 + (column / 28) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal((count, *shape)), (0, 3, 3))
    texture = texture + texture[:, ::-1]
    values = np.where(inside, 0.3 * texture / texture.std(), -1.0)
    return torch.from_numpy(values[:, None]).float()


def moved(images, degrees, shift):
    """Turn images about their middle, then move them along the rows: scipy as the oracle."""
    turned = ndimage.rotate(images.numpy(), degrees, axes=(3, 2), reshape=False, order=1, cval=-1.0)
    return torch.from_numpy(ndimage.shift(turned, (0, 0, shift, 0), order=1, cval=-1.0)).float()


@pytest.mark.parametrize("degrees", [-12.0, -5.0, 0.0, 3.0, 9.0])
@pytest.mark.parametrize("shift", [-6.0, 0.0, 2.5])
def test_the_midline_is_where_the_brain_was_moved_to(degrees, shift):
    angle, distance = midlines(moved(brains(), degrees, shift)).unbind(1)
    wanted = shift * math.cos(math.radians(degrees))
    torch.testing.assert_close(torch.rad2deg(angle), torch.full_like(angle, degrees), rtol=0, atol=1.5)
    torch.testing.assert_close(distance, torch.full_like(distance, wanted), rtol=0, atol=0.5)


@pytest.mark.parametrize(("degrees", "shift"), [(0.0, 0.0), (8.0, 3.0), (-10.0, -4.0)])
def test_a_symmetric_brain_is_its_own_mirror_image_wherever_it_lies(degrees, shift):
    images = moved(brains(), degrees, shift)
    again = mirrored(images, midlines(images))
    brain = images > -0.9
    assert (again - images).abs()[brain].mean() < 0.15 * (images.flip(3) - images).abs()[brain].mean()


@pytest.mark.parametrize("row", [31.5, 30.0, 27.5])
def test_a_level_midline_mirrors_as_a_flip_does(row):
    images = torch.rand(2, 1, 64, 80, generator=generator("flip")) - 0.5
    found = mirrored(images, torch.tensor([[0.0, row - 31.5]]).expand(2, 2))
    wanted = torch.full_like(images, -1.0)
    for target in range(64):
        if 0 <= 2 * row - target <= 63:
            wanted[:, :, target] = images[:, :, int(2 * row - target)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_mirroring_twice_gives_the_slice_back():
    images = brains()
    line = torch.tensor([[0.1, 1.5]]).expand(3, 2)
    inside = slice(24, 40), slice(30, 50)  # away from the edge of the brain, where interpolation meets the background
    again = mirrored(mirrored(images, line), line)
    torch.testing.assert_close(again[:, :, inside[0], inside[1]], images[:, :, inside[0], inside[1]], rtol=0, atol=0.1)


def test_a_lesion_or_noise_hardly_moves_the_midline():
    images = moved(brains(), 4.0, 2.0)
    before = midlines(images)
    lesion = images.clone()
    lesion[:, :, 22:30, 30:42] += 0.8
    noisy = images + 0.3 * torch.randn(images.shape, generator=generator("noise"))
    for other in (lesion, noisy):
        gap = (midlines(other) - before).abs().amax(0)
        assert gap[0] < math.radians(2.5)
        assert gap[1] < 1.0


@pytest.mark.parametrize(("rows", "columns"), [((12, 28), (18, 40)), ((36, 54), (42, 66)), ((8, 26), (44, 70))])
def test_a_large_bright_tumour_does_not_pull_the_midline(rows, columns):
    """In an eighth of the brain, on one side and off the middle; by brightness alone it turned by more than 3.5."""
    images = brains()
    tumour = images.clone()
    tumour[:, :, slice(*rows), slice(*columns)] += 1.2
    tumour[images <= -1] = -1
    before, after = midlines(images), midlines(tumour)
    assert math.degrees((after - before)[:, 0].abs().max()) < 2.5


def test_each_slice_has_its_own_midline_whatever_is_beside_it():
    images = torch.cat([moved(brains(), 6.0, 3.0), moved(brains(), -3.0, -5.0)])
    together = midlines(images)
    for one, line in zip(images, together, strict=True):
        torch.testing.assert_close(midlines(one[None])[0], line, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 80), (2, 80), (64, 1), (64, 2)])
def test_slices_of_one_or_two_rows_have_a_midline(shape):
    """As a scan of a single sagittal slice has in axial ones."""
    line = midlines(torch.rand(3, 1, *shape))
    assert line.isfinite().all()


def test_an_empty_slice_has_a_midline_and_stays_empty():
    empty = torch.full((1, 1, 64, 80), -1.0)
    line = midlines(empty)
    assert line.isfinite().all()
    assert (mirrored(empty, line) == -1).all()


WAYS = (
    (),
    ("model.condition=cross_attention", "infer.context=brain"),
    ("data.channels=[t1, t2]", "model.patch=2"),
    *[(f"method={name}",) for name in ("ddpm", "pddpm", "cddpm", "autoddpm", "disyre", "dae")],
)


@pytest.mark.parametrize("settings", WAYS)
def test_a_network_that_ignores_it_is_the_network_without_it(tiny, random_network, settings):
    """It may start from the weights of that one; once the mirror image has weights, it is another."""
    config, plain_config = tiny("model.mirror=true", *settings), tiny(*settings)
    wide, plain = random_network(config), random_network(plain_config)
    state = with_other_side(plain.state_dict(), wide.state_dict(), config)
    wide.load_state_dict(state)
    changed = [name for name, value in plain.state_dict().items() if value.shape != state[name].shape]
    assert len(changed) == 1
    slices = torch.rand(3, config.data.channel_count, 32, 32, generator=generator("scan")) - 0.5
    mask = torch.zeros(3, 32, 32, dtype=torch.bool)
    mask[:, 6:26, 8:24] = True
    slices = torch.where(mask[:, None], slices, -1.0)
    slices = slices if config.data.channels else slices[:, 0]

    def healthy(network, own_config):
        return network.engine(own_config, torch.device("cpu"), bf16=False)(slices, mask, ("a",)).mean

    expected = healthy(plain, plain_config)
    torch.testing.assert_close(healthy(wide, config), expected, rtol=0, atol=1e-5)
    seeing = wide.state_dict()[changed[0]]
    zero = (seeing == 0).all((0, 2, 3))
    assert int(zero.sum()) == config.mirror_channels * config.model.patch**2
    seeing[:, zero] = 0.1 * torch.randn(seeing[:, zero].shape, generator=generator("mirror"))
    assert float((healthy(wide, config) - expected).abs().max()) > 1e-3


def test_windows_that_do_not_show_the_other_side_are_refused():
    with pytest.raises(ConfigError, match=r"model\.mirror needs infer\.context slice or brain, not 8"):
        override(Config(), ["model.mirror=true", "infer.context=8"])


@pytest.mark.parametrize("method", ["ae", "vae", "latent_diffusion", "conditioned_latent_diffusion"])
def test_methods_without_such_a_network_do_not_look_at_it(tiny, method):
    shapes = [
        {name: value.shape for name, value in build_network(tiny(f"method={method}", *extra)).state_dict().items()}
        for extra in ((), ("model.mirror=true",))
    ]
    assert shapes[0] == shapes[1]
    override(Config(), ["model.mirror=true", f"method={method}", "infer.context=8"])
