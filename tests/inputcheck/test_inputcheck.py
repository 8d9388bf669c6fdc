"""The input check: right on sixty good and sixty bad inputs that are made here, and its calibration's round trip."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from maediff.calibration import Calibration
from maediff.errors import InputError
from maediff.inputcheck import (
    HealthyScan,
    MapMeasures,
    above_healthy,
    check_scan,
    compare,
    measure_scan,
    refuse,
    refuse_ct,
)
from maediff.inputcheck.template import build_template, template
from maediff.volume import Volume

LEVELS = {"t1": (0.2, 0.62, 0.92), "t2": (1.0, 0.62, 0.42), "flair": (0.18, 0.68, 0.54)}
STEP_MM = tuple(2 * side / 48 for side in (71, 89, 72))
BAD = {
    "noise": {"noise"},
    "upside down": {"orientation"},
    "back to front": {"orientation"},
    "half brain": {"half-brain"},
    "half signal": {"no-signal"},
    "inverted": {"contrast"},
}


def brain(seed, contrast):
    """Make a brain of 48 cells a side from the template: its own size, contrast, bias and noise."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.85, 1.0, 3)
    centre = 23.5
    matrix, offset = np.diag(0.5 / scale), 11.5 - 0.5 / scale * centre
    share, grey, white = (
        ndimage.affine_transform(layer, matrix, offset, (48,) * 3, order=1)
        for layer in (template().share, *template().values)
    )
    mask = share > 0.5
    fluid, first, second = np.array(LEVELS[contrast]) * rng.normal(1, 0.04, 3)
    image = fluid * (1 - grey - white).clip(0) + first * grey + second * white
    image *= 1 + 0.05 * ndimage.gaussian_filter(rng.standard_normal(image.shape), 6) * 40
    image += 0.02 * rng.standard_normal(image.shape)
    low, high = np.percentile(image[mask], [1, 99])
    return np.where(mask, (2 * (image - low) / (high - low) - 1).clip(-1, 1.5), -1).astype(np.float32), mask


def measured(image, mask):
    return measure_scan(np.moveaxis(image, 2, 0), np.moveaxis(mask, 2, 0), STEP_MM)


def spoilt(kind, seed, contrast):
    image, mask = brain(seed, contrast)
    left = np.arange(48)[:, None, None] < 24
    if kind == "noise":
        image = np.where(mask, np.random.default_rng(seed).uniform(-1, 1, image.shape), -1)
    elif kind == "upside down":
        image, mask = image[:, :, ::-1], mask[:, :, ::-1]
    elif kind == "back to front":
        image, mask = image[:, ::-1], mask[:, ::-1]
    elif kind == "half brain":
        image, mask = np.where(left, image, -1), mask & left
    elif kind == "half signal":
        image = np.where(left, image, -1)
    else:
        image = np.where(mask, -image.clip(-1, 1), -1)
    return image.astype(np.float32), mask


@pytest.fixture(scope="module")
def healthy():
    """What calibration stores of six FLAIR scans, through JSON."""
    scans = tuple(HealthyScan(measured(*brain(900 + k, "flair")), MapMeasures(0.05, 0.1, 0.01)) for k in range(6))
    stored = Calibration(0.3, 0.01, 6, 100, {"0.01": 0.3}, (0.1,) * 6, healthy=tuple(s.to_dict() for s in scans))
    back = Calibration.from_dict(json.loads(json.dumps(stored.to_dict())))
    return tuple(HealthyScan.from_dict(scan) for scan in back.healthy)


def test_sixty_good_inputs_pass_and_sixty_bad_ones_are_named(healthy, capsys):
    good = [(seed, contrast) for contrast in LEVELS for seed in range(20)]
    alarms = [case for case in good if check_scan(measured(*brain(*case)))]
    alarms += [case for case in good if case[1] == "flair" and compare(measured(*brain(*case)), None, healthy)]
    missed = []
    for kind, wanted in BAD.items():
        for seed in range(10):
            contrast = "flair" if kind == "inverted" else ("t1", "t2", "flair")[seed % 3]
            scan = measured(*spoilt(kind, seed, contrast))
            found = {note.code for note in (*check_scan(scan), *compare(scan, None, healthy))}
            missed += [] if wanted <= found else [(kind, seed, contrast, sorted(found))]
    with capsys.disabled():
        sys.stdout.write(
            f"input check: {60 - len(set(alarms))} of 60 good inputs pass, {60 - len(missed)} of 60 bad are named\n"
        )
    assert len(set(alarms)) <= 2, alarms
    assert len(missed) <= 2, missed


def test_a_map_that_is_high_everywhere_is_no_finding(healthy):
    scan = measured(*brain(3, "flair"))
    assert [note.code for note in compare(scan, MapMeasures(0.2, 0.3, 0.4), healthy)] == ["map-high"]
    assert compare(scan, MapMeasures(0.05, 0.3, 0.02), healthy) == []  # a lesion moves the tail, not the median
    assert compare(scan, MapMeasures(0.2, 0.3, 0.4), healthy[:4]) == []  # too few to compare with


def test_calibrations_of_earlier_versions_have_no_healthy_scans():
    stored = Calibration(0.3, 0.01, 1, 100, {"0.01": 0.3}, (0.1,)).to_dict()
    del stored["healthy"]
    assert Calibration.from_dict(stored).healthy == ()


def test_what_cannot_be_meant_is_refused_unless_accepted():
    def volume(data):
        return Volume(np.asarray(data, np.float32), np.diag([4, 4, 4, 1.0]), nib.Nifti1Header())

    rng = np.random.default_rng(0)
    inside = np.zeros((40, 40, 40), bool)
    inside[5:35, 5:35, 5:35] = True
    ct = volume(np.where(inside, rng.normal(35, 10, inside.shape), -1000))
    with pytest.raises(InputError, match=r"CT.*--accept ct"):
        refuse_ct(ct)
    refuse_ct(ct, {"ct"})
    refuse_ct(volume(np.where(inside, rng.normal(800, 200, inside.shape), -1024)))  # MR with a shifted background
    empty = volume(np.where(np.arange(40) < 10, inside * rng.random(inside.shape), 0))
    with pytest.raises(InputError, match="--accept empty"):
        refuse(empty, inside)
    refuse(empty, inside, {"empty"})
    head = volume(rng.random((40, 40, 40)))
    with pytest.raises(InputError, match=r"4,096 ml.*--accept whole-head"):
        refuse(head, np.ones((40, 40, 40), bool))


def test_percentiles_are_told_as_counts():
    assert above_healthy(0.95, 20) == "above 19 of 20 healthy scans"
    assert not above_healthy(None, 20)


@pytest.mark.slow
def test_the_stored_template_is_nilearns():
    made, stored = build_template(), template()
    assert made.sides == stored.sides
    np.testing.assert_allclose(made.share, stored.share, atol=0.01)
    np.testing.assert_allclose(made.values, stored.values, atol=0.01)
