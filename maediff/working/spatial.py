"""From the native voxels of a scan to the working grid of the network, and back.

The working grid is a stack of axial-like slices: in-plane pixels of a fixed size in mm, centred on the brain. It
keeps the affines of both grids, so that results can be resampled to the native voxels.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation

from maediff.config import DataConfig, Orientation
from maediff.errors import GeometryError
from maediff.typing import Array, BoolArray, FloatMap
from maediff.volume import Volume
from maediff.volume.checks import check_memory
from maediff.working.resample import index_map, resample

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]

SLICE_AXES: dict[Orientation, tuple[int, int, int]] = {
    "axial": (0, 1, 2),
    "coronal": (0, 2, 1),
    "sagittal": (2, 1, 0),
}
"""World axes (0 left to right, 1 back to front, 2 upwards) along rows, columns and normal of slices: a brain fits in
slices of one size in every orientation, since it is longest from back to front."""
SIZE_STEP = 16
MAX_EXTENT_MM = 2000.0  # no scanner's field of view is longer
# A working spacing this close to the native one (relative) is taken as the native one, without resampling.
_SAME_SPACING = 1e-3
_COARSEST_MM = 2.6
"""Longest side of a voxel in a scan that can be cut in any orientation, little above a working pixel."""
_LEAST_ASPECT = 0.6
"""Shortest extent of a brain as a share of its longest: 0.70 to 0.79 in 12 whole brains of IXI and 3D-MR-MS, and up to
0.2 in stacks of TCGA-LGG whose header gives thick slices a thickness of 1 mm."""
# Tilts below this (mm per voxel) are rounding of float32 headers, not obliquity.
_ALIGNED_MM = 1e-5


@dataclass(frozen=True)
class WorkingGrid:
    """The working grid of one scan, with the transform back.

    Attributes:
        affine: Working index (x, y, slice) to RAS mm, (4, 4).
        shape: Pixels (W0, W1) in-plane and number of slices S.
        native_affine: Native voxel index to RAS mm, (4, 4).
        native_shape: Native shape (X, Y, Z).
    """

    affine: Array
    shape: Shape
    native_affine: Array
    native_shape: Shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between pixel centres (x, y) and between slices, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class _Frame:
    """Axes of a working grid in mm, with the native grid expressed in them.

    Attributes:
        directions: Unit vectors of the working axes in RAS, as columns (3, 3).
        to_frame: Native voxel index to frame coordinates in mm, (3, 4).
        spacing: Working spacing along each axis, mm.
        lattice: For each axis, a native voxel centre to align to if the native voxels are kept, else None.
    """

    directions: Array
    to_frame: Array
    spacing: tuple[float, ...]
    lattice: tuple[float | None, ...]


def working_grid(
    volume: Volume, mask: BoolArray, config: DataConfig, orientation: Orientation = "axial"
) -> WorkingGrid:
    """Lay the working grid over a scan.

    ``align: voxel`` keeps the voxel axes, permuted and flipped to the closest canonical RAS order; slices stay one
    to one unless ``slice_spacing_mm`` is given, and cover the whole scan. ``align: world`` follows the scanner axes;
    slices cover the brain and one more on each side. In-plane the grid is centred on the brain. If the brain does
    not fit in ``size``, the grid grows to the next multiple of 16, with a log line.

    Args:
        volume: The scan.
        mask: Brain (X, Y, Z), not empty.
        config: ``size``, ``spacing_mm``, ``slice_spacing_mm`` and ``align`` are used.
        orientation: Orientation of the slices, see :data:`SLICE_AXES`.

    Returns:
        A grid that holds every voxel of the mask.

    Raises:
        GeometryError: The brain, or with ``align: voxel`` the scan across slices, is longer than any field of view.
        InputError: The grid needs more memory than the machine has.
    """
    frame = _frame(volume, config, orientation)
    low, high = _extent(frame, _extreme_voxels(mask))
    if config.align == "voxel":
        corners = np.array([np.zeros(3), np.array(volume.data.shape) - 1])
        low[2], high[2] = (bound[2] for bound in _extent(frame, corners))
        margin = 0
    else:
        margin = 1
    _check_extent(high - low, volume.name)
    counts, origin = [], []
    for axis in range(3):
        least = max(1, math.ceil((high[axis] - low[axis]) / frame.spacing[axis] - 1e-4))
        count = least + 2 * margin if axis == 2 else _in_plane_size(least, config.size[axis], volume.name)
        start = (low[axis] + high[axis] - (count - 1) * frame.spacing[axis]) / 2
        counts.append(count)
        origin.append(_on_lattice(start, frame.lattice[axis], frame.spacing[axis]))
    check_memory(math.prod(counts), 4 * math.prod(counts), f"the working grid of {volume.name} ({counts})")
    affine = np.eye(4)
    affine[:3, :3] = frame.directions * np.array(frame.spacing)
    affine[:3, 3] = frame.directions @ np.array(origin)
    native_shape: Shape = volume.data.shape
    return WorkingGrid(affine, (counts[0], counts[1], counts[2]), volume.affine, native_shape)


def to_working(data: Array, grid: WorkingGrid, order: int = 1, fill: float = 0.0) -> FloatMap:
    """Resample native values to the working grid.

    Args:
        data: Native values (X, Y, Z).
        grid: The scan's working grid.
        order: 1 for intensities (anti-aliased, linear), 0 for labels (nearest).
        fill: Value outside the scan's field of view.

    Returns:
        Slices (S, W0, W1), float32; an exact copy if both grids share their voxels.
    """
    values = resample(data, index_map(grid.native_affine, grid.affine), grid.shape, order, fill)
    return np.ascontiguousarray(np.moveaxis(values, 2, 0))


def to_native(slices: Array, grid: WorkingGrid, order: int = 1, fill: float = 0.0) -> FloatMap:
    """Resample working slices to the native voxels.

    Args:
        slices: Working values (S, W0, W1).
        grid: The scan's working grid.
        order: 1 for values (linear, anti-aliased if the native voxels are larger), 0 for labels (nearest).
        fill: Value of native voxels outside the working grid.

    Returns:
        Native values (X, Y, Z), float32; an exact copy if both grids share their voxels.
    """
    matrix = index_map(grid.affine, grid.native_affine)
    return resample(np.moveaxis(slices, 0, 2), matrix, grid.native_shape, order, fill)


def lesion_slices(label: Array, grid: WorkingGrid) -> BoolArray:
    """Find the working slices that any native label voxel reaches.

    A voxel reaches a slice when linear interpolation between native voxels gives it weight there, or when it lies
    less than one slice away. One-to-one slices are marked exactly.

    Args:
        label: Lesion (X, Y, Z); above zero is lesion.
        grid: The scan's working grid.

    Returns:
        Boolean (S,).
    """
    marked = np.zeros(grid.shape[2], dtype=bool)
    voxels = np.argwhere(np.asarray(label) > 0)
    if voxels.size == 0:
        return marked
    row = index_map(grid.affine, grid.native_affine)[2]
    centres = np.unique(np.round(voxels @ row[:3] + row[3], 4))
    reach = max(1.0, float(np.abs(row[:3]).sum())) - 1e-3
    distance = np.abs(np.arange(grid.shape[2])[:, None] - centres[None, :]).min(axis=1)
    marked[distance < reach] = True
    return marked


def is_volumetric(volume: Volume, mask: BoolArray) -> bool:
    """Check whether a scan can be cut in any orientation: fine in all directions, and the brain about as long in each.

    Stacks of thick slices cannot, nor can those whose header gives thick slices a false thickness: their brain is flat.
    """
    if max(volume.spacing_mm) > _COARSEST_MM:
        return False
    voxels = _extreme_voxels(mask)
    extent = (np.ptp(voxels, axis=0) + 1) * np.array(volume.spacing_mm)
    return bool(extent.min() >= _LEAST_ASPECT * extent.max())


def _frame(volume: Volume, config: DataConfig, orientation: Orientation) -> _Frame:
    native, order = volume.affine, list(SLICE_AXES[orientation])
    canonical, flips = _canonical_axes(native)
    axes = [canonical[world] for world in order]
    if config.align == "voxel":
        directions = native[:3, axes] * flips[order] / np.linalg.norm(native[:3, axes], axis=0)
    else:
        directions = np.eye(3)[:, order]
    to_frame = np.linalg.solve(directions, native[:3])
    to_frame[np.abs(to_frame) < _ALIGNED_MM] = 0
    native_spacing = [volume.spacing_mm[axis] for axis in axes]
    wanted = [config.spacing_mm, config.spacing_mm, config.slice_spacing_mm or native_spacing[2]]
    spacing, lattice = [], []
    for axis in range(3):
        alone = np.count_nonzero(to_frame[axis, :3]) == 1
        same = alone and abs(wanted[axis] / native_spacing[axis] - 1) < _SAME_SPACING
        spacing.append(native_spacing[axis] if same else wanted[axis])
        lattice.append(float(to_frame[axis, 3]) if same else None)
    return _Frame(directions, to_frame, tuple(spacing), tuple(lattice))


def _canonical_axes(affine: Array) -> tuple[list[int], Array]:
    """Find the native axis closest to each of R, A, S, and whether it runs in that direction (1) or against it (-1)."""
    orientation: Array = io_orientation(affine)
    axes = [int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in range(3)]
    return axes, orientation[axes, 1]


def _extent(frame: _Frame, voxels: Array) -> tuple[Array, Array]:
    """Compute the bounds of voxels, with their full width, in frame coordinates (mm)."""
    centres = voxels @ frame.to_frame[:, :3].T + frame.to_frame[:, 3]
    half = 0.5 * np.abs(frame.to_frame[:, :3]).sum(axis=1)
    return centres.min(axis=0) - half, centres.max(axis=0) + half


def _extreme_voxels(mask: BoolArray) -> Array:
    """List voxels (N, 3) with the same convex hull as the mask: the first and last of every column."""
    x, y = np.nonzero(mask.any(axis=2))
    columns = mask[x, y]
    first = columns.argmax(axis=1)
    last = mask.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([x, y, first], axis=1), np.stack([x, y, last], axis=1)])


def _check_extent(extent: Array, name: str) -> None:
    if extent.max() > MAX_EXTENT_MM:
        shown = " x ".join(f"{length:.0f}" for length in extent)
        raise GeometryError(
            f"the brain of {name} spans {shown} mm; at most {MAX_EXTENT_MM:.0f} mm are plausible: "
            "mend the spacing in its header or its brain mask"
        )


def _in_plane_size(least: int, size: int, name: str) -> int:
    if least <= size:
        return size
    grown = -(-least // SIZE_STEP) * SIZE_STEP
    logger.debug(
        "%s needs %d pixels in-plane, more than data.size = %d; its grid grows to %d", name, least, size, grown
    )
    return grown


def _on_lattice(start: float, centre: float | None, spacing: float) -> float:
    """Move a start to the nearest voxel centre; of two equally near the lower one, whichever way the voxels run."""
    return start if centre is None else centre + math.floor((start - centre) / spacing + 0.5 - 1e-4) * spacing
