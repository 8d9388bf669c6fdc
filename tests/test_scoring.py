from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage import morphology
from skimage.filters import median

from maediff.config import ScoreConfig
from maediff.errors import ConfigError, InputError
from maediff.scoring import (
    anomaly_map,
    anomaly_mask,
    blurred,
    case_score,
    depth_weight,
    eroded,
    filter_pixels,
    postprocess,
    residual,
    supported,
)

UNIT = (1.0, 1.0, 1.0)
slices = arrays(np.float32, (2, 5, 4), elements=st.floats(-2, 2, width=32))


def disc(size=15, radius=6.0):
    y, x = np.mgrid[:size, :size] - size // 2
    return np.broadcast_to(np.hypot(x, y) <= radius, (3, size, size)).copy()


@given(slices, slices)
def test_bright_and_dark_add_up_to_abs_and_swap_with_the_images(x, y):
    assert np.array_equal(residual(x, y, "bright") + residual(x, y, "dark"), residual(x, y, "abs"))
    assert np.array_equal(residual(x, y, "bright"), residual(y, x, "dark"))
    assert residual(x, y).dtype == np.float32
    assert not residual(x, x).any()


def test_unknown_sign_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="abs, bright or dark"):
        residual(np.zeros(3), np.zeros(3), "both")


def test_without_filter_and_erosion_the_map_is_the_residual_inside_the_brain():
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(3, 15, 15)), rng.normal(size=(3, 15, 15)), disc()
    found = anomaly_map(x, y, mask, UNIT, ScoreConfig())
    assert np.allclose(found, np.where(mask, np.abs(x - y), 0), atol=1e-6)


def test_median_is_in_plane_and_agrees_with_skimage():
    values = np.random.default_rng(1).random((3, 15, 15)).astype(np.float32)
    mask = np.ones(values.shape, bool)
    found = postprocess(values, mask, (2.0, 2.0, 2.0), ScoreConfig(median_mm=10.0))
    expected = [median(plane, np.ones((5, 5)), mode="constant") for plane in values]
    assert np.allclose(found, expected)


def test_median_width_is_in_mm_along_each_axis():
    line = np.zeros((1, 15, 15), np.float32)
    line[0, 7, :] = 1  # one pixel wide along x (rows), endless along y
    mask = np.ones(line.shape, bool)
    fine_x = postprocess(line, mask, (1.0, 4.0, 1.0), ScoreConfig(median_mm=3.0))
    assert not fine_x.any()  # three pixels along x, one along y: the line is an outlier
    fine_y = postprocess(line, mask, (4.0, 1.0, 1.0), ScoreConfig(median_mm=3.0))
    assert np.array_equal(fine_y[0, 7, 1:-1], np.ones(13))


@pytest.mark.parametrize(("width", "step", "pixels"), [(0.3, 0.1, 3), (5, 1, 5), (4, 1, 5), (3.9, 1, 3), (1.9, 1, 1)])
def test_filter_is_odd_and_reaches_no_further_than_asked(width, step, pixels):
    assert filter_pixels(width, step) == pixels


@pytest.mark.parametrize("depth", [1.0, 2.0, 3.5])
def test_erosion_agrees_with_a_disc_shaped_element(depth):
    reach = int(depth)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    footprint = np.hypot(x, y) <= depth
    expected = [morphology.erosion(plane, footprint, mode="min") for plane in disc()]
    assert np.array_equal(eroded(disc(), UNIT, depth), expected)


def test_erosion_is_in_mm_in_plane_and_starts_at_the_edge_of_the_picture():
    mask = np.ones((3, 8, 8), bool)
    kept = eroded(mask, (2.0, 1.0, 0.1), 2.0)
    assert kept[:, 1:-1, 2:-2].all()
    assert kept.sum() == 3 * 6 * 4


def test_erosion_does_not_cross_slices():
    mask = disc()
    mask[1] = False
    kept = eroded(mask, UNIT, 1.0)
    assert np.array_equal(kept[0], eroded(disc(), UNIT, 1.0)[0])
    assert not kept[1].any()


def test_the_map_is_zero_outside_the_eroded_brain():
    config = ScoreConfig(median_mm=3, erode_mm=2)
    found = anomaly_map(np.ones((3, 15, 15)), np.zeros((3, 15, 15)), disc(), UNIT, config)
    assert np.array_equal(found > 0, eroded(disc(), UNIT, 2.0))


def test_depth_is_that_of_the_nearest_voxel_outside_in_three_dimensions():
    mask, spacing_mm = np.random.default_rng(0).random((3, 5, 6)) < 0.9, (1.0, 2.0, 5.0)
    padded = np.pad(mask, 1)
    sides = np.array([spacing_mm[2], *spacing_mm[:2]])  # slice, x, y
    inside, outside = (np.argwhere(part) * sides for part in (padded, ~padded))
    depth = cdist(inside, outside).min(1)
    weight = depth_weight(mask, spacing_mm, 4.0)
    assert np.allclose(weight[mask], depth / (depth + 4.0))
    assert not weight[~mask].any()
    assert np.allclose(depth_weight(mask, (2.0, 4.0, 10.0), 8.0), weight)  # lengths are in mm


