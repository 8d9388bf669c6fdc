"""The largest component of a mask, and its box."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maediff.working.components import bounding_box, largest_component, without_specks


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), density=st.floats(0.05, 0.9))
def test_largest_component_is_that_of_scipy(seed, density):
    mask = np.random.default_rng(seed).random((9, 8, 7)) < density
    result = largest_component(mask)
    labels, count = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    candidates = [ndimage.binary_fill_holes(labels == i + 1) for i in np.flatnonzero(sizes == sizes.max())]
    assert any(np.array_equal(result, candidate) for candidate in candidates)
    np.testing.assert_array_equal(result, ndimage.binary_fill_holes(without_specks(mask)))


def test_nothing_has_no_component_and_no_box():
    nothing = np.zeros((9, 9, 9), bool)
    assert bounding_box(nothing) is None
    assert not largest_component(nothing).any()
    nothing[2:7, 2:7, 2:7] = True
    assert bounding_box(nothing) == (slice(2, 7),) * 3
