"""Spatial laws: what goes to the working grid and back lies where it was, whatever the orientation and spacing."""

from __future__ import annotations

import logging
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maediff.config import DataConfig
from maediff.volume import Volume
from maediff.working.resample import _resample_axes, _resample_oblique, index_map, prefilter_sigmas, resample
from maediff.working.spatial import (
    SLICE_AXES,
    WorkingGrid,
    is_volumetric,
    lesion_slices,
    to_native,
    to_working,
    working_grid,
)

FEW = settings(max_examples=30, deadline=None)
PAIRS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(codes) for order in permutations(PAIRS) for codes in product(*order)]
orientations = st.sampled_from(ORIENTATIONS)
angles = st.tuples(*[st.floats(-0.4, 0.4)] * 3)
spacings = st.tuples(*[st.sampled_from([0.9375, 1.0, 1.5, 2.0, 3.0])] * 3)
aligns = st.sampled_from(["voxel", "world"])


def make_affine(codes="RAS", angles=(0.0, 0.0, 0.0), spacing=(1.0, 1.0, 1.0), origin=(-10.0, 5.0, 3.0)):
    turn, shift = np.eye(4), np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(*angles)
    shift[:3, 3] = origin
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), (1, 1, 1))
    return shift @ turn @ np.linalg.inv(axes) @ np.diag([*spacing, 1.0])


def make_volume(data, affine):
    return Volume(np.asarray(data, np.float32), affine, nib.Nifti1Header())


