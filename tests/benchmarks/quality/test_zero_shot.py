"""How visible a lesion is beside the tissue around it."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from benchmarks.quality.scans import Scan
from benchmarks.quality.zero_shot import visibility
from maediff.volume import from_image


def scan(lesion, near, far, spacing=1.0):
    """A ball of a lesion in tissue of one brightness within 12 mm, and of another farther away."""
    place = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij")) * spacing
    away = np.sqrt(((place - 20 * spacing) ** 2).sum(0))
    label = away < 5
    data = np.where(label, lesion, np.where(away < 16, near, far)).astype(np.float32)
    data[0], data[-1] = 0, 100  # the brain's percentiles
    volume = from_image(nib.Nifti1Image(data, np.diag([spacing] * 3 + [1])))
    return Scan("g", "n", "t2", volume, np.ones(data.shape, bool), label)


def test_it_compares_with_what_lies_around_and_not_with_the_rest():
    assert visibility(scan(60, 40, 90)) == pytest.approx(0.2, abs=0.01)
    assert visibility(scan(40, 40, 90)) == 0
    assert visibility(scan(30, 40, 90)) == pytest.approx(-0.1, abs=0.01)


def test_the_unit_is_the_range_of_the_brain():
    plain = scan(60, 40, 90)
    scaled = from_image(nib.Nifti1Image(7 * plain.volume.data + 50, np.eye(4)))
    assert visibility(replace(plain, volume=scaled)) == pytest.approx(visibility(plain))
