"""Intensities, brain mask and the whole preprocessing with its inverse."""

from __future__ import annotations

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maediff.config import DataConfig
from maediff.errors import GeometryError, InputError
from maediff.volume import Volume, read_mask, read_nifti
from maediff.working import lesion_slices, prepare, prepare_label, turned
from maediff.working.brainmask import brain_mask
from maediff.working.foreground import is_whole_head
from maediff.working.intensity import Scale, fit_scale

SCANS = Path(__file__).parents[2] / "../shared/data"
needs_scans = pytest.mark.skipif(not SCANS.is_dir(), reason="real scans (../shared/data) are not here")


def make_volume(data, affine=None):
    return Volume(np.asarray(data, np.float32), np.eye(4) if affine is None else affine, nib.Nifti1Header())


def ball(shape, radius, centre=None):
    centre = (np.array(shape) - 1) / 2 if centre is None else np.array(centre)
    return ((np.moveaxis(np.indices(shape), 0, -1) - centre) ** 2).sum(-1) <= radius**2


# Intensity


@given(low=st.floats(-1e4, 1e4), width=st.floats(1e-2, 1e5), x=st.lists(st.floats(-1e5, 1e5, width=32), min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_scale_undoes_itself(low, width, x):
    scale = Scale(low, low + width)
    values = np.array(x, np.float32)
    back = scale.inverse(scale.forward(values))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, atol=1e-5 * (abs(low) + width + np.abs(values).max()))
    assert scale.forward(np.array([scale.low, scale.high])) == pytest.approx(
        [-1, 1], abs=1e-3 + 1e-6 * abs(low) / width
    )


def test_percentiles_become_minus_one_and_one():
    data = np.random.default_rng(0).gamma(3, 100, (20, 20, 20)).astype(np.float32)
    mask = ball(data.shape, 8)
    scale = fit_scale(data, mask, DataConfig(percentiles=(2, 98)))
    assert (scale.low, scale.high) == pytest.approx(tuple(np.percentile(data[mask], [2, 98])))
    data[~mask] = 1e6  # what lies outside the brain does not matter
    assert fit_scale(data, mask, DataConfig(percentiles=(2, 98))) == scale


def test_median_scaling_puts_zero_at_minus_one():
    data = np.random.default_rng(0).gamma(3, 100, (20, 20, 20)).astype(np.float32)
    mask = ball(data.shape, 8)
    scale = fit_scale(data, mask, DataConfig(scaling="median"))
    assert scale.forward(np.array([0, np.median(data[mask])])) == pytest.approx([-1, 0], abs=1e-6)


def turned_head(tumour=True):
    """A brain of 40 slices, turned by 7 degrees and off the middle, with a bright tumour in an eighth of it."""
    rng = np.random.default_rng(2)
    x, y, z = np.indices((64, 72, 40)) - np.array([31.5, 35.5, 19.5])[:, None, None, None]
    brain = (x / 22) ** 2 + (y / 28) ** 2 + (z / 17) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(brain.shape), 2)
    data = 100 + 20 * (texture + texture[::-1]) / texture.std()
    if tumour:
        data[(x - 12) ** 2 + (y + 6) ** 2 + (z / 0.8) ** 2 < 11**2] += 250
    placed = [
        ndimage.shift(ndimage.rotate(each.astype(float), 7, (1, 0), False, order=1), (3, 0, 0), order=1)
        for each in (data * brain, brain)
    ]
    mask = placed[1] > 0.5
    data = np.where(mask, placed[0] / np.maximum(placed[1], 0.5), 0).astype(np.float32)
    return data, mask


def scale_of(data, mask, scaling, affine=None):
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    return prepare(make_volume(data, affine), mask, DataConfig(scaling=scaling, size=(96, 96))).scale


def test_a_tumour_of_one_side_does_not_darken_the_other():
    whole, healthy = (scale_of(*turned_head(tumour), "percentile") for tumour in (True, False))
    one, without = (scale_of(*turned_head(tumour), "contralateral") for tumour in (True, False))
    assert whole.high - whole.low > 1.5 * (healthy.high - healthy.low)
    assert one.high == pytest.approx(healthy.high, rel=0.05)
    assert without.high == pytest.approx(healthy.high, rel=0.05)
    assert without.high <= healthy.high
    assert (one.low, without.low) == (whole.low, healthy.low)


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_the_scale_of_one_side_does_not_depend_on_the_storage_order(axes):
    data, mask = turned_head()
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    stored = affine[:, [*axes, 3]]
    one = scale_of(data, mask, "contralateral", affine)
    other = scale_of(data.transpose(axes), mask.transpose(axes), "contralateral", stored)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-6)