def test_residuals_count_half_at_the_half_depth_and_all_alike_without():
    mask, ones = np.ones((9, 15, 15), bool), np.ones((9, 15, 15), np.float32)
    found = postprocess(ones, mask, UNIT, ScoreConfig(half_depth_mm=3))
    assert found[4, 7, [2, 12]].tolist() == [0.5, 0.5]  # 3 mm from the ends of the picture
    assert found[2, 7, 7] == 0.5  # and from the first slice
    assert found.max() == found[4, 7, 7] < 1
    assert np.array_equal(postprocess(ones, mask, UNIT, ScoreConfig()), ones)


# Support


def test_support_is_the_mean_of_the_excess_in_the_brain_under_a_gaussian():
    rng = np.random.default_rng(0)
    mask, spacing_mm, reach = rng.random((4, 6, 5)) < 0.8, (1.0, 2.0, 5.0), 6.0
    values = np.where(mask, 0.2 * rng.random(mask.shape), 0).astype(np.float32)
    places = np.argwhere(mask) * np.array([spacing_mm[2], *spacing_mm[:2]])
    weight = np.exp(-0.5 * (cdist(places, places) / reach) ** 2)
    around = weight @ np.maximum(values[mask] - 0.1, 0) / weight.sum(1)
    assert around.max() < 0.05  # more than this is not added
    found = supported(values, mask, spacing_mm, reach)
    assert np.allclose(found[mask], values[mask] + 3 * around, rtol=0.03)  # the Gaussian ends at three deviations
    assert not found[~mask].any()
    assert np.allclose(supported(values, mask, (2.0, 4.0, 10.0), 12.0), found, rtol=1e-5)  # lengths are in mm


def test_a_strong_lesion_does_not_lift_healthy_tissue_beside_it_by_more_than_the_limit():
    mask, values = np.ones((21, 41, 41), bool), np.zeros((21, 41, 41), np.float32)
    values[5:16, 10:31, 10:31] = 2.0
    found = postprocess(values, mask, UNIT, ScoreConfig(support_mm=5))
    assert found[10, 20, 32] == np.float32(3 * 0.05)
    assert found.max() == pytest.approx(2 + 3 * 0.05)


def test_a_lone_residual_keeps_its_value_and_one_amid_others_gains():
    mask, values = np.ones((21, 41, 41), bool), np.full((21, 41, 41), 0.05, np.float32)
    values[10, 5, 5] = values[10, 25:36, 25:36] = 0.5
    found = postprocess(values, mask, UNIT, ScoreConfig(support_mm=3))
    assert found[10, 5, 5] == pytest.approx(0.5, abs=0.01)
    assert found[10, 30, 30] > 0.62
    assert found[0, 40, 0] == np.float32(0.05)  # healthy tissue supports nothing
    assert np.array_equal(postprocess(values, mask, UNIT, ScoreConfig()), values)


def test_what_erosion_took_gets_no_support():
    mask = np.ones((9, 15, 15), bool)
    found = postprocess(mask.astype(np.float32), mask, UNIT, ScoreConfig(erode_mm=2, support_mm=4))
    assert np.array_equal(found > 0, eroded(mask, UNIT, 2.0))


@given(arrays(np.bool_, (5, 5, 5)), st.integers(1, 6))
def test_small_components_go_as_scipy_says(mask, smallest):
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, labels, range(count + 1))
    expected = mask & (sizes >= smallest)[labels]
    assert np.array_equal(anomaly_mask(mask.astype(float), 0.5, (1.0, 2.0, 0.5), float(smallest)), expected)


def test_threshold_itself_is_not_anomalous():
    assert not anomaly_mask(np.full((2, 2, 2), 0.5, np.float32), 0.5, UNIT).any()


def test_case_score_averages_the_highest_percent_of_the_brain_and_ignores_the_rest():
    values = np.arange(1000.0)
    mask = np.ones(1000, bool)
    mask[-10:] = False
    assert case_score(values, mask) == np.sort(values[mask])[-10:].mean()
    assert case_score(values, values == 3) == 3.0
    with pytest.raises(InputError, match="empty"):
        case_score(values, values < 0)


@pytest.mark.parametrize("widths", [(0.7, 2.0, 1.0), (9.0, 9.0, 9.0)])
def test_blurring_is_that_of_scipy(widths):
    values = np.random.default_rng(0).random((9, 14, 11)).astype(np.float32)
    expected = ndimage.gaussian_filter(values, widths, mode="constant", truncate=3.0)
    np.testing.assert_allclose(blurred(values, widths), expected, atol=1e-6)
