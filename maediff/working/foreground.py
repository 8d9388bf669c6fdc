"""Find the background of a scan, and whether the rest is a brain or a whole head.

Three backgrounds occur in skull-stripped scans: exact zeros; another constant, such as -1024 or the lowest value of a
z-scored scan; and almost zero, with ringing of spline or sinc interpolation around the brain. Anything else is the
noisy air of a raw scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maediff.typing import Array, BoolArray
from maediff.volume import Volume
from maediff.working.components import largest_component, without_specks

MAX_BRAIN_ML = 2400.0
"""Largest brain mask seen: real brains hold 900 to 1,800 ml, synthetic ones up to 2,200; heads 3,300 and more."""

_SECOND_SHARE = 0.05  # of the border and of all voxels: a second background constant has at least this share
_LEAST_SHARE = 0.2  # of the voxels, and of those at the border, are background in a stripped scan
_RINGING = 0.01  # of the intensity range: ringing of interpolation on a background of zeros far from the brain
_RINGING_SHARE = 0.03  # of the voxels beside the background; noise in fluid has fewer values so close to it
_RINGING_CUT = 0.1  # of the intensity range: lobes beside the brain stay below
_DARK = 0.2  # of the 95th percentile
# Share of dark voxels: brains have at most 0.1 (FLAIR, T1, T2), with wide fluid spaces in FLAIR perhaps 0.25;
# heads with noisy air have 0.3 and more, heads whose air is almost zero 0.14 and more (skull, sinuses).
_MAX_DARK_SHARE = 0.3
_MAX_DARK_SHARE_RINGING = 0.13
_BELOW_SHARE = 0.15


@dataclass(frozen=True)
class Background:
    """The background of a scan: voxels that differ from ``level`` by at most ``tolerance``."""

    level: float
    tolerance: float = 0.0

    def outside(self, data: Array) -> BoolArray:
        """Find the voxels that are not background.

        Args:
            data: Intensities (X, Y, Z).
        """
        if self.tolerance == 0:
            return np.asarray(data != np.float32(self.level))
        return np.asarray(np.abs(data - np.float32(self.level)) > self.tolerance)


def find_background(data: Array) -> Background | None:
    """Find a constant or nearly constant background.

    Args:
        data: Intensities (X, Y, Z).

    Returns:
        The background; None if there is none, as in a scan with noisy air or one filled by the brain, or if two
        constants share it, as after a resampling that filled with another value.

    Example:
        >>> scan = np.full((8, 8, 8), -1024.0, np.float32)
        >>> scan[2:6, 2:6, 2:6] = 30
        >>> find_background(scan)
        Background(level=-1024.0, tolerance=0.0)
    """
    border = _border(data)
    values, counts = np.unique(border, return_counts=True)
    level = float(values[counts.argmax()])
    if _another_constant(data, level, values[counts >= _SECOND_SHARE * border.size]):
        return None
    same = float(np.mean(data == np.float32(level)))
    if counts.max() >= _LEAST_SHARE * border.size and same >= _LEAST_SHARE:
        return _with_ringing(data, level)
    level = float(np.median(border))
    size = _range(data, level)
    close = np.abs(data - np.float32(level)) <= _RINGING * size
    if np.mean(np.abs(border - level) <= _RINGING * size) >= 0.9 and close.mean() >= _LEAST_SHARE:
        return Background(0.0 if abs(level) <= _RINGING * size else level, _RINGING_CUT * size)
    return None


@dataclass(frozen=True)
class Surroundings:
    """What surrounds the brain of a scan; each property is computed once, when it is first asked for.

    Attributes:
        volume: The scan, as it was read.
    """

    volume: Volume

    @cached_property
    def background(self) -> Background | None:
        """Background of the scan, see :func:`find_background`."""
        return find_background(self.volume.data)

    @cached_property
    def whole_head(self) -> bool:
        """Whether the scan shows a head with skull, not a skull-stripped brain.

        A scan is a head if its background is not constant, if the rest is larger than any brain, or if much of the
        rest is dark: air that is noisy rather than zero, skull, sinuses.
        ``python -m benchmarks.quality.brainmask`` counts right answers on real heads and brains.
        """
        return self.background is None or _holds_head(self.volume, self.background)


def is_whole_head(volume: Volume) -> bool:
    """Check whether a scan shows a head with skull, see :attr:`Surroundings.whole_head`."""
    return Surroundings(volume).whole_head


def looks_stripped(volume: Volume) -> bool:
    """Check whether all that is not background in a scan is its brain; see :func:`is_whole_head`."""
    return not is_whole_head(volume)


def _holds_head(volume: Volume, background: Background) -> bool:
    """Check whether what is not background is a head."""
    part = without_specks(Background(background.level, background.tolerance / 2).outside(volume.data))
    if not part.any():
        return False  # an empty scan is no head; the check of the brain mask reports it
    above = volume.data - np.float32(background.level)
    values = np.abs(above)
    high = np.percentile(values[part], 95)
    solid = largest_component(values > 0.1 * high)
    if np.count_nonzero(solid) * volume.voxel_mm3 / 1000 > MAX_BRAIN_ML:
        return True
    if float(np.mean(above[part] < 0)) > _BELOW_SHARE:
        return False  # the background lies within the brain's intensities, as in one that was z-scored: none is dark
    limit = _MAX_DARK_SHARE_RINGING if background.tolerance else _MAX_DARK_SHARE
    return float(np.mean(values[part] < _DARK * high)) > limit


def _with_ringing(data: Array, level: float) -> Background:
    """Widen a constant background if faint values around the brain show that the scan was interpolated."""
    beside = np.abs(data - np.float32(level))
    beside = beside[beside > 0]
    if beside.size == 0:
        return Background(level)
    size = float(np.percentile(beside, 99))
    faint = float(np.mean(beside < _RINGING * size))
    return Background(level, _RINGING_CUT * size if faint > _RINGING_SHARE else 0.0)


def _another_constant(data: Array, level: float, values: Array) -> bool:
    """Check whether one of the values, which are frequent at the border, is a second background."""
    distant = values[np.abs(values - np.float32(level)) > _RINGING * _range(data, level)]
    return any(np.mean(data == value) >= _SECOND_SHARE for value in distant)


def _range(data: Array, level: float) -> float:
    return float(np.percentile(np.abs(data - np.float32(level)), 99))


def _border(data: Array) -> Array:
    return np.concatenate([np.take(data, end, axis).ravel() for axis in range(3) for end in (0, -1)])
