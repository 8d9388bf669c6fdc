"""What no brain extraction can strip is never scored without a word."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from maediff.config import load_config
from maediff.inference.reading import find_brain
from maediff.inputcheck import check_scan, measure_scan
from maediff.volume import from_image
from maediff.working import prepare

SHAPE = (64, 72, 64)
X, Y, Z = np.moveaxis(np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(SHAPE) / 2, -1, 0)
TUBE = np.hypot(X, Y) < 27
NECK = np.hypot(X / 1.2, Y) < 24
VERTEBRAE = (np.hypot(X, Y + 12) < 6) * (1 + 0.5 * np.sin(Z / 3))
OBJECTS = {
    "bottle of water": 800.0 * TUBE,
    "ball of gel": np.where(X**2 + Y**2 + Z**2 < 28**2, 800 + 100 * np.sin(X / 5), 0),
    "spine": 300.0 * NECK + 200 * VERTEBRAE + 350 * (np.hypot(X, Y + 7) < 3),
    "empty bore": 90.0 * np.random.default_rng(1).rayleigh(size=SHAPE),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_that_is_no_head_is_refused_or_warned_of(name):
    noise = np.random.default_rng(0).rayleigh(15, SHAPE)
    volume = from_image(nib.Nifti1Image((OBJECTS[name] + noise).astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0])))
    config = load_config("tiny")
    brain, _ = find_brain(volume, config)
    ready = prepare(volume, brain, config.data)
    notes = check_scan(measure_scan(ready.slices, ready.mask, ready.grid.spacing_mm))
    assert {note.code for note in notes} & {"noise", "no-anatomy", "shape", "half-brain", "slab", "one-sided"}
