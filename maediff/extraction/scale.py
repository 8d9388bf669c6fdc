"""Intensities as the extraction network sees them, in training and in use."""

from __future__ import annotations

import numpy as np

from maediff.typing import FloatMap

_MOST_VALUES = 100_000  # percentiles of more are no better


def normalise(image: FloatMap, percentile: float = 99.5) -> FloatMap:
    """Scale intensities to 0 to 1: from the 0.5th to a high percentile of the voxels that are not zero, clipped.

    Args:
        image: Intensities.
        percentile: Which percentile becomes 1.
    """
    values = image[image != 0]
    if values.size == 0:
        return np.zeros_like(image)
    values = values[:: max(1, values.size // _MOST_VALUES)]
    low, high = np.percentile(values, (0.5, percentile))
    low = min(float(low), 0.2 * float(high)) if high > 0 else float(low)
    scaled: FloatMap = np.clip((image - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)
    scaled[image == 0] = 0
    return scaled.astype(np.float32)
