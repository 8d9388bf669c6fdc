"""Findings: the components of an anomaly mask, with size, peak and place; in template space, sides and lobes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from maediff.errors import ConfigError
from maediff.findings.lobes import LOBES, OUTSIDE, lobe_atlas
from maediff.typing import Array, BoolArray, ByteArray, DoubleArray, FloatArray

MAX_LISTED = 5
TEMPLATE_DICE = 0.85
"""Least overlap with the template's brain for a scan to count as in template space. [ours]"""

_NAMES = (OUTSIDE, *LOBES)  # in the order of the atlas
_MIDLINE_MM = 5.0  # a centre nearer to the template's mid-sagittal plane has no side


@dataclass(frozen=True)
class Component:
    """One 26-connected component of an anomaly mask.

    Attributes:
        number: 1 for the largest, by falling size.
        volume_ml: Its size.
        peak: Highest value of the map in it; None if no map was given.
        centre_voxel: Its voxel nearest to its centre of mass, index in the scan's array.
        centre_mm: Place of that voxel in the scan's world space, RAS mm.
        peak_voxel: Voxel of the peak; None if no map was given.
        side: "left", "right" or "midline"; None outside template space.
        lobes: Lobes that it lies in with the share of its volume, by falling share; empty if lobes are not known.
        truth_ml: Volume that it shares with the reference's lesions; None if no reference was given.
    """

    number: int
    volume_ml: float
    peak: float | None
    centre_voxel: tuple[int, int, int]
    centre_mm: tuple[float, float, float]
    peak_voxel: tuple[int, int, int] | None
    side: str | None
    lobes: tuple[tuple[str, float], ...]
    truth_ml: float | None = None

    @property
    def lobe(self) -> str | None:
        """The lobe that holds most of it; None if lobes are not known."""
        return self.lobes[0][0] if self.lobes else None

    @property
    def truth_share(self) -> float | None:
        """Share of its volume that the reference marks as lesion; None without a reference."""
        return None if self.truth_ml is None else min(1.0, self.truth_ml / self.volume_ml)


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
    """Distribution of the anomalous volume.

    Attributes:
        volume_ml: Total volume.
        components: All components, by falling size.
        template_dice: Overlap of the scan's brain with that of nilearn's ICBM 152 template, in the template's space.
        left_ml: Volume on the patient's left; None outside template space.
        right_ml: Volume on the patient's right; None outside template space.
        lobes: Volume of each lobe that has any, by falling volume; their sum is ``volume_ml``. Empty if lobes are
            not known.
        no_lobes: What is missing to determine lobes, if the scan is in template space; else empty.
        registered: Whether the place in template space is that of a known registration, not the scan's own.
    """

    volume_ml: float
    components: tuple[Component, ...]
    template_dice: float
    left_ml: float | None
    right_ml: float | None
    lobes: tuple[LobeVolume, ...]
    no_lobes: str
    registered: bool

    @property
    def count(self) -> int:
        """Number of components."""
        return len(self.components)

    @property
    def largest(self) -> tuple[Component, ...]:
        """The largest components, at most :data:`MAX_LISTED`."""
        return self.components[:MAX_LISTED]

    @property
    def in_template_space(self) -> bool:
        """Whether left and right are known."""
        return self.left_ml is not None


def locate(
    mask: BoolArray,
    brain: BoolArray,
    affine: FloatArray,
    to_template: FloatArray | None = None,
    *,
    values: FloatArray | None = None,
    truth: BoolArray | None = None,
) -> Findings:
    """Describe an anomaly mask: every component, and where the volume lies.

    Sides and lobes are given only if the brain, placed in the template's space, overlaps the template's with a Dice of
    at least :data:`TEMPLATE_DICE`; otherwise x = 0 need not be the middle of the brain. Lobes need the extra `atlas`.

    Args:
        mask: Anomaly mask (X, Y, Z).
        brain: Brain (X, Y, Z).
        affine: Voxel to RAS mm (4, 4).
        to_template: The scan's RAS mm to the template's (4, 4), if a registration is known; without it, the scan's own
            coordinates are used.
        values: Anomaly map (X, Y, Z), for the peaks.
        truth: Lesion mask of a reference (X, Y, Z), for the overlaps.
    """
    affine = np.asarray(affine, dtype=float)
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    voxels, owner = _owned(mask)
    sizes = np.bincount(owner)
    placed = np.eye(4) if to_template is None else np.asarray(to_template)
    dice = template_dice(brain, placed @ affine)
    in_template = dice >= TEMPLATE_DICE
    there = _world_mm(_world_mm(voxels, affine), placed)
    lobes, no_lobes = _lobes(there) if in_template and owner.size else (None, "")
    left = there[:, 0] < 0
    total, left_ml = float(owner.size) * voxel_ml, float(left.sum()) * voxel_ml
    return Findings(
        volume_ml=total,
        components=tuple(
            Component(number + 1, float(size) * voxel_ml, *place, side, shares, truth_ml)
            for number, (size, place, side, shares, truth_ml) in enumerate(
                zip(
                    sizes,
                    _places(voxels, owner, affine, values),
                    _sides(there, owner, in_template),
                    _shares(lobes, owner, len(sizes)),
                    _overlaps(voxels, owner, truth, voxel_ml),
                    strict=True,
                )
            )
        ),
        template_dice=dice,
        left_ml=left_ml if in_template else None,
        right_ml=total - left_ml if in_template else None,
        lobes=() if lobes is None else _lobe_volumes(lobes, left, voxel_ml),
        no_lobes=no_lobes,
        registered=to_template is not None,
    )


