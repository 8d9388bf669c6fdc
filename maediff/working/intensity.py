"""Intensities: a linear scale from scanner units to working units, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maediff.config import DataConfig
from maediff.errors import InputError
from maediff.typing import Array, BoolArray, FloatMap

_LARGEST = float(np.finfo(np.float32).max) / 4
_TINIEST = 4 / _LARGEST
_LEAST_SIDE = 0.25
"""Share of the brain that either side must hold for the scale to be taken from one of them."""


@dataclass(frozen=True)
class Scale:
    """A linear map of intensities.

    Attributes:
        low: Native intensity that becomes -1.
        high: Native intensity that becomes +1.

    Example:
        >>> scale = Scale(100.0, 300.0)
        >>> float(scale.forward(np.float32(200))), float(scale.inverse(np.float32(1)))
        (0.0, 300.0)
    """

    low: float
    high: float

    def forward(self, x: Array) -> FloatMap:
        """Scale native intensities to working units (no clipping): ``2 (x - low) / (high - low) - 1``."""
        x = np.asarray(x, np.float32)
        scaled: FloatMap = (x - np.float32(self.low)) * np.float32(2 / (self.high - self.low))
        scaled -= np.float32(1)
        return scaled

    def inverse(self, y: Array) -> FloatMap:
        """Return working units to native intensities: ``low + (y + 1) (high - low) / 2``."""
        y = np.asarray(y, np.float32)
        native: FloatMap = (y + np.float32(1)) * np.float32((self.high - self.low) / 2)
        native += np.float32(self.low)
        return native


def fit_scale(data: Array, mask: BoolArray, config: DataConfig, side: BoolArray | None = None) -> Scale:
    """Find the scale of a scan from the voxels of its brain.

    ``percentile`` maps two in-mask percentiles to -1 and 1; ``median`` maps 0 to -1 and the in-mask median to 0.
    ``contralateral`` is ``percentile`` with the upper percentile of the hemisphere where it is lower, so that a large
    bright lesion of one side does not darken all healthy tissue [ours].

    Args:
        data: Intensities (X, Y, Z).
        mask: Brain (X, Y, Z), not empty.
        config: ``scaling`` and ``percentiles`` are used.
        side: One side of the scan's midplane (X, Y, Z), for ``contralateral``; both sides count together if None, or if
            one of them holds little of the brain.

    Raises:
        InputError: The brain has no contrast, or (``median``) its median is not above zero.
    """
    values = data[mask]
    if config.scaling == "median":
        low, high = 0.0, 2.0 * float(np.median(values))
        problem = f"the median inside the brain mask is {high / 2:g}; scaling by it needs a value above zero"
    else:
        low, high = (float(q) for q in np.percentile(values, config.percentiles))
        first, last = config.percentiles
        if side is not None:
            high = min([high, *_highs(values, side[mask], last)])
        problem = (
            f"percentiles {first:g} and {last:g} inside the brain mask are both {low:g}: the brain has no contrast"
        )
    if not (high > low and _TINIEST < high - low < _LARGEST and abs(low) < _LARGEST):
        raise InputError(f"{problem}; check the scan and its brain mask")
    return Scale(low, high)


def _highs(values: Array, side: BoolArray, percent: float) -> list[float]:
    """Return the upper percentile of either side; nothing if one of them holds little of the brain."""
    if not _LEAST_SIDE < side.mean() < 1 - _LEAST_SIDE:
        return []
    return [float(np.percentile(values[part], percent)) for part in (side, ~side)]
