"""Where the anomalous volume of a scan lies: its components and their sizes; in template space, sides and lobes too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.errors import ConfigError
from maediff.report.lobes import LOBES, OUTSIDE, lobe_atlas
from maediff.scoring import BoolArray, FloatArray

MAX_LISTED = 5
TEMPLATE_DICE = 0.85
"""From this overlap with the template's brain on, a scan counts as lying in template space. [ours]"""

_NAMES = (OUTSIDE, *LOBES)  # as the atlas counts them
_MIDLINE_MM = 5.0  # a centre nearer to the template's mid-sagittal plane has no side


@dataclass(frozen=True)
class Component:
    """One connected part of an anomaly mask.

    Attributes:
        volume_ml: Its size.
        centre_mm: Centre of mass in the scan's world space, RAS mm.
        side: "left", "right" or "midline"; None outside template space.
        lobes: Lobes that it lies in with the share of its volume, by falling share; empty where lobes are not told.
    """

    volume_ml: float
    centre_mm: tuple[float, float, float]
    side: str | None
    lobes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LobeVolume:
    """Anomalous volume of one lobe, on both sides of the template's mid-sagittal plane."""

    lobe: str
    left_ml: float
    right_ml: float

    @property
    def volume_ml(self) -> float:
        """Both sides together."""
        return self.left_ml + self.right_ml


@dataclass(frozen=True)
class Findings:
    """Where the anomalous volume lies.

    Attributes:
        volume_ml: All of it.
        count: Number of 26-connected components.
        largest: The largest components, by falling size, at most :data:`MAX_LISTED`.
        template_dice: Overlap of the scan's brain with that of nilearn's ICBM 152 template, in the template's space.
        left_ml: Volume on the patient's left; None outside template space.
        right_ml: Volume on the patient's right; None outside template space.
        lobes: Volume of each lobe that has any, by falling volume; their sum is ``volume_ml``. Empty where lobes are
            not told.
        no_lobes: What it takes to tell lobes, where template space would allow it; else empty.
        registered: Whether the place in template space is that of a known registration, not the scan's own.
    """

    volume_ml: float
    count: int
    largest: tuple[Component, ...]
    template_dice: float
    left_ml: float | None
    right_ml: float | None
    lobes: tuple[LobeVolume, ...]
    no_lobes: str
    registered: bool

    @property
    def in_template_space(self) -> bool:
        """Whether left and right are told."""
        return self.left_ml is not None


def locate(mask: BoolArray, brain: BoolArray, affine: FloatArray, to_template: FloatArray | None = None) -> Findings:
    """Describe an anomaly mask.

    Sides and lobes are told only where the brain, as it lies in the template's space, overlaps the template's with a
    Dice of at least :data:`TEMPLATE_DICE`: elsewhere x = 0 need not be the brain's middle. Lobes need the extra
    `atlas`.

    Args:
        mask: Anomaly mask (X, Y, Z).
        brain: Brain (X, Y, Z).
        affine: Voxel to RAS mm (4, 4).
        to_template: The scan's RAS mm to the template's (4, 4), where a registration is known; without it the scan
            counts as it lies.
    """
    from skimage import measure

    voxel_ml = float(abs(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000
    labels = measure.label(np.asarray(mask, dtype=bool), connectivity=3)
    sizes = np.bincount(labels.ravel())[1:]
    placed = np.eye(4) if to_template is None else np.asarray(to_template)
    dice = template_dice(brain, placed @ np.asarray(affine))
    in_template = dice >= TEMPLATE_DICE
    where = _world_mm(np.argwhere(labels > 0), affine)
    there = _world_mm(where, placed)
    owner = labels[labels > 0]
    lobes, no_lobes = _lobes(there) if in_template and owner.size else (None, "")
    largest = []
    for index in np.argsort(-sizes, kind="stable")[:MAX_LISTED]:
        own = owner == index + 1
        x, y, z = (float(value) for value in where[own].mean(axis=0))
        shares = () if lobes is None else _shares(lobes[own])
        side = side_of(float(there[own, 0].mean())) if in_template else None
        largest.append(Component(float(sizes[index]) * voxel_ml, (x, y, z), side, shares))
    left = there[:, 0] < 0
    total, left_ml = float(sizes.sum()) * voxel_ml, float(left.sum()) * voxel_ml
    return Findings(
        volume_ml=total,
        count=int(sizes.size),
        largest=tuple(largest),
        template_dice=dice,
        left_ml=left_ml if in_template else None,
        right_ml=total - left_ml if in_template else None,
        lobes=() if lobes is None else _lobe_volumes(lobes, left, voxel_ml),
        no_lobes=no_lobes,
        registered=to_template is not None,
    )


def _lobes(where_mm: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8] | None, str]:
    """Look up the lobe of each place, or say what is missing."""
    try:
        return lobe_atlas().at(where_mm), ""
    except ConfigError as error:
        return None, str(error)


def _shares(lobes: npt.NDArray[np.uint8]) -> tuple[tuple[str, float], ...]:
    """Count lobes, the most frequent first."""
    counts = np.bincount(lobes, minlength=len(_NAMES))
    return tuple((_NAMES[i], float(counts[i] / lobes.size)) for i in np.argsort(-counts, kind="stable") if counts[i])


def _lobe_volumes(lobes: npt.NDArray[np.uint8], left: BoolArray, voxel_ml: float) -> tuple[LobeVolume, ...]:
    """Measure lobes on both sides, the largest first."""
    on_left, on_right = (np.bincount(lobes[side], minlength=len(_NAMES)) * voxel_ml for side in (left, ~left))
    order = np.argsort(-(on_left + on_right), kind="stable")
    return tuple(
        LobeVolume(_NAMES[i], float(on_left[i]), float(on_right[i])) for i in order if on_left[i] + on_right[i] > 0
    )


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
    """Apply an affine map to places (N, 3)."""
    world: npt.NDArray[Any] = voxels @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]
    return world


@lru_cache(maxsize=1)
def _template() -> tuple[BoolArray, npt.NDArray[np.float64]]:
    """The brain of nilearn's bundled ICBM 152 (2009a, symmetric) at 2 mm, and its affine."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj) > 0, np.asarray(image.affine, dtype=float)
