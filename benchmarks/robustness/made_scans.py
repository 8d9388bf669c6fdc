"""Working-grid brains made from the template, good ones and spoilt ones: what the input check is tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from maediff.inputcheck import HealthyScan, ScanMeasures, check_scan, compare, measure_scan
from maediff.inputcheck.template import template
from maediff.typing import BoolArray, FloatMap

LEVELS = {"t1": (0.2, 0.62, 0.92), "t2": (1.0, 0.62, 0.42), "flair": (0.18, 0.68, 0.54)}
"""Intensity of fluid, grey and white matter."""

BAD = {
    "noise": "noise",
    "upside down": "orientation",
    "back to front": "orientation",
    "half brain": "half-brain",
    "half signal": "no-signal",
    "inverted": "contrast",
}
"""What is wrong with a scan -> the code that the check should name."""

_SIDE = 48
_STEP_MM = tuple(2 * side / _SIDE for side in (71, 89, 72))


def brain(seed: int, contrast: str) -> tuple[FloatMap, BoolArray]:
    """Make a brain of 48 cells a side from the template: its own size, contrast, bias and noise.

    Returns:
        Intensities in working units and the brain, both (X, Y, Z).
    """
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.85, 1.0, 3)
    centre = (_SIDE - 1) / 2
    matrix, offset = np.diag(0.5 / scale), 11.5 - 0.5 / scale * centre
    share, grey, white = (
        ndimage.affine_transform(layer, matrix, offset, (_SIDE,) * 3, order=1)
        for layer in (template().share, *template().values)
    )
    mask: BoolArray = share > 0.5
    fluid, first, second = np.array(LEVELS[contrast]) * rng.normal(1, 0.04, 3)
    image = fluid * (1 - grey - white).clip(0) + first * grey + second * white
    image *= 1 + 0.05 * ndimage.gaussian_filter(rng.standard_normal(image.shape), 6) * 40
    image += 0.02 * rng.standard_normal(image.shape)
    low, high = np.percentile(image[mask], [1, 99])
    return np.where(mask, (2 * (image - low) / (high - low) - 1).clip(-1, 1.5), -1).astype(np.float32), mask


def spoilt(kind: str, seed: int, contrast: str) -> tuple[FloatMap, BoolArray]:
    """Make a brain with one of the faults of :data:`BAD`."""
    image, mask = brain(seed, contrast)
    left = np.arange(_SIDE)[:, None, None] < _SIDE // 2
    if kind == "noise":
        image = np.where(mask, np.random.default_rng(seed).uniform(-1, 1, image.shape), -1).astype(np.float32)
    elif kind == "upside down":
        image, mask = image[:, :, ::-1], mask[:, :, ::-1]
    elif kind == "back to front":
        image, mask = image[:, ::-1], mask[:, ::-1]
    elif kind == "half brain":
        image, mask = np.where(left, image, -1).astype(np.float32), mask & left
    elif kind == "half signal":
        image = np.where(left, image, -1).astype(np.float32)
    else:
        image = np.where(mask, -image.clip(-1, 1), -1).astype(np.float32)
    return image, mask


def measured(image: FloatMap, mask: BoolArray) -> ScanMeasures:
    """Measure a made brain as the input check measures a scan on its working grid."""
    return measure_scan(np.moveaxis(image, 2, 0), np.moveaxis(mask, 2, 0), (_STEP_MM[0], _STEP_MM[1], _STEP_MM[2]))


def judge(healthy: Sequence[HealthyScan]) -> dict[str, Any]:
    """Try the check on 60 good brains (20 of each contrast) and 60 bad ones (10 of each fault).

    Args:
        healthy: Healthy FLAIR scans that a calibration measured; FLAIR brains are compared with them.

    Returns:
        Counts, and which good ones raised an alarm and which bad ones were missed.
    """
    alarms = []
    for contrast in LEVELS:
        for seed in range(20):
            scan = measured(*brain(seed, contrast))
            if check_scan(scan) or (contrast == "flair" and compare(scan, None, healthy)):
                alarms.append({"contrast": contrast, "seed": seed})
    missed = []
    for kind, wanted in BAD.items():
        for seed in range(10):
            contrast = "flair" if kind == "inverted" else ("t1", "t2", "flair")[seed % 3]
            scan = measured(*spoilt(kind, seed, contrast))
            codes = {note.code for note in (*check_scan(scan), *compare(scan, None, healthy))}
            if wanted not in codes:
                missed.append({"kind": kind, "seed": seed, "contrast": contrast, "found": sorted(codes)})
    good, bad = 20 * len(LEVELS), 10 * len(BAD)
    counts = {"good": good, "good_passed": good - len(alarms), "bad": bad, "bad_named": bad - len(missed)}
    return {**counts, "alarms": alarms, "missed": missed}
