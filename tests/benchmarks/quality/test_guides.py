"""How sharp a reconstruction is beside the scan."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.quality.guides import slope

SHAPE = (24, 20, 6)
BRAIN = np.ones(SHAPE, bool)


def test_the_slope_of_a_ramp_is_its_rise_per_millimetre():
    x, y, _ = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    assert slope((3 * x + 4 * y).astype(np.float32), BRAIN, (1, 1, 5)) == pytest.approx(5)
    assert slope((3 * x + 4 * y).astype(np.float32), BRAIN, (2, 2, 5)) == pytest.approx(2.5)


def test_what_changes_across_slices_alone_has_no_slope():
    assert slope(np.broadcast_to(np.arange(6, dtype=np.float32), SHAPE), BRAIN, (1, 1, 1)) == 0


def test_blur_lowers_it_and_what_lies_outside_does_not_count():
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    inner = np.zeros(SHAPE, bool)
    inner[5:-5, 5:-5] = True
    own = slope(noise, inner, (1, 1, 1))
    assert slope(gaussian_filter(noise, 1), inner, (1, 1, 1)) < 0.5 * own
    noise[:3] = 1000
    assert slope(noise, inner, (1, 1, 1)) == own
