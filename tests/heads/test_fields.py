"""Smooth fields and resampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from maediff.heads.fields import shrink, smooth_field


@pytest.mark.parametrize("knot", [1.0, 3.0, 20.0])
def test_fields_have_zero_mean_and_unit_variance(knot, rng):
    fields = smooth_field((96, 80), knot, rng, 200)
    assert fields.shape == (200, 96, 80)
    assert abs(float(fields.mean())) < 0.05
    assert abs(float(fields.var()) - 1) < 0.15


def test_wide_knots_make_smooth_fields(rng):
    rough, smooth = (smooth_field((64, 64), knot, rng, 20) for knot in (2.0, 16.0))
    assert smooth.diff(dim=1).abs().mean() < 0.3 * rough.diff(dim=1).abs().mean()


def test_rows_and_columns_are_alike(rng):
    field = smooth_field((64, 64), 4.0, rng, 50)
    along, across = (float(field.diff(dim=axis).square().mean()) for axis in (1, 2))
    assert abs(along / across - 1) < 0.15


def test_a_sharp_shrink_averages_squares(rng):
    image = torch.rand(12, 8, generator=rng)
    wanted = image.reshape(6, 2, 4, 2).mean((1, 3))
    torch.testing.assert_close(shrink(image, (0.0, 0.0), 2), wanted, atol=1e-5, rtol=1e-5)


def test_a_blurred_shrink_is_a_gaussian_then_squares(rng):
    image = torch.rand(40, 48, generator=rng)
    blurred = ndimage.gaussian_filter(image.double().numpy(), (1.0, 2.0), mode="constant", truncate=12)
    weight = ndimage.gaussian_filter(np.ones((40, 48)), (1.0, 2.0), mode="constant", truncate=12)
    wanted = (blurred / weight).reshape(20, 2, 24, 2).mean((1, 3))
    np.testing.assert_allclose(shrink(image, (1.0, 2.0), 2).numpy(), wanted, atol=1e-4)


def test_a_constant_stays_constant():
    torch.testing.assert_close(shrink(torch.full((16, 16), 3.0), (2.0, 0.5), 2), torch.full((8, 8), 3.0))
