"""Scans in and results out: NIfTI volumes that keep their place in space, and what is checked at the border."""

from maediff.volume.checks import SUFFIXES
from maediff.volume.nifti import (
    GRID_TOLERANCE_VOXELS,
    MAX_SKEW,
    Volume,
    check_common_space,
    from_image,
    grid_distance,
    image_like,
    new_header,
    read_channel,
    read_map,
    read_mask,
    read_nifti,
    read_voxels,
    same_grid,
    stem_of,
    write_like,
)

__all__ = [
    "GRID_TOLERANCE_VOXELS",
    "MAX_SKEW",
    "SUFFIXES",
    "Volume",
    "check_common_space",
    "from_image",
    "grid_distance",
    "image_like",
    "new_header",
    "read_channel",
    "read_map",
    "read_mask",
    "read_nifti",
    "read_voxels",
    "same_grid",
    "stem_of",
    "write_like",
]
