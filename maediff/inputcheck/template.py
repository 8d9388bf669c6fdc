"""The ICBM-152 brain on a coarse grid of its bounding box, for comparison with a scan's shape and tissues.

``template.npz`` holds it, so that no check has to resample the full template. It is derived from the ICBM 152
nonlinear symmetric template 2009a, Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University, which may be used, copied, modified and distributed with this notice; nilearn
bundles it.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from maediff.typing import Array
from maediff.working.resample import resample

CELLS = 24
"""Cells along each side of the box."""

_THIN = 0.03  # of the largest cross-section: a box ends where the brain is thinner, so that specks do not count


class Boxed(NamedTuple):
    """A brain stretched to a cube of cells, axes right, anterior, superior.

    Attributes:
        share: Share of brain in each cell (CELLS, CELLS, CELLS).
        values: Mean of each map over the brain of the cell (maps, CELLS, CELLS, CELLS); 0 without brain.
        sides: Voxels along each side of the box.
    """

    share: Array
    values: Array
    sides: tuple[int, int, int]


def boxed(mask: Array, maps: Array) -> Boxed:
    """Stretch the bounding box of a brain to a cube of cells; spacing and position then play no part.

    Args:
        mask: Brain (X, Y, Z), not empty; axes right, anterior, superior.
        maps: Values (maps, X, Y, Z).
    """
    ends = []
    for axis in range(3):
        area = mask.sum(tuple({0, 1, 2} - {axis}))
        held = np.flatnonzero(area >= _THIN * area.max())
        ends.append((int(held[0]), int(held[-1]) + 1))
    box = tuple(slice(*end) for end in ends)
    sides = (ends[0][1] - ends[0][0], ends[1][1] - ends[1][0], ends[2][1] - ends[2][0])
    matrix = np.diag([*(side / CELLS for side in sides), 1.0])
    matrix[:3, 3] = [0.5 * side / CELLS - 0.5 for side in sides]
    inside = mask[box]
    shape = (CELLS, CELLS, CELLS)
    share = resample(inside, matrix, shape)
    values = np.stack([resample(np.where(inside, values[box], 0), matrix, shape) for values in maps])
    np.divide(values, share, out=values, where=share > 0.05)
    values[:, share <= 0.05] = 0
    return Boxed(share, values, sides)


def build_template() -> Boxed:
    """Make the content of ``template.npz`` from what nilearn bundles: shares of grey and white matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn import datasets

        grey, white, mask = (
            np.asarray(load(resolution=2).dataobj, np.float32)
            for load in (
                datasets.load_mni152_gm_template,
                datasets.load_mni152_wm_template,
                datasets.load_mni152_brain_mask,
            )
        )
    return boxed(mask > 0.5, np.stack([grey, white]))


def packed(template: Boxed) -> bytes:
    """Pack a template as ``template.npz`` holds it."""
    stream = io.BytesIO()
    levels = np.round(255 * np.stack([template.share, *template.values]).clip(0, 1)).astype(np.uint8)
    np.savez_compressed(stream, levels=levels, sides=np.array(template.sides))
    return stream.getvalue()


@lru_cache(maxsize=1)
def template() -> Boxed:
    """Load the template."""
    content = (resources.files("maediff.inputcheck") / "template.npz").read_bytes()
    with np.load(io.BytesIO(content)) as found:
        share, *values = found["levels"].astype(np.float32) / 255
        x, y, z = (int(side) for side in found["sides"])
    return Boxed(share, np.stack(values), (x, y, z))