def _owned(mask: BoolArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """List the voxels of a mask (N, 3), and for each the component that owns it (N,), 0 being the largest."""
    from skimage import measure

    labels = measure.label(np.asarray(mask, dtype=bool), connectivity=3)
    voxels = np.argwhere(labels > 0)
    owner = labels[labels > 0].astype(np.intp) - 1
    rank = np.empty(int(owner.max(initial=-1)) + 1, dtype=np.intp)
    rank[np.argsort(-np.bincount(owner), kind="stable")] = np.arange(len(rank))
    return voxels, rank[owner]


def _places(
    voxels: npt.NDArray[np.intp], owner: npt.NDArray[np.intp], affine: FloatArray, values: FloatArray | None
) -> list[tuple[float | None, tuple[int, int, int], tuple[float, float, float], tuple[int, int, int] | None]]:
    """Peak, centre (voxel and RAS mm) and voxel of the peak of each component."""
    where = _world_mm(voxels, affine)
    sizes = np.bincount(owner)
    mass = np.stack([np.bincount(owner, where[:, axis]) for axis in range(3)], axis=1) / np.maximum(sizes, 1)[:, None]
    centre = _first(owner, ((where - mass[owner]) ** 2).sum(axis=1).round(6))
    if values is None:
        return [(None, _index(voxels[i]), _place(where[i]), None) for i in centre]
    heights = np.asarray(values)[tuple(voxels.T)]
    peak = _first(owner, -heights)
    return [
        (float(heights[k]), _index(voxels[i]), _place(where[i]), _index(voxels[k]))
        for i, k in zip(centre, peak, strict=True)
    ]


def _first(owner: npt.NDArray[np.intp], order: Array) -> npt.NDArray[np.intp]:
    """Position, for each component, of its voxel that comes first in an order."""
    sorted_by = np.lexsort((order, owner))
    return sorted_by[np.searchsorted(owner[sorted_by], np.arange(int(owner.max(initial=-1)) + 1))]


def _index(voxel: Array) -> tuple[int, int, int]:
    i, j, k = (int(value) for value in voxel)
    return i, j, k


def _place(where: Array) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 3) + 0.0 for value in where)  # no -0.0
    return x, y, z


def _sides(there: Array, owner: npt.NDArray[np.intp], in_template: bool) -> list[str | None]:
    sizes = np.bincount(owner)
    if not in_template:
        return [None] * len(sizes)
    return [side_of(float(x)) for x in np.bincount(owner, there[:, 0]) / np.maximum(sizes, 1)]


def _overlaps(
    voxels: npt.NDArray[np.intp], owner: npt.NDArray[np.intp], truth: BoolArray | None, voxel_ml: float
) -> list[float | None]:
    if truth is None:
        return [None] * len(np.bincount(owner))
    return [float(value) for value in np.bincount(owner, np.asarray(truth, bool)[tuple(voxels.T)]) * voxel_ml]


def _lobes(where_mm: Array) -> tuple[ByteArray | None, str]:
    """Look up the lobe of each place, or describe what is missing."""
    try:
        return lobe_atlas().at(where_mm), ""
    except ConfigError as error:
        return None, str(error)


def _shares(lobes: ByteArray | None, owner: npt.NDArray[np.intp], count: int) -> list[tuple[tuple[str, float], ...]]:
    """Lobes of each component with their shares, the largest first."""
    if lobes is None:
        return [()] * count
    kinds = len(_NAMES)
    table = np.bincount(owner * kinds + lobes, minlength=count * kinds).reshape(count, kinds)
    return [
        tuple((_NAMES[i], float(row[i] / row.sum())) for i in np.argsort(-row, kind="stable") if row[i])
        for row in table
    ]


def _lobe_volumes(lobes: ByteArray, left: BoolArray, voxel_ml: float) -> tuple[LobeVolume, ...]:
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
    sampled = ndimage.affine_transform(
        np.asarray(brain, np.uint8), to_voxel[:3, :3], to_voxel[:3, 3], template.shape, order=0, mode="constant"
    )
    voxel_share = abs(np.linalg.det(np.asarray(affine)[:3, :3])) / abs(np.linalg.det(template_affine[:3, :3]))
    total = float(np.count_nonzero(brain)) * voxel_share + float(template.sum())  # voxels outside the grid count too
    return float(min(1.0, 2 * np.count_nonzero(sampled[template]) / total))


def _world_mm(voxels: Array, affine: FloatArray) -> Array:
    """Apply an affine map to places (N, 3)."""
    world: Array = voxels @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]
    return world


@lru_cache(maxsize=1)
def _template() -> tuple[BoolArray, DoubleArray]:
    """The brain of nilearn's bundled ICBM 152 (2009a, symmetric) at 2 mm, and its affine."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj) > 0, np.asarray(image.affine, dtype=float)
