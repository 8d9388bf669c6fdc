"""Where the anomalous volume of a scan lies: its components, their sizes and, in template space, their sides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.scoring import BoolArray, FloatArray

MAX_LISTED = 5
TEMPLATE_DICE = 0.85
"""From this overlap with the template's brain on, a scan counts as lying in template space. [ours]"""

_MIDLINE_MM = 5.0  # a centre nearer to the template's mid-sagittal plane has no side


@dataclass(frozen=True)
class Component:
    """One connected part of an anomaly mask.

    Attributes:
        volume_ml: Its size.
        centre_mm: Centre of mass in the scan's world space, RAS mm.
        side: "left", "right" or "midline"; None outside template space.
    """

    volume_ml: float
    centre_mm: tuple[float, float, float]
    side: str | None


@dataclass(frozen=True)
class Findings:
    """Where the anomalous volume lies.

    Attributes:
        volume_ml: All of it.
        count: Number of 26-connected components.
        largest: The largest components, by falling size, at most :data:`MAX_LISTED`.
        template_dice: Overlap of the scan's brain with that of nilearn's ICBM 152 template, both as they lie in space.
        left_ml: Volume on the patient's left; None outside template space.
        right_ml: Volume on the patient's right; None outside template space.
    """

    volume_ml: float
    count: int
    largest: tuple[Component, ...]
    template_dice: float
    left_ml: float | None
    right_ml: float | None

    @property
    def in_template_space(self) -> bool:
        """Whether left and right are told."""
        return self.left_ml is not None


def locate(mask: BoolArray, brain: BoolArray, affine: FloatArray) -> Findings:
    """Describe an anomaly mask.

    Left and right are told only where the brain, as it lies in world space, overlaps the template's with a Dice of at
    least :data:`TEMPLATE_DICE`: elsewhere x = 0 need not be the brain's middle. Lobes are not told: nilearn bundles
    the ICBM 152 template, but no lobe atlas, and nothing is downloaded.

    Args:
        mask: Anomaly mask (X, Y, Z).
        brain: Brain (X, Y, Z).
        affine: Voxel to RAS mm (4, 4).
    """
    from skimage import measure

    voxel_ml = float(abs(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000
    labels = measure.label(np.asarray(mask, dtype=bool), connectivity=3)
    sizes = np.bincount(labels.ravel())[1:]
    dice = template_dice(brain, affine)
    in_template = dice >= TEMPLATE_DICE
    where = _world_mm(np.argwhere(labels > 0), affine)
    owner = labels[labels > 0]
    largest = []
    for index in np.argsort(-sizes, kind="stable")[:MAX_LISTED]:
        x, y, z = (float(value) for value in where[owner == index + 1].mean(axis=0))
        largest.append(Component(float(sizes[index]) * voxel_ml, (x, y, z), side_of(x) if in_template else None))
    left = float((where[:, 0] < 0).sum()) * voxel_ml
    total = float(sizes.sum()) * voxel_ml
    halves = (left, total - left) if in_template else (None, None)
    return Findings(total, int(sizes.size), tuple(largest), dice, *halves)


def side_of(x_mm: float) -> str:
    """Name the side of a place in template space.

    Example:
        >>> side_of(-30.0), side_of(30.0), side_of(2.0)
        ('left', 'right', 'midline')
    """
    return "midline" if abs(x_mm) < _MIDLINE_MM else "left" if x_mm < 0 else "right"


def template_dice(brain: BoolArray, affine: FloatArray) -> float:
    """Overlap a brain with the template's, voxel by template voxel (2 mm); nothing is registered.

    Args:
        brain: Brain (X, Y, Z).
        affine: Voxel to RAS mm (4, 4).

    Returns:
        Dice, 0 to 1.
    """
    template, template_affine = _template()
    to_voxel = np.linalg.inv(np.asarray(affine, dtype=float)) @ template_affine
    where = np.argwhere(np.ones(template.shape, dtype=bool))
    index = np.rint(where @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    inside = ((index >= 0) & (index < brain.shape)).all(axis=1)
    sampled = np.zeros(len(where), dtype=bool)
    sampled[inside] = brain[tuple(index[inside].T)]
    voxel_share = abs(np.linalg.det(np.asarray(affine)[:3, :3])) / abs(np.linalg.det(template_affine[:3, :3]))
    total = float(np.count_nonzero(brain)) * voxel_share + float(template.sum())  # what lies off the grid counts too
    return float(min(1.0, 2 * (sampled & template.ravel()).sum() / total))


def _world_mm(voxels: npt.NDArray[Any], affine: FloatArray) -> npt.NDArray[Any]:
    world: npt.NDArray[Any] = voxels @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]
    return world


@lru_cache(maxsize=1)
def _template() -> tuple[BoolArray, npt.NDArray[np.float64]]:
    """The brain of nilearn's bundled ICBM 152 (2009a, symmetric) at 2 mm, and its affine."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj) > 0, np.asarray(image.affine, dtype=float)
