"""Grids of prepared scans, either the template's or the scan's own in RAS axes, and resampling to them."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from maediff.rawhead import itk
from maediff.typing import Array, BoolArray
from maediff.volume import Volume
from maediff.working.resample import index_map, resample

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """Geometry of a prepared scan: affine, shape, code of its space, and prepared RAS mm to raw RAS mm (4, 4)."""

    affine: Array
    shape: Shape
    code: str
    to_native: Array


@dataclass(frozen=True)
class Brain:
    """Brain on the prepared grid and on the raw one."""

    prepared: BoolArray
    native: BoolArray


def lay_grid(volume: Volume, to_scan: Array | None, register: str, spacing_mm: float | None) -> Grid:
    """Lay the grid of a prepared scan.

    Args:
        volume: The raw scan.
        to_scan: Template RAS mm to scan RAS mm (4, 4), or None.
        register: ``none`` keeps the scan's place; ``rigid`` keeps sizes; ``affine`` keeps nothing.
        spacing_mm: Voxel size; None keeps that of the template or the scan.
    """
    code = space_code(register)
    if to_scan is not None and register != "none":
        atlas = itk.template()
        to_native = to_scan if register == "affine" else itk.rigid_part(to_scan, atlas.centre_mm)
        return Grid(*_respaced(atlas.affine, shape_of(atlas.brain), spacing_mm), code, to_native)
    order = nib.io_orientation(volume.affine)
    shape = tuple(int(volume.data.shape[int(np.flatnonzero(order[:, 0] == axis)[0])]) for axis in range(3))
    affine = volume.affine @ nib.orientations.inv_ornt_aff(order, volume.data.shape)
    return Grid(*_respaced(affine, (shape[0], shape[1], shape[2]), spacing_mm), code, np.eye(4))


def space_code(register: str) -> str:
    """Return the NIfTI code of the space of the prepared scans."""
    return "scanner" if register == "none" else "mni"


def shape_of(data: Array) -> Shape:
    """Return the shape of a volume as three numbers."""
    x, y, z = data.shape
    return x, y, z


def _respaced(affine: Array, shape: Shape, spacing_mm: float | None) -> tuple[Array, Shape]:
    """Change the voxel size of a grid, keeping its field of view."""
    if spacing_mm is None:
        return affine, shape
    old = np.linalg.norm(affine[:3, :3], axis=0)
    new = [max(1, round(float(n * o / spacing_mm))) for n, o in zip(shape, old, strict=True)]
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] / old * spacing_mm
    middle = (np.array(shape) - 1) / 2
    result[:3, 3] = affine[:3, :3] @ middle + affine[:3, 3] - result[:3, :3] @ ((np.array(new) - 1) / 2)
    return result, (new[0], new[1], new[2])


def resample_brain(data: Array, brain: BoolArray, affine: Array, grid: Grid) -> tuple[Array, BoolArray]:
    """Resample the brain alone: values are normalised by the share of brain, so that no skull bleeds in.

    Args:
        data: Raw intensities (X, Y, Z).
        brain: Brain on the same voxels.
        affine: Their index to RAS mm.
        grid: The prepared grid.

    Returns:
        Values on the prepared grid, and where at least half of a voxel is brain.
    """
    matrix = index_map(affine, grid.to_native @ grid.affine)
    share = resample(brain, matrix, grid.shape)
    inside: BoolArray = share >= 0.5
    values = resample(np.where(brain, data, 0), matrix, grid.shape)
    np.divide(values, share, out=values, where=share > 1e-3)
    return values, inside
