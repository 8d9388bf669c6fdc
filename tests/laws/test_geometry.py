"""Geometry of the whole path: whatever orientation, spacing, obliquity and data type, maps lie where the scan lies."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from maediff.calibration import RATES, Calibration
from maediff.config import load_config
from maediff.data.cases import find_cases
from maediff.inference.cohort import infer_cases
from maediff.inference.predictor import Predictor
from maediff.methods.intensity import Intensity
from maediff.methods.maediff.sliding import Healthy
from maediff.methods.zscore import ZScore
from maediff.volume import from_image
from maediff.working.spatial import to_native

SHAPE = (13, 12, 11)
DEPTH = 4
"""Voxels from the marker to the edge: nearer, a share of brain divides what the blur of thick, turned voxels brings."""
TURNS = [
    np.eye(3)[:, list(axes)] * signs
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    for signs in np.array(np.meshgrid(*[(-1, 1)] * 3)).T.reshape(-1, 3)
]
STORED = [
    (np.uint8, 20.0, -60.0),
    (np.int16, 0.5, -1.5),
    (np.uint16, 1.0, 0.0),
    (np.int32, 2.0**-10, -3 * 2.0**-10),
    (np.float32, 1.0, 0.0),
    (np.float64, -2.0, 6.0),
]
OUTPUTS = ("anomaly", "reconstruction", "anomaly-mask", "uncertainty")
placements = {
    "turn": st.sampled_from(TURNS),
    "angles": st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    "spacing": st.tuples(*[st.floats(0.8, 4.0)] * 3),
    "origin": st.tuples(*[st.floats(-200, 200)] * 3),
    "codes": st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 4), (4, 2), (0, 0)]),
}


def write_scan(path, affine, codes, stored, marker):
    """Write a scan of random tissue in a background of zero, with one voxel that is far brighter."""
    dtype, slope, intercept = stored
    tissue = np.zeros(SHAPE)
    tissue[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).integers(20, 40, tuple(n - 2 for n in SHAPE))
    tissue[marker] = 250
    raw = -intercept / slope + np.sign(slope) * tissue
    image = nib.Nifti1Image(raw.astype(dtype), affine, dtype=dtype)
    image.header.set_slope_inter(slope, intercept)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, path)


class Slices(torch.nn.Identity):
    """Stand-in for a network that works on slices."""

    def scan_maps(self, volume, brain, score):
        return None


def constant_predictor(align, spacing, *more, level=-1.0):
    """Make a predictor whose network takes every slice for constant, by default empty, so that maps show the scan."""
    values = [f"data.align={align}", f"data.spacing_mm={spacing}", f"data.slice_spacing_mm={spacing}", "data.clip=100"]
    config = load_config("quick", [*values, *more])
    calibration = Calibration(50.0, 0.01, 1, 1, {f"{rate:g}": 50.0 for rate in RATES}, (0.0,))
    predictor = Predictor(config, Slices(), calibration, "0" * 64, torch.device("cpu"))

    def reconstruct(slices, inside, key, on_batch):
        return Healthy(torch.full_like(slices, level), torch.zeros_like(slices))

    predictor.__dict__["reconstruct"] = reconstruct  # in place of the cached engine
    return predictor


@settings(max_examples=200, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    **placements,
    stored=st.sampled_from(STORED),
    marker=st.tuples(*[st.integers(DEPTH, n - 1 - DEPTH) for n in SHAPE]),
    align=st.sampled_from(["voxel", "world"]),
    packed=st.booleans(),
)
def test_outputs_lie_where_the_scan_lies(
    tmp_path_factory, turn, angles, spacing, origin, codes, stored, marker, align, packed
):
    folder = tmp_path_factory.mktemp("geometry")
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ turn @ np.diag(spacing)
    affine[:3, 3] = origin
    path = folder / ("a.nii.gz" if packed else "a.nii")
    write_scan(path, affine, codes, stored, marker)
    # As fine as the voxels; finer where the grid is turned against them, else the marker's neighbours share its value.
    predictor = constant_predictor(align, min(spacing) if align == "voxel" else min(spacing) / 2)
    (outcome,) = infer_cases(predictor, find_cases(path), folder / "out" / "cases.tsv").cases
    assert outcome.status == "done", outcome.message
    before = nib.load(path)
    voxels = np.c_[np.indices(SHAPE).reshape(3, -1).T, np.ones(np.prod(SHAPE))]
    for name in OUTPUTS:
        after = nib.load(folder / "out" / f"a_{name}.nii.gz")
        assert after.shape == SHAPE
        assert np.abs(voxels @ (after.affine - before.affine).T).max() < 1e-3
        assert [int(after.header[f"{form}_code"]) for form in ("qform", "sform")] == list(codes)
    found = nib.load(folder / "out" / "a_anomaly.nii.gz").get_fdata()
    assert np.unravel_index(found.argmax(), SHAPE) == marker
    if codes[1]:  # without a form a header says nothing but spacing; a quaternion near half a turn is inexact by itself
        place = nib.affines.apply_affine(affine, marker)
        np.testing.assert_allclose(nib.affines.apply_affine(after.affine, marker), place, atol=1e-3)


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: np.dtype(stored[0]).name)
def test_slope_and_intercept_of_every_type_are_applied(tmp_path, stored):
    write_scan(tmp_path / "a.nii", np.eye(4), (1, 1), stored, (4, 4, 3))
    write_scan(tmp_path / "b.nii", np.eye(4), (1, 1), (np.uint16, 1.0, 0.0), (4, 4, 3))
    predictor = constant_predictor("voxel", 1)
    maps = [predictor.predict(tmp_path / name).anomaly for name in ("a.nii", "b.nii")]
    np.testing.assert_allclose(*maps, atol=1e-3)


@pytest.mark.parametrize("names", [("axial",), ("axial", "coronal", "sagittal")])
def test_where_slices_do_not_reach_the_scan_is_left_as_it_is(names):
    rng = np.random.default_rng(0)
    shape = (34, 36, 32)
    distance = np.sqrt(((np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2) ** 2).sum(-1))
    brain = (distance < 12) | ((distance < 15) & (rng.random(shape) < 0.1))  # with specks that few slices reach
    scan = nib.Nifti1Image(np.where(distance < 16, rng.uniform(20, 40, shape), 0).astype(np.float32), 2 * np.eye(4))
    mask = nib.Nifti1Image(brain.astype(np.uint8), scan.affine)

    def predictor(*orientations):
        settings = f"infer.orientations=[{','.join(orientations)}]", "data.slice_spacing_mm=2"
        return constant_predictor("world", 3.1, *settings, level=0.25)

    loaded = predictor(*names).prepare(scan, mask)
    cuts = [loaded.prepared, *loaded.turned]
    reached = np.array([brain & (to_native(cut.mask, cut.grid) >= 1e-3) for cut in cuts])
    count = reached.sum(0)
    assert (brain & (count == 0)).sum() > 10
    assert len(names) == 1 or ((count > 0) & (count < len(names))).sum() > 10
    result = predictor(*names).predict(scan, mask)
    constant = loaded.prepared.scale.inverse(np.float32(0.25))
    np.testing.assert_allclose(result.reconstruction[count > 0], constant, rtol=1e-3)
    np.testing.assert_array_equal(result.reconstruction[count == 0], loaded.volume.data[count == 0])
    np.testing.assert_allclose(result.anomaly[count == 0], 0, atol=1e-3)
    alone = np.array([predictor(name).predict(scan, mask).anomaly for name in names])
    mean = np.divide(alone.sum(0), count, out=np.zeros_like(alone[0]), where=count > 0)
    np.testing.assert_allclose(result.anomaly, mean, atol=1e-3)


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("method", [Intensity, lambda: ZScore({})], ids=["intensity", "zscore"])
def test_maps_of_baselines_do_not_depend_on_the_storage_order(method, axes):
    rng = np.random.default_rng(0)
    brain = np.pad(np.ones((14, 16, 8), bool), 2)
    affine = np.diag([2.0, 2.5, 4.0, 1.0])

    def stored(data, axes):
        image = nib.Nifti1Image(data.transpose(axes), affine[:, [*axes, 3]])
        image.set_sform(image.affine, 4)
        return from_image(image)

    scans = [np.where(brain, rng.uniform(20, 40, brain.shape), 0).astype(np.float32) for _ in range(4)]
    baseline = method()
    baseline.fit((stored(scan, (0, 1, 2)), brain) for scan in scans)
    filters = ["median_mm=8", "erode_mm=2", "half_depth_mm=5", "support_mm=4", "sign=bright"]
    score = load_config("quick", [f"score.{each}" for each in filters]).score
    one = baseline.scan_maps(stored(scans[0], (0, 1, 2)), brain, score)
    other = baseline.scan_maps(stored(scans[0], axes), brain.transpose(axes), score)
    for expected, found in zip(one, other, strict=True):
        np.testing.assert_array_equal(found.transpose(np.argsort(axes)), expected)
