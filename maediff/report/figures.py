"""Pictures: slices in three planes, in radiological orientation, and one colour scale for report, viewer, previews."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from maediff.typing import Array, BoolArray, ByteArray, DoubleArray, FloatArray

COLOUR_MAP = "inferno"
MASK_COLOUR = (255, 149, 0)
TRUTH_COLOUR = (0, 200, 220)  # told apart from the mask's with every common colour-vision deficiency
MARGIN_MM = 8.0
MAX_PIXELS = 640  # of a picture's side; larger scans are thinned

PLANES = ("axial", "coronal", "sagittal")
"""Planes of the pictures, in the order in which they are shown."""

_LAYOUT = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}  # world axis of slice, row and column
_OVERLAY_OPACITY = 0.6
_THRESHOLDS, _SCORES = 3.0, 1.5  # thresholds, or highest scores, that the colour scale spans
_TOP_SHARE = 0.01
_TOP_PERCENTILE = 99.9  # of a map's brain voxels: where the shared colour scale ends
_WINDOW = (0.5, 99.8)  # grey window, percentiles of the scan within the brain
_PLACE_MM = 3.0  # standard deviation of the smoothing that keeps one noisy voxel from being the place
_orientations: Any = nib.orientations  # without type hints upstream


@dataclass(frozen=True)
class Frame:
    """Where the pictures of a plane lie: cropped to the brain.

    Attributes:
        slice_index: Slice of the plane, in the order of :func:`plane_slices`.
        n_slices: Slices of the scan in that plane.
        rows: Crop, from the top of the picture.
        columns: Crop, from the left of the picture.
        aspect: Width over height of the crop, in mm.
    """

    slice_index: int
    n_slices: int
    rows: slice
    columns: slice
    aspect: float

    @property
    def height(self) -> int:
        """Rows of the crop."""
        return int(self.rows.stop - self.rows.start)

    @property
    def width(self) -> int:
        """Columns of the crop."""
        return int(self.columns.stop - self.columns.start)

    @property
    def step(self) -> int:
        """Every how many pixels are kept: 1 up to :data:`MAX_PIXELS`."""
        return math.ceil(max(self.height, self.width) / MAX_PIXELS)

    def cut(self, planes: Array, slice_index: int | None = None) -> Array:
        """Take the pixels (H, W) of a slice, by default this frame's, out of a plane's slices."""
        picture = planes[self.slice_index if slice_index is None else slice_index, self.rows, self.columns]
        return picture[:: self.step, :: self.step]


def plane_axes(plane: str) -> tuple[int, int, int]:
    """World axes (0 right-left, 1 front-back, 2 up-down) of a plane's slices, rows and columns."""
    return _LAYOUT[plane]


def canonical_index(voxel: Sequence[int], affine: FloatArray, shape: Sequence[int]) -> tuple[int, int, int]:
    """Turn a voxel index into that of the volume whose axes run to the right, the front and the top.

    Args:
        voxel: Index in the scan's array.
        affine: Voxel to RAS mm (4, 4).
        shape: Shape of the scan.

    Example:
        >>> canonical_index((1, 2, 3), np.diag([-1.0, 1.0, 1.0, 1.0]), (10, 10, 10))
        (8, 2, 3)
    """
    index = [0, 0, 0]
    for axis, (world, direction) in enumerate(_orientations.io_orientation(affine)):
        index[int(world)] = int(voxel[axis]) if direction > 0 else int(shape[axis]) - 1 - int(voxel[axis])
    i, j, k = index
    return i, j, k


def voxel_from_canonical(affine: FloatArray, shape: Sequence[int]) -> DoubleArray:
    """Matrix (4, 4) that undoes :func:`canonical_index`."""
    matrix: DoubleArray = _orientations.inv_ornt_aff(_orientations.io_orientation(affine), tuple(shape))
    return matrix