@pytest.mark.parametrize("scaling", ["percentile", "contralateral", "median"])
def test_a_prepared_scan_is_cut_anew_as_if_it_were_prepared_so(scaling):
    data, mask = turned_head()
    config = DataConfig(scaling=scaling, size=(96, 96), slice_spacing_mm=3.0)
    volume = make_volume(data, np.diag([2.0, 2.0, 3.0, 1.0]))
    again = turned(prepare(volume, mask, config), [volume], config, "coronal")
    whole = prepare(volume, mask, config, orientation="coronal")
    assert (again.scales, again.notes) == (whole.scales, whole.notes)
    for name in ("slices", "mask", "native_mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    np.testing.assert_array_equal(again.to_native(again.slices), whole.to_native(whole.slices))


def test_half_a_brain_is_scaled_as_a_whole():
    data, mask = turned_head()
    side = np.zeros(mask.shape, bool)
    side[: np.flatnonzero(mask.any((1, 2)))[6]] = True
    whole = fit_scale(data, mask, DataConfig())
    assert fit_scale(data, mask, DataConfig(scaling="contralateral"), side) == whole
    assert fit_scale(data, mask, DataConfig(scaling="contralateral")) == whole


@pytest.mark.parametrize("factor", [0.001, 7.0, 1e5])
def test_scaling_forgets_the_scanner_units(factor):
    data = np.random.default_rng(0).gamma(3, 100, (12, 12, 12)).astype(np.float32)
    mask = ball(data.shape, 5)
    for scaling in ("percentile", "median"):
        config = DataConfig(scaling=scaling)
        one = fit_scale(data, mask, config).forward(data)
        other = fit_scale(data * np.float32(factor), mask, config).forward(data * np.float32(factor))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_brain_without_contrast_is_refused():
    data, mask = np.full((4, 4, 4), 7.0), np.ones((4, 4, 4), bool)
    with pytest.raises(InputError, match=r"percentiles 1 and 99 .* are both 7"):
        fit_scale(data, mask, DataConfig())
    with pytest.raises(InputError, match=r"median inside the brain mask is -7"):
        fit_scale(-data, mask, DataConfig(scaling="median"))


# Brain mask


def test_without_a_mask_the_brain_is_what_is_not_zero():
    shape = (40, 40, 40)
    data = np.where(ball(shape, 15), 100.0, 0.0)
    data[20, 20, 20] = 0  # a dark voxel inside
    data[1, 1, 1] = 5  # a speck outside
    mask, notes = brain_mask(make_volume(data, np.diag([4, 4, 4, 1.0])), None)
    np.testing.assert_array_equal(mask, ball(shape, 15))
    assert len(notes) == 1
    assert "non-zero voxels" in notes[0]


def test_a_scan_without_a_background_is_refused_unless_it_is_accepted():
    scan = make_volume(np.random.default_rng(0).random((20, 20, 20)) + 1)
    with pytest.raises(InputError, match=r"not skull-stripped.*brain mask.*--accept whole-head"):
        brain_mask(scan, None)
    mask, notes = brain_mask(scan, None, {"whole-head"})
    assert mask.all()
    assert any("every voxel" in note for note in notes)
    assert any("8 ml" in note and "300 to 2500" in note for note in notes)


def test_a_constant_background_is_recognised_whatever_its_value():
    brain = ball((40, 40, 40), 15)
    tissue = 50 + 20 * np.random.default_rng(0).random(brain.shape)
    for level in (0.0, -1024.0, 3.25):
        mask, notes = brain_mask(make_volume(np.where(brain, tissue, level), np.diag([4, 4, 4, 1.0])), None)
        np.testing.assert_array_equal(mask, brain)
        assert (f"{level:g}" in notes[0]) == (level != 0)


@pytest.mark.parametrize("edge", [2, 14])
def test_a_background_of_two_constants_is_none_and_neither_is_taken_for_brain(edge):
    brain = ball((40, 40, 40), 12)
    data = np.where(brain, 50 + 20 * np.random.default_rng(0).random(brain.shape), -1024)
    data[edge + 24 :][~brain[edge + 24 :]] = 0  # what a resampling filled beyond the field of view
    with pytest.raises(InputError, match="background is not one value"):
        brain_mask(make_volume(data, np.diag([4, 4, 4, 1.0])), None)


def test_a_scan_that_was_z_scored_has_the_brain_that_it_had():
    brain = ball((40, 40, 40), 15)
    data = np.where(brain, 50 + 20 * np.random.default_rng(0).random(brain.shape), 0)
    whole = (data - data.mean()) / data.std()  # the background is constant and negative
    inside = np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0)  # it is the brain's mean
    for scan in (whole, inside):
        np.testing.assert_array_equal(brain_mask(make_volume(scan, np.diag([4, 4, 4, 1.0])), None)[0], brain)


