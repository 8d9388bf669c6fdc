"""From ideal signals to a scan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maediff.heads.acquisition import draw_acquisition

SHAPE = (32, 40)


@pytest.fixture
def perfect(rng):
    scanner = draw_acquisition(SHAPE, rng)
    return replace(
        scanner,
        blur=(0.0, 0.0),
        gain=torch.ones(SHAPE),
        noise_level=0.0,
        ringing=1.0,
        ghost=0.0,
        texture=torch.zeros(SHAPE),
    )


def test_a_perfect_scanner_averages_fine_pixels(perfect, rng):
    fine = torch.rand(64, 80, generator=rng)
    wanted = fine.reshape(32, 2, 40, 2).mean((1, 3))
    torch.testing.assert_close(perfect.apply(fine, torch.zeros(SHAPE)), wanted, atol=1e-5, rtol=1e-5)


def test_noise_is_rician(perfect):
    """In air the magnitude of complex noise has the Rayleigh distribution's mean, sigma sqrt(pi / 2)."""
    noisy = replace(
        perfect, noise=torch.randn(2, 200, 200, generator=torch.Generator().manual_seed(1)), noise_level=0.1
    )
    noisy = replace(noisy, gain=torch.ones(200, 200), texture=torch.zeros(200, 200))
    air = noisy.apply(torch.zeros(400, 400), torch.zeros(200, 200))
    assert abs(float(air.mean()) - 0.1 * (torch.pi / 2) ** 0.5) < 2e-3


def test_texture_follows_the_spread_of_the_tissue(perfect, rng):
    textured = replace(perfect, texture=torch.randn(SHAPE, generator=rng))
    spread = torch.zeros(SHAPE)
    spread[:16] = 0.05
    image = textured.apply(torch.ones(64, 80), spread)
    assert float(image[16:].std()) < 1e-5 < 0.03 < float(image[:16].std())


def test_ringing_keeps_the_mean_and_oscillates_at_edges(perfect):
    fine = torch.ones(64, 80)
    fine[20:44, 30:60] = 2.0
    plain, rung = perfect.apply(fine, torch.zeros(SHAPE)), replace(perfect, ringing=0.6).apply(fine, torch.zeros(SHAPE))
    assert float(rung.max()) > float(plain.max()) + 0.02
    assert abs(float(rung.mean()) - float(plain.mean())) < 1e-4


def test_the_bias_field_multiplies(perfect):
    doubled = replace(perfect, gain=torch.full(SHAPE, 2.0))
    fine = torch.rand(64, 80, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(doubled.apply(fine, torch.zeros(SHAPE)), 2 * perfect.apply(fine, torch.zeros(SHAPE)))
