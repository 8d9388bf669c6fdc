"""Further channels of a scan (T1, T2, FLAIR, …): on the grid and with the brain of the first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from maediff.errors import InputError
from maediff.rawhead import itk, masks
from maediff.rawhead.grid import Brain, Grid, resample_brain, shape_of
from maediff.rawhead.scan import PreparedScan, PrepareSettings, finish_scan
from maediff.typing import Array, BoolArray
from maediff.volume import Volume
from maediff.working.resample import index_map, resample


@dataclass(frozen=True)
class FirstChannel:
    """The first channel of a scan, raw, with its brain, and where it lies prepared: the others follow it."""

    raw: Volume
    brain: Brain
    grid: Grid


def prepare_channel(volume: Volume, first: FirstChannel, settings: PrepareSettings) -> PreparedScan:
    """Bring a further channel to the grid and the brain of the first.

    It is registered rigidly to the first channel, unless ``align_channels`` is off: then headers are trusted.

    Args:
        volume: The raw channel, on any grid.
        first: The first channel.
        settings: Which steps.

    Raises:
        InputError: No plausible registration, or no contrast.
    """
    target = itk.Target(first.raw.data, first.brain.native, first.raw.affine) if settings.align_channels else None
    move = np.eye(4) if target is None else itk.register_rigid(target, volume.data, volume.affine, volume.name)
    matrix = index_map(first.raw.affine, np.linalg.inv(move) @ volume.affine)
    brain: BoolArray = resample(first.brain.native, matrix, shape_of(volume.data)) >= 0.5
    if not brain.any():
        raise InputError(f"{volume.name} shows nothing of the brain of its first channel; check both headers")
    data = itk.correct_bias(volume.data, volume.affine, brain)[0] if settings.bias == "n4" else volume.data
    grid = replace(first.grid, to_native=move @ first.grid.to_native)
    image = _up_to_the_rim(*resample_brain(data, brain, volume.affine, grid))
    facts, warnings = masks.check_mask(brain, volume.voxel_mm3, None)
    steps = {
        "brain_mask": {"method": "first channel", "approximate": False, **facts},
        "registration": None if target is None else {"target": "first channel", "first_to_scan": move.tolist()},
    }
    both = Brain(first.brain.prepared, brain)
    notes = (*volume.notes, *warnings)
    return finish_scan(volume, image, both, grid, settings=settings, steps=steps, notes=notes)


def _up_to_the_rim(values: Array, inside: BoolArray) -> Array:
    """Give voxels without enough brain the value of the nearest one with: the first channel's mask may hold them."""
    if not inside.any():
        return values
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    filled: Array = values[tuple(nearest)]
    return filled