def test_ringing_of_spline_interpolation_is_no_brain():
    small = ball((40, 40, 40), 14)
    data = np.where(small, 500 + 100 * np.random.default_rng(0).random(small.shape), 0)
    rung = ndimage.zoom(data, 2, order=3)
    truth = ndimage.zoom(small.astype(float), 2, order=1) > 0.5
    mask, notes = brain_mask(make_volume(rung, np.diag([2, 2, 2, 1.0])), None)
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.92
    assert (rung != 0).mean() > 3 * truth.mean()  # what "non-zero" would have been
    assert "within" in notes[0]


def test_a_head_is_told_from_a_brain_with_any_background():
    brain, head = ball((50, 50, 50), 15), ball((50, 50, 50), 23)
    rng = np.random.default_rng(0)
    tissue = np.where(brain, 500 + 100 * rng.random(brain.shape), 300)
    affine = np.diag([4, 4, 4, 1.0])  # 905 and 3,300 ml
    assert not is_whole_head(make_volume(np.where(brain, tissue, 0), affine))
    assert is_whole_head(make_volume(np.where(head, tissue, 0), affine))
    assert is_whole_head(make_volume(np.where(head, tissue, 40 * rng.random(brain.shape)), affine / 2))
    with pytest.raises(InputError, match="whole head"):
        brain_mask(make_volume(np.where(head, tissue, 0), affine), None)


def test_a_given_mask_is_taken_as_it_is():
    volume = make_volume(np.ones((30, 30, 30)), np.diag([4, 4, 4, 1.0]))
    given_mask = ball((30, 30, 30), 12)
    given_mask[0, 0, 0] = True
    mask, notes = brain_mask(volume, given_mask.astype(np.uint8))
    np.testing.assert_array_equal(mask, given_mask)
    assert notes == ()
    with pytest.raises(InputError, match="empty"):
        brain_mask(volume, given_mask * 0)
    with pytest.raises(GeometryError, match=r"\(29, 30, 30\)"):
        brain_mask(volume, given_mask[1:])


# The whole


def make_scan(seed=0, spacing=(2.0, 2.0, 3.0), angles=(0.0, 0.0, 0.0)):
    rng = np.random.default_rng(seed)
    shape = tuple(int(90 / s) for s in spacing)
    brain = (((np.moveaxis(np.indices(shape), 0, -1) * spacing - 44) / [38, 42, 36]) ** 2).sum(-1) <= 1
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 5 / np.array(spacing))
    data = np.where(brain, 300 + 100 * texture / texture.std(), 0).clip(0).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ affine[:3, :3]
    return make_volume(data, affine), brain


@pytest.mark.parametrize("align", ["voxel", "world"])
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.2, -0.1, 0.3)])
def test_prepared_slices_are_scaled_in_the_brain_and_minus_one_outside(align, angles):
    volume, brain = make_scan(angles=angles)
    prepared = prepare(volume, brain, DataConfig(size=(32, 32), spacing_mm=3.0, align=align, clip=1.2))
    assert prepared.slices.shape == prepared.mask.shape
    assert prepared.slices.dtype == np.float32
    assert (prepared.slices[~prepared.mask] == -1).all()
    assert prepared.slices.min() >= -1
    assert prepared.slices.max() <= 1.2
    assert abs(prepared.slices[prepared.mask].mean()) < 0.2
    working_ml = prepared.mask.sum() * np.prod(prepared.grid.spacing_mm)
    assert working_ml == pytest.approx(brain.sum() * volume.voxel_mm3, rel=0.03)


@pytest.mark.parametrize("align", ["voxel", "world"])
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.2, -0.1, 0.3)])
def test_slices_come_back_as_the_scan(align, angles):
    volume, brain = make_scan(angles=angles)
    prepared = prepare(volume, brain, DataConfig(size=(48, 48), spacing_mm=2.0, align=align, percentiles=(0, 100)))
    back = prepared.scale.inverse(prepared.to_native(prepared.slices))
    assert (prepared.to_native(prepared.slices)[~brain] == 0).all()
    error = np.abs(back - volume.data)[brain]
    if any(angles) and align == "world":
        assert error.mean() < 10  # of a standard deviation of 100
        assert np.corrcoef(back[brain], volume.data[brain])[0, 1] > 0.98
    else:
        assert error.max() < 1e-2


