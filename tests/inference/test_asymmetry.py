"""Weights of asymmetry: 1 where both sides are alike, more where one departs, whatever the orientation of the cut."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from maediff.config import DataConfig
from maediff.inference.asymmetry import GAIN, LIMIT, asymmetry_weight, fluid_of
from maediff.volume import Volume
from maediff.working import prepare

DATA = DataConfig(size=(64, 64), spacing_mm=3.0, slice_spacing_mm=3.0, percentiles=(0.5, 99.5))
MOST = 1 + GAIN * LIMIT


def head(*, left=0.0, right=0.0, degrees=0.0, shift=0.0, shape=(60, 68, 56)):
    """A symmetric brain of 3 mm voxels with a brighter ball on the left or right, and where these balls are."""
    places = np.indices(shape).astype(float) - (np.array(shape)[:, None, None, None] - 1) / 2
    brain = (places[0] / 22) ** 2 + (places[1] / 28) ** 2 + (places[2] / 22) ** 2 < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 2)
    texture = 10 * (texture + texture[::-1]) / texture.std()
    balls = [((places - np.array([x, 4, 0])[:, None, None, None]) ** 2).sum(0) < 25 for x in (-11, 11)]
    data = 200 + texture + 100 * left * balls[0] + 100 * right * balls[1]
    data = np.where(brain, data, 0)

    def moved(x):
        turned = ndimage.rotate(x.astype(float), degrees, axes=(1, 0), reshape=False, order=1)
        return ndimage.shift(turned, (shift, 0, 0), order=1)

    inside, lesions = moved(brain) > 0.99, [moved(each) > 0.5 for each in balls]
    volume = Volume(np.where(inside, moved(data), 0).astype(np.float32), np.diag([3.0, 3, 3, 1]), nib.Nifti1Header())
    return volume, inside, lesions


def weights(volume, brain, sign="bright", orientation="axial"):
    scan = prepare(volume, brain, DATA, orientation=orientation)
    return scan.to_native(asymmetry_weight(scan, sign, 6.0))


def test_without_reach_all_count_alike():
    volume, brain, _ = head(left=1)
    scan = prepare(volume, brain, DATA)
    found = asymmetry_weight(scan, "bright", 0)
    assert found.shape == scan.mask.shape
    assert (found == 1).all()


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("degrees", "shift"), [(0, 0), (6, 3), (-8, -2.5)])
def test_a_lesion_on_one_side_counts_more_and_all_else_as_before(orientation, degrees, shift):
    volume, brain, (left, right) = head(left=1, degrees=degrees, shift=shift)
    found = weights(volume, brain, orientation=orientation)
    assert found[left].mean() > 0.6 * MOST
    assert found[right].max() < 1.05
    elsewhere = brain & ~ndimage.binary_dilation(left | right, iterations=6)
    assert found[elsewhere].mean() == pytest.approx(1, abs=0.05)
    assert found[brain].min() >= 1 - 1e-6
    assert found.max() <= MOST + 1e-6


def test_the_sign_says_which_side_departs():
    volume, brain, (left, right) = head(left=-1)
    dark, bright, both = (weights(volume, brain, sign) for sign in ("dark", "bright", "abs"))
    assert dark[left].mean() > 1.5 > 1.05 > dark[right].max()
    assert bright[right].mean() > 1.5 > 1.05 > bright[left].max()
    np.testing.assert_allclose(both[left].mean(), both[right].mean(), rtol=0.1)


def test_lesions_on_both_sides_count_as_before():
    volume, brain, (left, right) = head(left=1, right=1)
    assert weights(volume, brain)[left | right].max() < 1.1


def test_orientations_agree():
    volume, brain, _ = head(left=1, degrees=4, shift=2)
    axial, *others = (weights(volume, brain, orientation=one) for one in ("axial", "coronal", "sagittal"))
    for other in others:
        assert np.abs(axial - other)[brain].mean() < 0.02


def test_channels_count_by_their_mean():
    volume, brain, _ = head(left=1)
    scan = prepare(volume, brain, DATA)
    twice = replace(scan, slices=np.stack([scan.slices, scan.slices], 1))
    np.testing.assert_allclose(asymmetry_weight(twice, "bright", 6.0), asymmetry_weight(scan, "bright", 6.0), atol=1e-5)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_a_few_slices_are_enough(keep):
    volume, brain, (left, _) = head(left=1)
    brain[:, :, : 28 - keep] = brain[:, :, 28:] = False
    found = weights(volume, brain)
    assert np.isfinite(found).all()
    assert found[left & brain].mean() > 1.3


def test_half_a_brain_has_weights_too():
    volume, brain, _ = head(left=1)
    brain[30:] = False
    found = weights(volume, brain)
    assert np.isfinite(found).all()
    assert found[brain].min() >= 1 - 1e-6


def test_fluid_with_the_look_of_a_lesion_does_not_count():
    volume, brain, (left, right) = head(left=1)  # a fissure that is wide on one side
    scan = prepare(volume, brain, DATA)
    fluid = {contrast: fluid_of(scan.slices, contrast) for contrast in ("t2", "t1", "flair", "")}
    assert fluid["flair"] is fluid[""] is None
    counted = scan.to_native(asymmetry_weight(scan, "bright", 6.0))
    spared = scan.to_native(asymmetry_weight(scan, "bright", 6.0, fluid["t2"]))
    assert counted[left].mean() > 0.6 * MOST > 1.2 > spared[left].mean()
    assert spared[right].max() < 1.1
    bright, dark = (float(scan.slices[found & scan.mask].mean()) for found in (fluid["t2"], fluid["t1"]))
    assert dark < -0.6 < 0.3 < bright
    none = np.zeros_like(scan.mask)
    np.testing.assert_array_equal(asymmetry_weight(scan, "bright", 6.0, none), asymmetry_weight(scan, "bright", 6.0))
