"""Noise fields and the generators that make them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maediff.diffusion import add_noise, schedule
from maediff.diffusion.noise import coarse_noise, generator, noise_field

KINDS = ("gaussian", "simplex", "coarse")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_noise_has_zero_mean_and_unit_variance(kind, shape):
    fields = torch.stack([noise_field(kind, shape, generator(kind, shape, k)) for k in range(40)])
    assert fields.shape == (40, 1, *shape)
    assert fields.dtype == torch.float32
    assert abs(float(fields.mean())) < 0.03
    assert abs(float(fields.var()) - 1) < 0.04


@pytest.mark.parametrize("kind", ["simplex", "coarse"])
def test_structured_noise_is_smooth(kind):
    field = noise_field(kind, (64, 64), generator(1))[0]
    assert float((field[1:] - field[:-1]).var()) < 0.5  # independent pixels give 2


def test_gaussian_pixels_are_uncorrelated():
    field = noise_field("gaussian", (128, 128), generator(1))[0]
    assert abs(float((field[1:] * field[:-1]).mean())) < 0.03


@pytest.mark.parametrize("factor", [2, 5, 32])
def test_coarse_noise_is_a_part_of_a_bicubic_interpolation(factor):
    found, rng = coarse_noise((24, 40), factor, generator(1)), generator(1)
    grid = torch.randn(1, 1, 24 // factor + 3, 40 // factor + 3, generator=rng)
    whole = F.interpolate(grid, scale_factor=float(factor), mode="bicubic")[0]
    row, column = torch.randint(factor, 2 * factor, (2,), generator=rng).tolist()
    wanted = whole[:, row : row + 24, column : column + 40]
    torch.testing.assert_close(found, (wanted - wanted.mean()) / wanted.std(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_depends_on_the_key_alone(kind):
    first = noise_field(kind, (16, 16), generator(3, "case", 7))
    torch.manual_seed(99)
    assert torch.equal(first, noise_field(kind, (16, 16), generator(3, "case", 7)))
    for other in ((3, "case", 8), (4, "case", 7), (3, "cas", "e", 7)):
        assert not torch.equal(first, noise_field(kind, (16, 16), generator(*other)))


def test_neighbouring_keys_give_independent_noise():
    fields = torch.stack([torch.randn(2000, generator=generator("train", 0, k)) for k in range(12)])
    correlation = torch.corrcoef(fields) - torch.eye(12)
    assert float(correlation.abs().max()) < 0.12


def test_types_of_key_parts_count():
    one, other = (torch.randn(4, generator=generator(key)) for key in (1, "1"))
    assert not torch.equal(one, other)


def test_without_noise_a_slice_fades_to_grey_and_is_gone_at_the_last_timestep():
    noise = noise_field("none", (8, 8), generator(1), channels=2)
    assert noise.shape == (2, 8, 8)
    abar, image = schedule("cosine", 1000), torch.rand(1, 2, 8, 8)
    for t in (1, 30, 500):
        torch.testing.assert_close(add_noise(image, noise[None], abar[t]), abar[t].sqrt() * image)
    assert float(add_noise(image, noise[None], abar[1000]).abs().max()) < 1e-4


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="noise 'pink' is unknown"):
        noise_field("pink", (8, 8), generator(0))
