"""Healthy residuals by place: their mean and spread on a coarse grid in a template's space, as units of a map. [ours]

A reconstruction is blurred at every brain's folds and edges, so that healthy residuals are high there and low in white
matter. If scans are in one space, healthy scans show how high, and a map can give the excess of each voxel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from maediff.errors import ModelError
from maediff.model_folder import FACTS
from maediff.typing import Array, FloatMap
from maediff.working.resample import index_map, resample
from maediff.working.spatial import WorkingGrid

UNITS = "standard deviations above the healthy mean at the same place"
CELL_MM = 4.0
SMOOTH_MM = 8.0
"""Full width at half maximum of the Gaussian in which residuals of a scan count for a place."""
PRIOR_SCANS = 2.0
"""Weight of the whole-brain prior, in scans, so that no place rests on few scans."""
FLOOR = 0.5
"""No place has a smaller standard deviation than this share of the whole brain's."""

_LEAST_WEIGHT = 1e-3
_LEAST_STD = 1e-6  # working units; of residuals that are the same everywhere
_MAX_CELLS = 2**22


@dataclass(frozen=True)
class Locations:
    """Weighted moments of healthy residuals in the cells of a template's grid.

    Cell (i, j, k) lies at ``cell_mm * (corner + (i, j, k))`` mm (RAS): the grids of any two scans share their cells.
    A scan counts at a place with the share of brain there, and with all its residuals nearby: the variance is that
    of a voxel, within scans and between them.

    Attributes:
        weight: Scans that count at each place (X, Y, Z), float64.
        mean: Mean residual (X, Y, Z), working units.
        squares: Weighted sum of squared deviations from the mean (X, Y, Z).
        corner: Index of the first cell.
        n_scans: Scans together.
        cell_mm: Side of a cell.
        smooth_mm: Full width at half maximum within which residuals count for a place.
    """

    weight: Array
    mean: Array
    squares: Array
    corner: tuple[int, int, int]
    n_scans: int
    cell_mm: float = CELL_MM
    smooth_mm: float = SMOOTH_MM

    @property
    def affine(self) -> Array:
        """Cell index to RAS mm (4, 4)."""
        return _affine(self.corner, self.cell_mm)

    @property
    def described(self) -> str:
        """What they are made of, in words."""
        return (
            f"in {UNITS}, known from {self.n_scans} healthy scans in a template's space (cells of {self.cell_mm:g} mm, "
            f"smoothed over {self.smooth_mm:g} mm); scans must lie in that space"
        )

    def plus(self, other: Locations) -> Locations:
        """Add scans: the moments of both together (Chan, Golub, LeVeque 1983), on the smallest grid that holds both."""
        low = np.minimum(self.corner, other.corner)
        high = np.maximum(np.add(self.corner, self.weight.shape), np.add(other.corner, other.weight.shape))
        one, two = self._within(low, high), other._within(low, high)
        weight = one[0] + two[0]
        share = np.divide(two[0], weight, out=np.zeros_like(weight), where=weight > 0)
        apart = two[1] - one[1]
        mean = one[1] + apart * share
        squares = one[2] + two[2] + apart**2 * one[0] * share
        corner = (int(low[0]), int(low[1]), int(low[2]))
        return Locations(weight, mean, squares, corner, self.n_scans + other.n_scans, self.cell_mm, self.smooth_mm)

    def minus(self, other: Locations) -> Locations:
        """Remove scans that were added, which gives the moments of the others on the same grid."""
        two = other._within(np.array(self.corner), np.add(self.corner, self.weight.shape))
        weight = self.weight - two[0]
        weight[weight < _LEAST_WEIGHT / 2] = 0  # what rounding leaves of a place that no other scan reaches
        there = weight > 0
        share = np.divide(two[0], weight, out=np.zeros_like(weight), where=there)
        mean = np.where(there, self.mean + (self.mean - two[1]) * share, 0)
        squares = self.squares - two[2] - (self.mean - two[1]) ** 2 * two[0] * (1 + share)
        squares = np.where(there, np.maximum(squares, 0), 0)
        left = self.n_scans - other.n_scans
        return Locations(weight, mean, squares, self.corner, left, self.cell_mm, self.smooth_mm)

    def standardised(
        self, residual: FloatMap, mask: Array, grid: WorkingGrid, *, prior: float = PRIOR_SCANS, floor: float = FLOOR
    ) -> FloatMap:
        """Turn a residual into standard deviations above the healthy mean at the same place.

        Args:
            residual: Residual of a scan (S, H, W), working units.
            mask: Its brain (S, H, W).
            grid: Its working grid; the scan lies in the space of the healthy ones.
            prior: Scans that the whole brain's mean and variance count for, at every place.
            floor: Least standard deviation, as a share of the whole brain's.

        Returns:
            (residual - mean) / standard deviation, float32 (S, H, W); negative where a voxel fits better than healthy
            ones do, zero outside the brain.
        """
        total = self.weight.sum()
        mean = float((self.weight * self.mean).sum() / total)
        apart = self.mean - mean
        variance = float((self.squares + self.weight * apart**2).sum() / total)
        std = max(np.sqrt(variance), _LEAST_STD)
        known = self.weight / (self.weight + prior)
        local = np.sqrt((self.squares + prior * variance) / (self.weight + prior))
        ratio = np.log(np.maximum(local / std, floor))
        # where the grid ends both are zero, which stands for the whole brain's mean and standard deviation
        apart_here, ratio_here = (self._on(values, grid) for values in (known * apart, ratio))
        values = (residual - np.float32(mean) - apart_here) / (np.float32(std) * np.exp(ratio_here))
        standardised: FloatMap = np.where(mask, values, 0).astype(np.float32, copy=False)
        return standardised

    def to_bytes(self) -> bytes:
        """Write as safetensors, float32; their description is stored in the metadata, for people."""
        from safetensors.numpy import save

        parts = {"weight": self.weight, "mean": self.mean, "squares": self.squares}
        tensors = {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}
        facts = {"scans": self.n_scans, "cell_mm": self.cell_mm, "smooth_mm": self.smooth_mm}
        scalars = {"corner": np.array(self.corner), **{name: np.array([value]) for name, value in facts.items()}}
        return save({**tensors, **scalars}, {FACTS: json.dumps(facts)})  # of several keys the order would be random

    @classmethod
    def from_bytes(cls, content: bytes) -> Locations:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ModelError: It is damaged, or not what it should be.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            found = load(content)
            _check(found)
            weight, mean, squares = (found[name].astype(np.float64) for name in ("weight", "mean", "squares"))
            x, y, z = (int(index) for index in found["corner"])
            facts = (int(found["scans"].item()), float(found["cell_mm"].item()), float(found["smooth_mm"].item()))
            return cls(weight, mean, squares, (x, y, z), *facts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the healthy residuals by place are damaged ({type(error).__name__}: {error}); run "
                "`maediff calibrate --locations` again"
            ) from None

    def _within(self, low: Array, high: Array) -> tuple[Array, Array, Array]:
        before, after = np.subtract(self.corner, low), high - np.add(self.corner, self.weight.shape)
        width = [(int(a), int(b)) for a, b in zip(before, after, strict=True)]
        return np.pad(self.weight, width), np.pad(self.mean, width), np.pad(self.squares, width)

    def _on(self, values: Array, grid: WorkingGrid) -> FloatMap:
        """Sample values of the cells on a working grid, (S, H, W)."""
        sampled = resample(values.astype(np.float32), index_map(self.affine, grid.affine), grid.shape)
        return np.moveaxis(sampled, 2, 0)


