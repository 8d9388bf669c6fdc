"""Findings: every component once, by size; peaks, centres and overlaps against scipy's own measures."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from maediff.findings import COLUMNS, component_rows, locate, scan_findings, write_components
from maediff.tables import read_table
from maediff.volume import Volume

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 1.5, 0, -7], [0, 0, 3.0, 4], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(4)
    values = ndimage.gaussian_filter(rng.normal(size=(30, 32, 20)), 1.5)
    return values, values > np.quantile(values, 0.9), ndimage.gaussian_filter(rng.normal(size=values.shape), 2) > 0.1


def test_components_are_those_of_scipy_by_falling_size(scan):
    values, mask, truth = scan
    parts = locate(mask, mask, AFFINE, values=values, truth=truth).components
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(parts) == count > 5
    assert [part.number for part in parts] == list(range(1, count + 1))
    volumes = [part.volume_ml for part in parts]
    assert volumes == sorted(volumes, reverse=True)
    assert sum(volumes) == pytest.approx(mask.sum() * 9 / 1000)
    for part in parts:
        own = labels == labels[part.centre_voxel]
        assert labels[part.centre_voxel] > 0  # the centre lies in the component, however it is bent
        assert part.volume_ml == pytest.approx(own.sum() * 9 / 1000)
        assert part.peak == values[own].max() == values[part.peak_voxel]
        assert own[part.peak_voxel]
        assert part.truth_ml == pytest.approx((own & truth).sum() * 9 / 1000)
        assert part.truth_share == pytest.approx(truth[own].mean())
        assert part.centre_mm == pytest.approx((AFFINE @ [*part.centre_voxel, 1])[:3])


def test_the_centre_is_the_voxel_nearest_to_the_centre_of_mass():
    mask = np.zeros((20, 20, 3), bool)
    mask[2:9, 3:8, 1] = True  # centre of mass at (5, 5, 1)
    mask[12:19, 12:19, 1] = True
    mask[13:18, 13:19, 1] = False  # bent: its centre of mass is not part of it
    bent, plain = locate(mask, mask, np.eye(4)).components[::-1]
    assert plain.centre_voxel == (5, 5, 1)
    assert mask[bent.centre_voxel]
    assert (plain.peak, plain.peak_voxel, plain.truth_ml, plain.truth_share) == (None,) * 4


def test_an_empty_mask_has_no_findings():
    empty = np.zeros((4, 5, 6), bool)
    found = locate(empty, ~empty, np.eye(4), values=np.ones(empty.shape), truth=~empty)
    assert (found.count, found.volume_ml, found.components, found.largest) == (0, 0.0, (), ())


def test_the_table_is_the_components(scan, tmp_path):
    values, mask, truth = scan
    found = locate(mask, mask, AFFINE, values=values, truth=truth)
    path = write_components(tmp_path / "a_components.tsv", found.components)
    columns, rows = read_table(path)
    assert tuple(columns) == COLUMNS
    assert [int(row["finding"]) for row in rows] == [part.number for part in found.components]
    assert [float(row["volume_ml"]) for row in rows] == pytest.approx([p.volume_ml for p in found.components], rel=1e-5)
    assert {rows[0]["side"], rows[0]["lobe"]} <= {"", "n/a"}  # this box is no brain in template space
    assert "-0" not in {cell for row in rows for cell in row.values()}
    frame = pd.DataFrame(component_rows(found.components), columns=list(COLUMNS))
    assert frame.shape == (found.count, len(COLUMNS))


def test_findings_of_a_scan_use_its_own_affine(scan):
    values, mask, _ = scan
    volume = Volume(values.astype(np.float32), AFFINE, nib.Nifti1Image(values, AFFINE).header)
    found = scan_findings(volume, values, mask, mask)
    assert found.components == locate(mask, mask, AFFINE, values=values).components
    assert not found.registered