def plane_slices(data: Array, affine: FloatArray, plane: str = "axial") -> Array:
    """Turn a volume into the pictures of one plane, as radiologists hang them.

    The voxel axes closest to right-left, front-back and feet-head are found from the affine; nothing is resampled.

    Args:
        data: Volume (X, Y, Z), any orientation.
        affine: Voxel to RAS mm (4, 4).
        plane: One of :data:`PLANES`.

    Returns:
        Pictures (S, H, W). Axial: from the feet up; row 0 is the front, column 0 the patient's right. Coronal: from
        the back to the front; row 0 is the top, column 0 the patient's right. Sagittal: from the patient's left to
        the right; row 0 is the top, column 0 the front.
    """
    canonical = _orientations.apply_orientation(data, _orientations.io_orientation(affine))
    pictures: Array = canonical.transpose(_LAYOUT[plane])[:, ::-1, ::-1]
    return pictures


def plane_spacing_mm(affine: FloatArray, plane: str = "axial") -> tuple[float, float]:
    """Pixel height and width of a plane's pictures, mm."""
    axes = _orientations.io_orientation(affine)[:, 0]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    _, rows, columns = _LAYOUT[plane]
    height, width = (float(spacing[int(np.flatnonzero(axes == world)[0])]) for world in (rows, columns))
    return height, width


def most_anomalous_slice(planes: FloatArray) -> int:
    """Find the slice that holds most of the scan's highest 1 % of map values.

    Args:
        planes: Anomaly map (S, H, W), zero outside the brain.
    """
    if not (planes > 0).any():
        return len(planes) // 2
    return int(np.argmax(_highest(planes).sum(axis=(1, 2))))