def blob(affine, centre, width_mm, shape):
    """Sample a Gaussian that is fixed in world space on a voxel grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.exp(-0.5 * ((world - centre) ** 2).sum(-1) / width_mm**2).astype(np.float32)


def centre_of(affine, shape):
    return (affine @ [*((np.array(shape) - 1) / 2), 1])[:3]


def centroid(values, affine):
    return (affine @ [*ndimage.center_of_mass(np.asarray(values, float)), 1])[:3]


def shape_for(spacing, extent_mm=42.0):
    return tuple(int(np.ceil(extent_mm / s)) for s in spacing)


def scan(orientation, angles, spacing):
    """Make a smooth scan of about 42 mm whose blob is off the middle, so that a swapped or flipped axis shows."""
    order = nib.orientations.axcodes2ornt(tuple(orientation))[:, 0].astype(int)
    affine = make_affine(orientation, angles, spacing)
    shape = shape_for(spacing)
    marker = centre_of(affine, shape) + np.array([5.0, -3.0, 2.0])
    assert sorted(order) == [0, 1, 2]
    return make_volume(blob(affine, marker, 4.0, shape), affine), marker


@FEW
@given(orientation=orientations, angles=angles, spacing=spacings, align=aligns)
def test_a_marker_keeps_its_world_place(orientation, angles, spacing, align):
    volume, marker = scan(orientation, angles, spacing)
    grid = working_grid(volume, volume.data > 1e-3, DataConfig(size=(32, 32), spacing_mm=2.0, align=align))
    there = to_working(volume.data, grid)
    assert there.shape == (grid.shape[2], *grid.shape[:2])
    np.testing.assert_allclose(centroid(np.moveaxis(there, 0, 2), grid.affine), marker, atol=0.1)
    back = to_native(there, grid)
    np.testing.assert_allclose(centroid(back, volume.affine), marker, atol=0.15)


@FEW
@given(orientation=orientations, angles=angles, spacing=spacings, align=aligns)
def test_there_and_back_keeps_a_smooth_scan(orientation, angles, spacing, align):
    volume, _ = scan(orientation, angles, spacing)
    grid = working_grid(volume, volume.data > 1e-3, DataConfig(size=(32, 32), spacing_mm=2.0, align=align))
    back = to_native(to_working(volume.data, grid), grid)
    assert back.shape == volume.data.shape
    assert np.abs(back - volume.data).max() < 0.28  # of a peak of 1: 3 mm voxels and two interpolations lower it
    assert np.corrcoef(back.ravel(), volume.data.ravel())[0, 1] > 0.99


@FEW
@given(orientation=orientations, angles=angles, spacing=spacings, align=aligns, seed=st.integers(0, 99))
def test_the_grid_holds_every_mask_voxel(orientation, angles, spacing, align, seed):
    rng = np.random.default_rng(seed)
    volume = make_volume(rng.random(shape_for(spacing)), make_affine(orientation, angles, spacing))
    mask = np.zeros(volume.data.shape, bool)
    mask[tuple(rng.integers(0, n, 6) for n in mask.shape)] = True
    grid = working_grid(volume, mask, DataConfig(size=(32, 32), spacing_mm=1.7, align=align))
    index = np.argwhere(mask) @ index_map(grid.affine, volume.affine)[:3, :3].T
    index += index_map(grid.affine, volume.affine)[:3, 3]
    assert (index >= -0.5 - 1e-3).all()
    assert (index <= np.array(grid.shape) - 0.5 + 1e-3).all()
    assert to_native(np.ones((grid.shape[2], *grid.shape[:2])), grid)[mask] == pytest.approx(1)


@FEW
@given(orientation=orientations, angles=angles, spacing=spacings)
def test_slices_of_an_oblique_scan_stay_one_to_one(orientation, angles, spacing):
    volume, _ = scan(orientation, angles, spacing)
    grid = working_grid(volume, volume.data > 0.1, DataConfig(size=(64, 64), spacing_mm=1.3))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.affine))
    assert grid.shape[2] == canonical.shape[2]
    assert grid.spacing_mm == pytest.approx((1.3, 1.3, canonical.header.get_zooms()[2]), rel=1e-5)
    between = index_map(canonical.affine, grid.affine)
    np.testing.assert_allclose(between[2], [0, 0, 1, 0], atol=1e-6)


@FEW
@given(orientation=orientations, angles=angles, align=aligns, odd=st.tuples(*[st.integers(9, 20)] * 3))
def test_grids_that_coincide_give_exact_copies(orientation, angles, align, odd):
    if align == "world":
        angles = (0.0, 0.0, 0.0)
    affine = make_affine(orientation, angles, (1.5, 1.5, 1.5), origin=(-9.37, 1.113, 0.7))
    data = np.random.default_rng(0).random(odd).astype(np.float32)
    volume = make_volume(data, affine)
    grid = working_grid(volume, data > 0, DataConfig(size=(32, 32), spacing_mm=1.5, align=align))
    there = to_working(data, grid)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, affine)).get_fdata(dtype=np.float32)
    offset = [
        round(x) for x in index_map(grid.affine, nib.as_closest_canonical(nib.Nifti1Image(data, affine)).affine)[:3, 3]
    ]
    box = tuple(slice(o, o + n) for o, n in zip(offset, canonical.shape, strict=True))
    np.testing.assert_array_equal(np.moveaxis(there, 0, 2)[box], canonical)
    np.testing.assert_array_equal(to_native(there, grid), data)
    np.testing.assert_array_equal(to_native(to_working(data, grid, order=0), grid, order=0), data)


def test_rounding_in_a_quaternion_does_not_blur_a_straight_scan():
    header = nib.Nifti1Header()
    header.set_qform(make_affine("LPS", spacing=(0.9375, 0.9375, 5.0), origin=(119.3, 87.7, -31.2)), 1)
    data = np.random.default_rng(0).random((30, 28, 6)).astype(np.float32)
    volume = make_volume(data, header.get_qform())
    grid = working_grid(volume, data > 0, DataConfig(size=(32, 32), spacing_mm=0.9375, align="world"))
    np.testing.assert_array_equal(to_native(to_working(data, grid), grid), data)


def test_variants_of_a_scan_give_the_same_working_image():
    """A scan flipped to LPI or permuted is the same scan: its world-aligned slices are equal."""
    data = np.random.default_rng(1).random((24, 20, 16)).astype(np.float32)
    image = nib.Nifti1Image(data, make_affine(spacing=(1.0, 1.2, 2.0)))
    config = DataConfig(size=(32, 32), spacing_mm=1.5, align="world")
    reference = None
    for codes in ("RAS", "LPI", "SRA", "ALI"):
        transform = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
        variant = image.as_reoriented(transform)
        volume = make_volume(variant.get_fdata(), variant.affine)
        there = to_working(volume.data, working_grid(volume, volume.data > 0, config))
        reference = there if reference is None else reference
        np.testing.assert_allclose(there, reference, atol=1e-5)


def test_world_slices_cover_the_brain_and_one_more():
    mask = np.zeros((20, 20, 30), bool)
    mask[5:15, 5:15, 8:20] = True
    volume = make_volume(mask, make_affine(spacing=(1, 1, 2)))
    grid = working_grid(volume, mask, DataConfig(size=(32, 32), spacing_mm=1, align="world"))
    assert grid.shape == (32, 32, 14)
    assert grid.spacing_mm == (1, 1, 2)
    np.testing.assert_array_equal(to_working(mask, grid).any(axis=(1, 2)), [False] + [True] * 12 + [False])
    coarse = working_grid(volume, mask, DataConfig(size=(32, 32), spacing_mm=1, align="world", slice_spacing_mm=4))
    assert coarse.shape[2] == 8
    assert coarse.spacing_mm[2] == 4


def test_slice_spacing_resamples_slices_in_voxel_mode():
    volume = make_volume(np.ones((20, 20, 30)), make_affine(angles=(0.2, 0, 0)))
    grid = working_grid(volume, volume.data > 0, DataConfig(size=(32, 32), spacing_mm=1, slice_spacing_mm=3))
    assert grid.shape[2] == 10
    assert grid.spacing_mm == pytest.approx((1, 1, 3))


def test_a_large_brain_grows_the_grid_and_says_so(caplog):
    volume = make_volume(np.ones((70, 30, 4)), make_affine())
    with caplog.at_level(logging.DEBUG, logger="maediff.working.spatial"):
        grid = working_grid(volume, volume.data > 0, DataConfig(size=(48, 48), spacing_mm=1))
    assert grid.shape == (80, 48, 4)
    assert "needs 70 pixels" in caplog.text
    np.testing.assert_array_equal(to_native(to_working(volume.data, grid), grid), volume.data)


def test_a_single_slice_is_a_scan():
    data = np.random.default_rng(0).random((20, 20, 1)).astype(np.float32)
    for align in ("voxel", "world"):
        volume = make_volume(data, make_affine(angles=(0.1, 0.05, 0)))
        grid = working_grid(volume, data > 0, DataConfig(size=(32, 32), spacing_mm=1, align=align))
        assert np.isfinite(to_native(to_working(data, grid), grid)).all()


# Resampling


def affine_maps():
    def build(order, flips, scale, offset):
        matrix = np.eye(4)
        matrix[:3, :3] = np.eye(3)[list(order)] * np.array(flips)[:, None] * np.array(scale)[:, None]
        matrix[:3, 3] = [o if f > 0 else o + 15 for o, f in zip(offset, flips, strict=True)]
        return matrix

    return st.builds(
        build,
        st.permutations([0, 1, 2]),
        st.tuples(*[st.sampled_from([1, -1])] * 3),
        st.tuples(*[st.floats(0.3, 4)] * 3),
        st.tuples(*[st.floats(-3, 3)] * 3),
    )


@FEW
@given(matrix=affine_maps(), order=st.sampled_from([0, 1]))
def test_both_ways_to_resample_agree(matrix, order):
    data = np.random.default_rng(0).random((14, 12, 9)).astype(np.float32)
    apart = _resample_axes(data, matrix, (8, 11, 10), order, -2.0)
    whole = _resample_oblique(data, matrix, (8, 11, 10), order, -2.0)
    if order == 1:
        np.testing.assert_allclose(apart, whole, atol=2e-5)
    else:
        assert (apart != whole).mean() < 0.02  # ties between two voxels may fall either way


def test_linear_interpolation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    data = rng.random((12, 13, 14)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = nib.eulerangles.euler2mat(0.2, 0.3, 0.1) * 0.7  # finer: no blur
    matrix[:3, 3] = [2, 1, 3]
    coords = np.einsum("ab,bxyz->axyz", matrix[:3, :3], np.indices((9, 8, 7))) + matrix[:3, 3, None, None, None]
    expected = ndimage.map_coordinates(data, coords, order=1, mode="nearest")
    expected[((coords < -0.5) | (coords > np.array(data.shape)[:, None, None, None] - 0.5)).any(0)] = 5
    np.testing.assert_allclose(resample(data, matrix, (9, 8, 7), fill=5), expected, atol=1e-5)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order 3"):
        resample(np.zeros((2, 2, 2)), np.eye(4), (2, 2, 2), order=3)


def test_the_blur_is_that_of_cardoso():
    assert prefilter_sigmas(np.diag([1.0, 0.5, 2.0, 1.0])) == pytest.approx((0, 0, np.sqrt(3) / 2.3548), rel=1e-4)
    turned = np.eye(4)
    turned[:3, :3] = nib.eulerangles.euler2mat(0.5, 0.2, 0.1)
    assert prefilter_sigmas(turned) == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, 0.2, 0.1)])
def test_detail_below_the_working_pixel_is_averaged_not_aliased(angles):
    """Stripes of 3 mm cannot be shown at 4 mm; without a blur they come out as false broad stripes."""
    x = np.arange(96)
    data = np.broadcast_to((np.sin(2 * np.pi * x / 3.1) + 1)[:, None, None], (96, 96, 6)).astype(np.float32)
    volume = make_volume(data, make_affine(angles=angles))
    align = "world" if any(angles) else "voxel"
    grid = working_grid(volume, data >= 0, DataConfig(size=(32, 32), spacing_mm=4, align=align, slice_spacing_mm=1))
    inside = to_working(np.ones_like(data), grid) > 0.999
    middle = ndimage.binary_erosion(inside, np.ones((1, 5, 5)))
    smooth, nearest = to_working(data, grid), to_working(data, grid, order=0)
    assert middle.sum() > 50
    assert smooth[middle].std() < 0.06
    assert nearest[middle].std() > 0.4
    assert smooth[middle].mean() == pytest.approx(1, abs=0.03)


def test_a_ramp_survives_coarsening():
    x, y, z = np.indices((64, 60, 8)).astype(np.float32)
    data = x + 2 * y - 3 * z
    volume = make_volume(data, make_affine("LPS"))
    grid = working_grid(volume, data > -99, DataConfig(size=(32, 32), spacing_mm=4))
    back = to_native(to_working(data, grid), grid)
    np.testing.assert_allclose(back[9:-9, 9:-9], data[9:-9, 9:-9], atol=1e-3)


def test_fill_stands_outside_the_field_of_view_only():
    data = np.full((10, 10, 4), 3, np.float32)
    volume = make_volume(data, make_affine())
    grid = working_grid(volume, data > 0, DataConfig(size=(32, 32), spacing_mm=1))
    there = to_working(data, grid, fill=-1.0)
    assert np.unique(there).tolist() == [-1, 3]
    assert (there == 3).sum() == data.size


def test_the_input_is_left_alone():
    data = np.random.default_rng(0).random((8, 8, 4)).astype(np.float32)
    copy = data.copy()
    volume = make_volume(data, make_affine())
    grid = working_grid(volume, data > 0, DataConfig(size=(32, 32), spacing_mm=1))
    there = to_working(data, grid)
    to_native(there, grid)[:] = 0
    there[:] = 0
    np.testing.assert_array_equal(data, copy)
    same = WorkingGrid(volume.affine, (8, 8, 4), volume.affine, (8, 8, 4))
    to_working(data, same)[:] = 0
    to_native(np.moveaxis(data, 2, 0), same)[:] = 0
    np.testing.assert_array_equal(data, copy)


# Lesion slices


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR"])
def test_lesion_slices_are_exact_where_slices_are_one_to_one(codes):
    data = np.random.default_rng(0).random((12, 14, 10)).astype(np.float32)
    volume = make_volume(data, make_affine(codes, (0.2, 0.1, 0.3), (1, 1, 1.5)))
    label = np.zeros(data.shape, np.uint8)
    label[3, 4, 7] = label[6, 2, 1] = 1
    grid = working_grid(volume, data > 0, DataConfig(size=(32, 32), spacing_mm=4))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(label, volume.affine)).get_fdata()
    np.testing.assert_array_equal(lesion_slices(label, grid), canonical.any(axis=(0, 1)))
    assert not lesion_slices(label * 0, grid).any()


@FEW
@given(orientation=orientations, angles=angles, spacing=spacings, slice_mm=st.sampled_from([None, 1.0, 4.0]))
def test_no_slice_that_shows_a_lesion_is_missed(orientation, angles, spacing, slice_mm):
    shape = shape_for(spacing, 30.0)
    volume = make_volume(np.ones(shape), make_affine(orientation, angles, spacing))
    label = np.zeros(shape, bool)
    label[tuple(n // 3 for n in shape)] = True
    config = DataConfig(size=(48, 48), spacing_mm=1.5, align="world", slice_spacing_mm=slice_mm)
    grid = working_grid(volume, volume.data > 0, config)
    shown = to_working(label, grid).max(axis=(1, 2))
    marked = lesion_slices(label, grid)
    assert not (~marked & (shown > 0.25 * shown.max())).any()
    assert marked.any()
    assert marked.sum() <= 2 + 2 * sum(spacing) / grid.spacing_mm[2]


@pytest.mark.parametrize(("orientation", "moved"), [("coronal", (1, 0, 2)), ("sagittal", (0, 2, 1))])
def test_slices_of_other_orientations_are_the_turned_array(orientation, moved):
    volume, _ = scan("RAS", (0.0, 0.0, 0.0), (2.0, 2.0, 2.0))
    grid = working_grid(volume, volume.data > -1, DataConfig(size=(21, 21), spacing_mm=2.0), orientation)
    slices = to_working(volume.data, grid)
    assert np.array_equal(slices, volume.data.transpose(moved))
    assert np.array_equal(to_native(slices, grid), volume.data)


@FEW
@given(orientation=orientations, angles=angles, spacing=spacings, align=aligns, cut=st.sampled_from(list(SLICE_AXES)))
def test_a_marker_keeps_its_world_place_in_every_orientation(orientation, angles, spacing, align, cut):
    volume, marker = scan(orientation, angles, spacing)
    data = DataConfig(size=(32, 32), spacing_mm=2.0, slice_spacing_mm=2.0, align=align)
    grid = working_grid(volume, volume.data > 1e-3, data, cut)
    there = to_working(volume.data, grid)
    np.testing.assert_allclose(centroid(np.moveaxis(there, 0, 2), grid.affine), marker, atol=0.1)
    np.testing.assert_allclose(centroid(to_native(there, grid), volume.affine), marker, atol=0.15)


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        ((1.0, 1.0, 1.0), (140, 170, 130), True),
        ((0.9, 0.9, 2.5), (150, 190, 52), True),
        ((0.9, 0.9, 5.0), (150, 190, 26), False),  # thick slices
        ((1.0, 1.0, 1.0), (140, 170, 26), False),  # thick slices whose header says 1 mm
    ],
)
def test_only_scans_that_are_fine_and_long_in_all_directions_are_volumetric(spacing, shape, expected):
    volume = make_volume(np.ones(shape), make_affine(spacing=spacing))
    assert is_volumetric(volume, np.ones(shape, bool)) is expected
