"""Brightness alone as a baseline, which is hard to beat on FLAIR (Meissen et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from maediff.config import ScoreConfig
from maediff.errors import InputError
from maediff.methods.base import ScanBaseline
from maediff.scoring import Sign, filter_map, fixed_sign
from maediff.typing import BoolArray, FloatArray, FloatMap
from maediff.volume import Volume
from maediff.working.hemispheres import axial_axes


class Intensity(ScanBaseline):
    """Call a voxel the more anomalous the brighter (or darker) it is. It learns nothing and stores nothing."""

    def fit(self, scans: Iterable[tuple[Volume, BoolArray]]) -> None:
        """Learn nothing."""

    def scan_maps(self, volume: Volume, brain: BoolArray, score: ScoreConfig) -> tuple[FloatMap, FloatMap]:
        """Return the intensity map, in units of the brain's median over its dark end, and the scan at that median."""
        middle = np.percentile(volume.data[brain], 50.0)
        values = intensity_map(volume.data, brain, fixed_sign(score))
        anomaly = filter_map(values, brain, volume.spacing_mm, score, axial_axes(volume.affine))
        return anomaly, np.where(brain, np.float32(middle), volume.data)


def relative_intensity(data: FloatArray, mask: BoolArray) -> FloatMap:
    """Scale a scan so that its dark end (1st percentile in the brain) is 0 and its brain median 1; zero outside.

    Raises:
        InputError: The brain has no contrast.
    """
    inside = data[mask]
    low, middle = np.percentile(inside, [1.0, 50.0]) if inside.size else (0.0, 0.0)
    if not middle > low:
        raise InputError(f"the brain has no contrast (1st percentile {low:g}, median {middle:g}); check scan and mask")
    scaled = np.clip((data.astype(np.float32) - np.float32(low)) / np.float32(middle - low), 0, None)
    relative: FloatMap = np.where(mask, scaled, np.float32(0))
    return relative


def intensity_map(data: FloatArray, mask: BoolArray, sign: Sign = "bright") -> FloatMap:
    """Call a voxel the more anomalous the brighter (darker, or further from the brain's median) it is.

    Args:
        data: Scan, any shape, any intensity units.
        mask: Brain, same shape.
        sign: ``bright``: intensity relative to the brain's median; ``dark``: max(2 - that, 0); ``abs``: |that - 1|.

    Returns:
        Map, float32, zero outside the brain.

    Raises:
        InputError: The brain has no contrast.
    """
    relative = relative_intensity(data, mask)
    if sign == "bright":
        return relative
    scores: FloatMap = np.maximum(2 - relative, 0) if sign == "dark" else np.abs(relative - 1)
    scores[~mask] = 0
    return scores