def most_anomalous_place(values: FloatArray, affine: FloatArray) -> dict[str, int]:
    """Find where the highest 1 % of map values lie most densely, and the slice of each plane through that place.

    Args:
        values: Anomaly map (X, Y, Z), zero outside the brain.
        affine: Voxel to RAS mm (4, 4).

    Returns:
        Slice index of each plane, in the order of :func:`plane_slices`; the middle of an empty map.
    """
    from scipy import ndimage

    axial = plane_slices(values, affine)
    place = tuple(length // 2 for length in axial.shape)
    if (axial > 0).any():
        spacing = (plane_spacing_mm(affine, "coronal")[0], *plane_spacing_mm(affine))
        dense = ndimage.gaussian_filter(_highest(axial), [_PLACE_MM / step for step in spacing])
        place = tuple(int(index) for index in np.unravel_index(int(np.argmax(dense)), dense.shape))
    depth, row, column = place
    return {"axial": depth, "coronal": axial.shape[1] - 1 - row, "sagittal": axial.shape[2] - 1 - column}


def most_anomalous_voxel(values: FloatArray, affine: FloatArray) -> tuple[int, int, int]:
    """Find the voxel of :func:`most_anomalous_place`.

    Args:
        values: Anomaly map (X, Y, Z), zero outside the brain.
        affine: Voxel to RAS mm (4, 4).

    Returns:
        Voxel index in the order of ``values``.
    """
    place = most_anomalous_place(values, affine)
    voxel = voxel_from_canonical(affine, values.shape) @ [place["sagittal"], place["coronal"], place["axial"], 1]
    return int(voxel[0]), int(voxel[1]), int(voxel[2])


def grey_window(shown: FloatArray, brain: BoolArray) -> tuple[float, float]:
    """Choose the intensities that are black and white, from the scan within the brain.

    Args:
        shown: Scan or reconstruction.
        brain: Where to look; everywhere where it is empty.
    """
    low, high = np.percentile(shown[brain] if brain.any() else shown, _WINDOW)
    return (min(0.0, float(low)) if low < 0 else float(low) * 0.5, float(high))


def high_value(values: FloatArray, brain: BoolArray) -> float:
    """Return the value of a map within the brain that only a thousandth of its voxels exceed; 0 without a brain."""
    return float(np.percentile(values[brain], _TOP_PERCENTILE)) if brain.any() else 0.0


def _highest(values: FloatArray) -> FloatArray:
    limit = np.quantile(values[values > 0], 1 - _TOP_SHARE)
    highest: FloatArray = np.where(values >= limit, values, 0)
    return highest


def frame_around(brain: BoolArray, slice_index: int, pixel_mm: tuple[float, float]) -> Frame:
    """Crop pictures to the brain's bounding box over all slices, plus a margin.

    Args:
        brain: Brain (S, H, W); where it is empty nothing is cropped.
        slice_index: Slice to show.
        pixel_mm: Pixel height and width, mm.
    """
    spans = []
    for axis, step in ((1, pixel_mm[0]), (2, pixel_mm[1])):
        length = brain.shape[axis]
        where = np.flatnonzero(brain.any(axis=(0, 3 - axis)))
        margin = math.ceil(MARGIN_MM / step)
        first, last = (int(where[0]), int(where[-1])) if where.size else (0, length - 1)
        spans.append(slice(max(first - margin, 0), min(last + margin + 1, length)))
    rows, columns = spans
    height, width = (rows.stop - rows.start) * pixel_mm[0], (columns.stop - columns.start) * pixel_mm[1]
    return Frame(slice_index, brain.shape[0], rows, columns, width / height)


def grey(picture: FloatArray, low: float, high: float) -> ByteArray:
    """Render intensities as grey RGB (H, W, 3): ``low`` is black, ``high`` white."""
    scaled = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def heat(picture: FloatArray, top: float) -> ByteArray:
    """Render a map on the fixed colour scale (H, W, 3): zero is black, ``top`` and above the brightest."""
    index = (255 * np.clip(picture / max(top, 1e-12), 0, 1)).astype(np.uint8)
    picture_rgb: ByteArray = colour_table()[index]
    return picture_rgb


def overlay(base: ByteArray, mask: BoolArray, colour: tuple[int, int, int]) -> ByteArray:
    """Tint the pixels of a mask."""
    tinted = (1 - _OVERLAY_OPACITY) * base + _OVERLAY_OPACITY * np.array(colour)
    picture: ByteArray = np.where(mask[..., None], tinted, base).astype(np.uint8)
    return picture


def data_uri(picture: ByteArray) -> str:
    """Encode an RGB picture (H, W, 3) as a PNG in a data URI."""
    from matplotlib import image

    stream = io.BytesIO()
    picture = np.ascontiguousarray(picture)
    told, fast = {"Software": "MAEDiff"}, {"compress_level": 3}  # half the time of the default for 4 % more bytes
    image.imsave(stream, picture, format="png", metadata=told, pil_kwargs=fast)
    return image_uri(stream.getvalue())


def image_uri(content: bytes, kind: str = "png") -> str:
    """Put the content of an image file into a data URI; `kind` is that of its MIME type."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def scale_top(scores: Sequence[float], threshold: float | None) -> float:
    """Choose the upper end of the colour scale, rounded up to two digits.

    With a calibrated threshold it is three times the threshold, so that the same colour means the same in every
    picture of every run of a model; without one it is one and a half times the highest score.

    Args:
        scores: Scan-level scores, or other high values of the maps; NaN is left out.
        threshold: Calibrated threshold; None without a calibration.

    Example:
        >>> scale_top([0.9], 0.2), scale_top([0.4, 0.3], None)
        (0.6, 0.6)
    """
    value = (
        _THRESHOLDS * threshold if threshold else _SCORES * max((s for s in scores if math.isfinite(s)), default=0.0)
    )
    return round_up(value)


def round_up(value: float) -> float:
    """Round the end of a colour scale up to two digits; 1 if there is nothing to show.

    Example:
        >>> round_up(0.412), round_up(0.0)
        (0.42, 1.0)
    """
    if not value > 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def gradient() -> str:
    """Describe the colour scale as a CSS gradient."""
    stops = colour_table()[:: 255 // 15]
    return "linear-gradient(90deg, " + ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in stops.tolist()) + ")"


def colour_table() -> ByteArray:
    """Return the 256 colours (256, 3) of the scale, from zero upwards."""
    from matplotlib import colormaps

    table: ByteArray = (255 * colormaps[COLOUR_MAP](np.arange(256))[:, :3]).round().astype(np.uint8)
    return table
