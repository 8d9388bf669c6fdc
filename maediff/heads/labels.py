"""Label maps of whole heads: reading, checking, and merging their structures into tissue classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from maediff.errors import InputError
from maediff.typing import ByteArray


@dataclass(frozen=True)
class TissueClass:
    """One class of the synthesis; left and right structures share it, and so their intensity.

    Attributes:
        name: Name of the structure.
        labels: FreeSurfer-style label values, left and right.
        t1_ms: Longitudinal relaxation time at 3 T, ms.
        t2_ms: Transverse relaxation time, ms.
        pd: Proton density, 1 for water.
    """

    name: str
    labels: tuple[int, ...]
    t1_ms: float
    t2_ms: float
    pd: float


# Relaxation times are textbook values at 3 T; variation between people and scanners is drawn around them. The classes
# 200 to 210 lie outside the brain and their names are unknown (see draw_tissue of contrast.py), so theirs vary widely.
TISSUES: tuple[TissueClass, ...] = (
    TissueClass("background", (0,), 1000.0, 1.0, 0.0),
    TissueClass("white matter", (2, 41, 25, 57), 850.0, 70.0, 0.70),
    TissueClass("cortex", (3, 42), 1400.0, 95.0, 0.82),
    TissueClass("lateral ventricle", (4, 43, 5, 44), 4200.0, 1500.0, 1.0),
    TissueClass("third and fourth ventricle", (14, 15, 72), 4200.0, 1500.0, 1.0),
    TissueClass("cerebellar white matter", (7, 46), 900.0, 75.0, 0.74),
    TissueClass("cerebellar cortex", (8, 47), 1350.0, 92.0, 0.83),
    TissueClass("thalamus", (10, 49), 1150.0, 80.0, 0.79),
    TissueClass("caudate", (11, 50), 1300.0, 84.0, 0.82),
    TissueClass("putamen", (12, 51), 1250.0, 78.0, 0.81),
    TissueClass("pallidum", (13, 52), 1000.0, 60.0, 0.76),
    TissueClass("brain stem", (16,), 1050.0, 78.0, 0.76),
    TissueClass("hippocampus", (17, 53), 1450.0, 100.0, 0.85),
    TissueClass("amygdala", (18, 54), 1450.0, 98.0, 0.85),
    TissueClass("sulcal CSF", (24,), 4200.0, 1500.0, 1.0),
    TissueClass("accumbens", (26, 58), 1350.0, 86.0, 0.82),
    TissueClass("ventral diencephalon", (28, 60), 1100.0, 76.0, 0.77),
    TissueClass("vessel", (30, 62), 1700.0, 90.0, 0.80),
    TissueClass("optic chiasm", (85,), 950.0, 75.0, 0.74),
    TissueClass("choroid plexus", (136, 137, 163, 164), 1500.0, 130.0, 0.88),
    TissueClass("outside 200", (200,), 1200.0, 60.0, 0.6),
    TissueClass("outside 201", (201,), 1200.0, 60.0, 0.6),
    TissueClass("soft tissue", (202,), 1100.0, 45.0, 0.75),
    TissueClass("outside 203", (203,), 2500.0, 400.0, 0.9),
    TissueClass("outside 204", (204,), 1200.0, 60.0, 0.5),
    TissueClass("outside 205", (205,), 500.0, 70.0, 0.8),
    TissueClass("outside 206", (206,), 1200.0, 60.0, 0.5),
    TissueClass("outside 207", (207,), 1500.0, 100.0, 0.6),
    TissueClass("outside 208", (208,), 900.0, 25.0, 0.25),
    TissueClass("outside 209", (209,), 600.0, 60.0, 0.6),
    TissueClass("outside 210", (210,), 1200.0, 60.0, 0.5),
)
NAMES: tuple[str, ...] = tuple(tissue.name for tissue in TISSUES)
CSF: frozenset[str] = frozenset({"lateral ventricle", "third and fourth ventricle", "sulcal CSF"})
WHITE: frozenset[str] = frozenset({"white matter", "cerebellar white matter"})
_MARGIN_MM = 16
_POOL = 4096
_FARTHEST_MM = 40


def class_index(name: str) -> int:
    """Return the index of a class by name.

    Example:
        >>> class_index("white matter")
        1
    """
    return NAMES.index(name)


def indices(names: frozenset[str]) -> list[int]:
    """Return the indices of classes by name, in rising order."""
    return [index for index, name in enumerate(NAMES) if name in names]


def outside_brain() -> list[int]:
    """Return the indices of the classes outside the brain: background, skull, scalp and other soft tissue."""
    return [index for index, tissue in enumerate(TISSUES) if tissue.labels == (0,) or min(tissue.labels) >= 200]


def parenchyma() -> list[int]:
    """Return the indices of brain tissue: what is neither fluid nor outside the brain."""
    excluded = {*outside_brain(), *indices(CSF)}
    return [index for index in range(len(TISSUES)) if index not in excluded]


@dataclass(frozen=True)
class Head:
    """A label map as tissue classes, 1 mm, RAS.

    Attributes:
        name: Name of the file, for messages.
        classes: Class index of each voxel (X, Y, Z), see :data:`TISSUES`.
    """

    name: str
    classes: ByteArray

    @cached_property
    def tissue(self) -> npt.NDArray[np.bool_]:
        """Brain tissue and everything enclosed by it, such as ventricles (X, Y, Z)."""
        solid = np.isin(self.classes, parenchyma())
        solid |= np.isin(self.classes, indices(CSF - {"sulcal CSF"}))
        closed = ndimage.binary_closing(np.pad(solid, 4), iterations=3)[4:-4, 4:-4, 4:-4]
        filled: npt.NDArray[np.bool_] = ndimage.binary_fill_holes(closed | solid)
        return filled

    @cached_property
    def depth(self) -> npt.NDArray[np.int8]:
        """Signed distance to the surface of the brain tissue, mm, at most 40: negative inside (X, Y, Z)."""
        outside = ndimage.distance_transform_edt(~self.tissue)
        inside = ndimage.distance_transform_edt(self.tissue)
        signed = np.where(self.tissue, -inside, outside)
        depth: npt.NDArray[np.int8] = np.clip(np.rint(signed), -_FARTHEST_MM, _FARTHEST_MM).astype(np.int8)
        return depth

    @cached_property
    def box(self) -> npt.NDArray[np.int64]:
        """First voxel of the brain tissue and the voxel behind its last, along each axis: (2, 3)."""
        spans = [np.flatnonzero(self.tissue.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        return np.array([[span[0] for span in spans], [span[-1] + 1 for span in spans]])

    def around_brain(self) -> BrainLabels:
        """Crop to the brain and 16 mm around it, as tensors that :mod:`maediff.heads.plane` draws slices from."""
        first = np.maximum(self.box[0] - _MARGIN_MM, 0)
        last = np.minimum(self.box[1] + _MARGIN_MM, self.classes.shape)
        part = tuple(slice(low, high) for low, high in zip(first, last, strict=True))
        classes, depth = self.classes[part], self.depth[part]
        near = np.flatnonzero(depth.ravel() <= _MARGIN_MM // 2)
        pool = near[np.linspace(0, len(near) - 1, _POOL).astype(np.int64)]
        return BrainLabels(
            name=self.name,
            classes=torch.from_numpy(np.ascontiguousarray(classes)),
            depth=torch.from_numpy(np.ascontiguousarray(depth)),
            box=torch.from_numpy((self.box - first).astype(np.float32)),
            pool=torch.from_numpy(np.stack([classes.ravel()[pool], depth.ravel()[pool]]).astype(np.int64)),
        )


@dataclass(frozen=True)
class BrainLabels:
    """The part of a head around its brain, ready for drawing slices.

    Attributes:
        name: Name of the file, for messages.
        classes: (X, Y, Z) uint8, class indices.
        depth: (X, Y, Z) int8, signed distance to the surface of the brain tissue, mm, negative inside.
        box: (2, 3) float32, first voxel of the brain tissue and the voxel behind its last.
        pool: (2, N) int64, class and depth of voxels spread over the brain and its surroundings: the scan's histogram
            without the scan.
    """

    name: str
    classes: Tensor
    depth: Tensor
    box: Tensor
    pool: Tensor


def find_heads(folder: str | Path) -> list[Path]:
    """List the label maps of a folder, sorted by name.

    Raises:
        InputError: There is none.
    """
    folder = Path(folder)
    inside = folder.iterdir() if folder.is_dir() else ()
    files = sorted(path for path in inside if path.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise InputError(f"{folder} holds no label maps (.nii or .nii.gz); give a folder of whole-head label maps")
    return files


def read_head(path: str | Path) -> Head:
    """Read a label map of a whole head.

    Labels are those of FreeSurfer, with 200 to 210 outside the brain, as in SynthSeg's training maps.

    Args:
        path: NIfTI file of about 1 mm; any orientation.

    Raises:
        InputError: The file cannot be read, holds labels that are unknown, has no brain or no background, or has
            another voxel size than 1 mm.
    """
    path = Path(path)
    try:
        image = nib.as_closest_canonical(nib.load(path))
        values = np.asarray(image.dataobj)
    except Exception as error:  # nibabel raises many kinds
        raise InputError(f"{path}: cannot be read as a label map: {error}") from error
    if values.ndim != 3:
        raise InputError(f"{path}: has {values.ndim} dimensions; a label map has 3")
    spacing = np.asarray(image.header.get_zooms()[:3], dtype=float)
    if np.abs(spacing - 1).max() > 0.05:
        sides = " x ".join(f"{side:g}" for side in spacing)
        raise InputError(f"{path}: voxels of {sides} mm; label maps are 1 mm isotropic: resample by nearest neighbour")
    return Head(path.name, _classes(values, path))


def read_heads(folder: str | Path) -> list[Head]:
    """Read all label maps of a folder; see :func:`read_head`."""
    return [read_head(path) for path in find_heads(folder)]


def _classes(values: npt.NDArray[np.generic], path: Path) -> ByteArray:
    """Merge labels into classes and check them."""
    labels = np.unique(values)
    table = {label: index for index, tissue in enumerate(TISSUES) for label in tissue.labels}
    unknown = [f"{label:g}" for label in labels.tolist() if label not in table]
    if unknown:
        shown = ", ".join(unknown[:8]) + (", …" if len(unknown) > 8 else "")
        raise InputError(f"{path}: unknown labels {shown}; known are {', '.join(map(str, sorted(table)))}")
    lookup = np.zeros(256, np.uint8)
    for label, index in table.items():
        lookup[label] = index
    classes: ByteArray = lookup[values.astype(np.uint8)]
    share = float(np.isin(classes, parenchyma()).mean())
    if share == 0:
        raise InputError(f"{path}: holds no brain tissue; labels are those of FreeSurfer (2 and 41 white matter, …)")
    if not (classes == 0).any():
        raise InputError(f"{path}: has no background (label 0); a label map of a whole head has air around it")
    return _with_fluid_in_holes(classes)


def _with_fluid_in_holes(classes: ByteArray) -> ByteArray:
    """Turn unlabelled holes between the structures of the brain into CSF."""
    brain = ~np.isin(classes, outside_brain())
    holes = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=2)) & (classes == 0)
    result: npt.NDArray[np.uint8] = classes.copy()
    result[holes] = class_index("sulcal CSF")
    return result