def test_neither_skull_nor_background_bleeds_into_the_brain():
    volume, brain = make_scan()
    config = DataConfig(size=(32, 32), spacing_mm=4.0)
    reference = prepare(volume, brain, config)
    for outside in (0, 5000):
        data = volume.data.copy()
        data[~brain] = outside
        other = prepare(make_volume(data, volume.affine), brain, config)
        np.testing.assert_array_equal(other.slices, reference.slices)
    flat = make_volume(np.where(brain, 100, 0), volume.affine)
    flat.data[tuple(n // 2 for n in brain.shape)] = 200  # contrast enough for a scale
    slices = prepare(flat, brain, DataConfig(size=(32, 32), spacing_mm=4.0, percentiles=(0, 100))).slices
    edge = reference.mask & ~ndimage.binary_erosion(reference.mask)
    np.testing.assert_allclose(slices[edge], -1, atol=1e-3)


def test_a_constant_map_is_constant_up_to_the_edge_of_the_brain():
    volume, brain = make_scan(angles=(0.1, 0.2, 0.0))
    prepared = prepare(volume, brain, DataConfig(size=(32, 32), spacing_mm=4.0, align="world"))
    back = prepared.to_native(np.full(prepared.slices.shape, 0.7, np.float32))
    reached = brain & (back > 0)
    np.testing.assert_allclose(back[reached], 0.7, rtol=1e-4)
    assert reached.sum() / brain.sum() > 0.99
    assert (back[~brain] == 0).all()
    nearest = prepared.to_native(prepared.mask, order=0)
    assert set(np.unique(nearest)) <= {0.0, 1.0}


def test_labels_follow_the_scan():
    volume, brain = make_scan()
    prepared = prepare(volume, brain, DataConfig(size=(32, 32), spacing_mm=4.0))
    label = ball(brain.shape, 6)
    working = prepare_label(label, prepared.grid)
    assert working.dtype == bool
    back = prepared.to_native(working, order=0) > 0
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.85
    np.testing.assert_array_equal(lesion_slices(label, prepared.grid), working.any(axis=(1, 2)))
    speck = np.zeros(brain.shape, bool)
    speck[20, 20, 15] = True
    assert not prepare_label(speck, prepared.grid).any()
    assert np.flatnonzero(lesion_slices(speck, prepared.grid)).tolist() == [15]


def test_notes_of_the_scan_and_of_the_mask_are_kept():
    volume, _ = make_scan()
    noted = Volume(volume.data, volume.affine, volume.header, None, ("from the header",))
    notes = prepare(noted, None, DataConfig(size=(48, 48))).notes
    assert notes[0] == "from the header"
    assert "no brain mask" in notes[1]


def test_the_scan_is_left_alone():
    volume, brain = make_scan()
    before, mask = volume.data.copy(), brain.copy()
    prepared = prepare(volume, brain, DataConfig(size=(48, 48)))
    prepared.to_native(prepared.slices)
    np.testing.assert_array_equal(volume.data, before)
    np.testing.assert_array_equal(brain, mask)


def test_an_empty_mask_is_refused():
    volume, brain = make_scan()
    with pytest.raises(InputError, match="empty"):
        prepare(volume, brain & False, DataConfig())


@needs_scans
@pytest.mark.parametrize(
    ("scan", "mask", "config"),
    [
        (
            "lgg_flair/TCGA_CS_4942_19970222_flair.nii.gz",
            "lgg_flair/TCGA_CS_4942_19970222_brainmask.nii.gz",
            DataConfig(size=(64, 64), spacing_mm=4.0),
        ),
        (
            "mslub/patient26_flair.nii.gz",
            "mslub/patient26_brainmask.nii.gz",
            DataConfig(size=(96, 96), spacing_mm=2.0, align="world"),
        ),
    ],
)
def test_real_scans_are_prepared_fast_and_come_back(scan, mask, config):
    volume = read_nifti(SCANS / scan)
    brain = read_mask(SCANS / mask, volume, "brain mask")
    start = time.perf_counter()
    prepared = prepare(volume, brain, config)
    assert time.perf_counter() - start < 3
    assert prepared.slices.shape[1:] == config.size
    reference = np.clip(prepared.scale.forward(volume.data), -1, config.clip)
    back = prepared.to_native(prepared.slices)
    assert np.corrcoef(back[brain], reference[brain])[0, 1] > 0.8
    if config.align == "voxel":
        assert prepared.slices.shape[0] == volume.data.shape[2]
