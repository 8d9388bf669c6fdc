"""Synthetic heads for brain extraction."""

import numpy as np
import pytest

from maediff.extraction import synthetic
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


class TestKnownContrasts:
    def test_grey_and_white_matter_come_together_and_pass_each_other_on_flair_alone(self):
        gaps = {kind: [gap(kind, seed) for seed in range(60)] for kind in ("t1", "t2", "flair")}
        assert min(gaps["flair"]) < 0 < max(gaps["flair"])  # cortex minus white matter
        assert max(gaps["t1"]) < 0 < min(gaps["t2"])

    def test_a_large_tumour_is_brighter_on_flair_and_darker_on_t1_and_lies_in_the_brain(self, labels):
        share = ball((32, 48, 32), 14).astype(np.float32)
        for kind, sign in (("flair", 1), ("t1", -1)):
            image = share * 0.7
            synthetic._large_tumour(image, share, np.random.default_rng(0), 3.0, kind)
            changed = image != share * 0.7
            assert changed.sum() * 27 > 10_000  # mm3
            assert not changed[share == 0].any()
            assert np.sign((image - 0.7)[changed].mean()) == sign

    def test_a_coil_changes_brightness_smoothly_and_nowhere_to_zero(self):
        image = np.ones((20, 24, 20), np.float32)
        synthetic._coil(image, np.random.default_rng(1))
        assert image.min() > 0.1
        assert max(float(np.abs(np.diff(np.log(image), axis=axis)).max()) for axis in range(3)) < 0.2

    def test_scans_without_a_kind_do_not_change(self, labels, monkeypatch):
        before = draw(labels, np.random.default_rng(4), 3.0, (32, 48, 32)).image
        for name in ("_flatten", "_large_tumour", "_coil"):
            monkeypatch.setattr(synthetic, name, None)
        np.testing.assert_array_equal(draw(labels, np.random.default_rng(4), 3.0, (32, 48, 32)).image, before)


def gap(kind, seed):
    means, _ = synthetic._contrast(np.random.default_rng(seed), kind)
    return means[class_index("cortex")] - means[class_index("white matter")]
