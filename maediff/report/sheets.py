"""Sheets: many slices of a plane tiled into one picture, which the page splits again."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maediff.report.figures import image_uri
from maediff.typing import Array, ByteArray

LEVELS = 127
"""Steps of the threshold slider, and levels of a map in a sheet: few enough to pack well, more than eyes see."""

MASK_BIT, TRUTH_BIT = 85, 170  # grey levels of a label sheet; both together are 255
_JPEG_QUALITY = 88
_MAX_SIDE = 4096  # pixels of a sheet, which every browser can draw


@dataclass(frozen=True)
class Tiling:
    """How the slices of a plane lie in a sheet: row by row, from the upper left.

    Attributes:
        across: Slices in a row.
        height: Of a slice, pixels.
        width: Of a slice, pixels.
    """

    across: int
    height: int
    width: int

    @classmethod
    def of(cls, count: int, height: int, width: int) -> Tiling:
        """Choose a tiling that is about square."""
        across = max(1, min(count, round(math.sqrt(count * height / width)), _MAX_SIDE // width))
        return cls(across, height, width)

    def tile(self, slices: Sequence[ByteArray]) -> ByteArray:
        """Lay slices (H, W) side by side; what is left of the last row is black."""
        rows = math.ceil(len(slices) / self.across)
        sheet = np.zeros((rows * self.height, self.across * self.width), np.uint8)
        for index, picture in enumerate(slices):
            top, left = index // self.across * self.height, index % self.across * self.width
            sheet[top : top + self.height, left : left + self.width] = picture
        return sheet


def levels(values: Array, top: float) -> ByteArray:
    """Quantise a map so that thresholds stay exact: level > k if and only if value > k / LEVELS * top.

    Args:
        values: Map, any shape.
        top: End of the colour scale; values above it have the highest level.

    Example:
        >>> levels(np.array([0.0, 1e-9, 0.5, 9.0]), 1.0).tolist()
        [0, 1, 64, 127]
    """
    steps = np.ceil(np.asarray(values, float) * LEVELS / max(top, 1e-12))
    return np.clip(steps, 0, LEVELS).astype(np.uint8)


def labels(mask: Array, truth: Array) -> ByteArray:
    """Pack anomaly mask and truth (H, W) into one picture of four grey levels."""
    return (MASK_BIT * mask.astype(np.uint8) + TRUTH_BIT * truth.astype(np.uint8)).astype(np.uint8)


def encode(picture: ByteArray, *, lossless: bool) -> str:
    """Encode a grey picture (H, W) or an RGB picture (H, W, 3) as a data URI: PNG, or JPEG for scans."""
    from PIL import Image

    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    if lossless:
        image.save(stream, "PNG", compress_level=6)  # optimize: four times as long for a tenth less
    else:
        image.save(stream, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return image_uri(stream.getvalue(), "png" if lossless else "jpeg")


def choose_slices(first: int, last: int, keys: Sequence[int], count: int) -> list[int]:
    """Choose slices to show: those that must be there, and others evenly between the first and the last.

    Args:
        first: First slice with brain.
        last: Last slice with brain.
        keys: Slices that must be there, the most important first.
        count: How many are wanted in all; at least one.

    Example:
        >>> choose_slices(0, 8, [5], 4), choose_slices(2, 4, [], 10)
        ([0, 4, 5, 8], [2, 3, 4])
    """
    chosen = list(dict.fromkeys(keys))[:count]
    rest = count - len(chosen)
    if rest > 0:
        chosen += [int(index) for index in np.linspace(first, last, min(rest, last - first + 1)).round()]
    return sorted(set(chosen)) or [(first + last) // 2]
