"""Reading the contrast of a scan from its image."""

import numpy as np
import pytest
from scipy import ndimage

from maediff.errors import InputError
from maediff.working.contrast import ContrastReading, features, read_contrast

SIGNALS = {"t1": (0.2, 0.6, 0.9), "t2": (1.0, 0.55, 0.4), "flair": (0.1, 0.8, 0.65)}  # fluid, cortex, white matter


def brain(kind, signals=None):
    """A folded ball: white matter with a wavy rim of cortex, fluid outside it and in its middle."""
    rng = np.random.default_rng(0)
    grid = np.indices((56, 66, 40)) - np.array([27.5, 32.5, 19.5])[:, None, None, None]
    radius = np.sqrt((grid[0] / 24) ** 2 + (grid[1] / 29) ** 2 + (grid[2] / 26) ** 2)
    folds = ndimage.gaussian_filter(rng.standard_normal(radius.shape), 1.5)
    wavy = radius + 0.12 * folds / folds.std()
    fluid, cortex, white = signals or SIGNALS[kind]
    image = np.where(wavy < 0.66, white, np.where(wavy < 0.88, cortex, fluid))
    image = np.where(radius < 0.2, fluid, image)
    image = ndimage.gaussian_filter(image, 0.6) + 0.02 * rng.standard_normal(image.shape)
    return image.astype(np.float32), radius < 1


@pytest.mark.parametrize("kind", SIGNALS)
def test_tissue_order_tells_the_sequence(kind):
    image, mask = brain(kind)
    assert read_contrast(image, mask, (3.0, 3.0, 3.0)).kind == kind


@pytest.mark.parametrize("kind", SIGNALS)
def test_neither_scale_nor_what_lies_outside_nor_the_slice_distance_matters(kind):
    image, mask = brain(kind)
    first = read_contrast(image, mask, (3.0, 3.0, 3.0))
    changed = np.where(mask, 700 * image - 90, 5000).astype(np.float32)
    second = read_contrast(changed, mask, (3.0, 3.0, 6.0))
    for name, probability in first.probabilities.items():
        assert second.probabilities[name] == pytest.approx(probability, abs=1e-3)


@pytest.mark.parametrize("tumour", [False, True])
def test_flair_is_not_taken_for_t1_where_grey_and_white_matter_are_alike(tumour):
    image, mask = brain("flair", (0.1, 0.7, 0.7))
    if tumour:  # as large as a lobe, and twice as bright as the brain
        place = np.indices(image.shape) - np.array([18, 40, 20])[:, None, None, None]
        image[((place / 12) ** 2).sum(0) < 1] = 1.4
    assert read_contrast(image, mask, (3.0, 3.0, 3.0)).lesion_sign != "dark"


def test_features_know_neither_scale_nor_offset_nor_a_large_tumour_in_their_scale():
    image, mask = brain("flair")
    first = features(image, mask, (3.0, 3.0, 3.0))
    assert first.shape == (97,)
    np.testing.assert_allclose(features(image * 300 + 40, mask, (3.0, 3.0, 3.0)), first, atol=2e-3)
    bright = image.copy()
    bright[:14] *= 3
    changed = features(bright, mask, (3.0, 3.0, 3.0))
    assert np.abs(changed[:6] - first[:6]).max() < 0.35  # the darker half of the histogram


def test_a_brain_of_one_intensity_has_finite_features():
    mask = np.zeros((30, 30, 12), bool)
    mask[8:22, 8:22] = True
    assert np.isfinite(features(np.ones(mask.shape, np.float32), mask, (3.0, 3.0, 3.0))).all()


def test_a_brain_smaller_than_a_pixel_is_refused():
    mask = np.zeros((20, 20, 20), bool)
    mask[8:12, 8:12, 8:12] = True
    with pytest.raises(InputError, match="spacing in the header"):
        read_contrast(np.random.default_rng(0).random(mask.shape), mask, (0.3, 0.3, 0.3))


def test_one_tissue_has_no_contrast_to_read():
    _, mask = brain("t1")
    noise = np.random.default_rng(1).standard_normal(mask.shape).astype(np.float32)
    probabilities = read_contrast(noise, mask, (3.0, 3.0, 3.0)).probabilities
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("probabilities", "sign"),
    [
        ((0.9, 0.05, 0.05), "dark"),
        ((0.1, 0.45, 0.45), "bright"),
        ((0.5, 0.25, 0.25), "abs"),
        ((0.75, 0.2, 0.05), "abs"),
    ],
)
def test_the_sign_of_lesions_follows_from_the_probabilities(probabilities, sign):
    reading = ContrastReading("other", dict(zip(("t1", "t2", "flair"), probabilities, strict=True)))
    assert reading.lesion_sign == sign
