"""Synthetic heads for brain extraction."""

import numpy as np
import pytest

from maediff.extraction.synthetic import TrueBrain, draw
from maediff.heads.labels import class_index


def ball(shape, radius):
    middle = (np.array(shape) - 1) / 2
    return ((np.indices(shape) - middle[:, None, None, None]) ** 2).sum(0) <= radius**2


@pytest.fixture(scope="module")
def labels():
    shape = (90, 100, 96)
    classes = np.zeros(shape, np.uint8)
    classes[ball(shape, 44)] = class_index("soft tissue")
    classes[ball(shape, 38)] = class_index("outside 208")
    inside = ball(shape, 34)
    classes[inside] = class_index("sulcal CSF")
    classes[ball(shape, 30)] = class_index("cortex")
    classes[ball(shape, 24)] = class_index("white matter")
    return TrueBrain(classes, inside, np.array([44.5, 49.5, 47.5], np.float32))


class TestSyntheticHeads:
    def test_equal_seeds_give_equal_scans(self, labels):
        first, second = (draw(labels, np.random.default_rng(4), 3.0, (32, 48, 32)) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("seed", range(6))
    def test_image_and_truth_have_their_range_and_size(self, labels, seed):
        scan = draw(labels, np.random.default_rng(seed), 3.0, (32, 48, 32))
        assert scan.image.dtype == scan.brain.dtype == np.float32
        assert 0 <= scan.image.min() < scan.image.max() <= 1
        assert (scan.tissue <= scan.brain + 1e-6).all()
        volume_ml = float(scan.brain.sum()) * 27 / 1000
        assert 15 < volume_ml < 400  # a ball of 165 ml, larger or smaller, perhaps cut