def residuals_by_place(
    residual: FloatMap, mask: Array, grid: WorkingGrid, *, cell_mm: float = CELL_MM, smooth_mm: float = SMOOTH_MM
) -> Locations:
    """Average the residual of one scan around every place of the template.

    Args:
        residual: Residual (S, H, W), working units.
        mask: Brain (S, H, W).
        grid: The scan's working grid; the scan lies in the template's space.
        cell_mm: Side of a cell.
        smooth_mm: Full width at half maximum of the Gaussian window; 0 takes the cell alone.
    """
    sigma = smooth_mm / cell_mm / np.sqrt(8 * np.log(2))
    corner, shape = _cells(mask, grid, cell_mm, margin=int(np.ceil(2 * sigma)) + 1)
    matrix = index_map(grid.affine, _affine(corner, cell_mm))

    def around(values: Array) -> Array:
        moved = resample(np.moveaxis(values, 0, 2).astype(np.float32), matrix, shape).astype(np.float64)
        return ndimage.gaussian_filter(moved, sigma, mode="constant") if sigma else moved

    inside = np.where(mask, residual, 0)
    middle = float(inside.sum(dtype=np.float64) / mask.sum())  # about it, squares lose nothing to rounding
    weight, first = around(mask), around(np.where(mask, residual - middle, 0))
    second = around(np.where(mask, (residual - middle) ** 2, 0))
    weight[weight < _LEAST_WEIGHT] = 0
    share = np.divide(first, weight, out=np.zeros_like(weight), where=weight > 0)
    squares = np.where(weight > 0, np.maximum(second - first * share, 0), 0)
    mean = np.where(weight > 0, share + middle, 0)
    return Locations(weight, mean, squares, corner, 1, cell_mm, smooth_mm)


def _affine(corner: tuple[int, int, int], cell_mm: float) -> Array:
    affine = np.diag([cell_mm] * 3 + [1.0])
    affine[:3, 3] = cell_mm * np.array(corner)
    return affine


def _cells(
    mask: Array, grid: WorkingGrid, cell_mm: float, margin: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Find the cells that hold a brain: index of the first one, and how many there are along each axis."""
    inside = np.moveaxis(mask, 0, 2)
    ends = [np.flatnonzero(inside.any(tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    corners = np.array([(*corner, 1.0) for corner in product(*ends)]) @ grid.affine.T / cell_mm
    low = np.floor(corners[:, :3].min(0) - margin).astype(int)
    count = np.ceil(corners[:, :3].max(0) + margin).astype(int) - low + 1
    return (int(low[0]), int(low[1]), int(low[2])), (int(count[0]), int(count[1]), int(count[2]))


def _check(found: Mapping[str, Array]) -> None:
    """Refuse tensors that cannot be moments.

    Raises:
        ValueError: What is wrong with them.
    """
    parts = [found[name] for name in ("weight", "mean", "squares")]
    if {part.shape for part in parts} != {parts[0].shape} or parts[0].ndim != 3 or parts[0].size > _MAX_CELLS:
        raise ValueError(
            f"the shapes {[part.shape for part in parts]} are not three equal ones of at most {_MAX_CELLS}"
        )
    if not all(np.isfinite(part).all() for part in parts) or min(parts[0].min(), parts[2].min()) < 0:
        raise ValueError("weights and squares must be finite and not negative")
    if not (parts[0].sum() > 0 and found["cell_mm"].item() > 0 and np.abs(found["corner"]).max() < _MAX_CELLS):
        raise ValueError("no scan counts, or its cells lie nowhere")
