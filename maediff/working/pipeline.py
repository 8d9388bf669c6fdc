"""Preprocess a scan for the network in one step that keeps its inverse."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.config import DataConfig, Orientation
from maediff.errors import InputError
from maediff.typing import BoolArray, FloatMap
from maediff.volume import Volume
from maediff.working.brainmask import brain_mask
from maediff.working.foreground import Background, Surroundings
from maediff.working.intensity import Scale, fit_scale
from maediff.working.spatial import WorkingGrid, to_native, to_working, working_grid


@dataclass(frozen=True)
class WorkingScan:
    """A scan on its working grid.

    Attributes:
        slices: Working intensities (S, H, W): [-1, clip] in the brain, -1 outside; (S, C, H, W) if there are several
            channels. Axial slices lie above each other (S), H runs to the right and W to the front; for the others see
            :data:`~maediff.working.spatial.SLICE_AXES`.
        mask: Brain (S, H, W).
        grid: The working grid, with the transform back.
        scales: Intensity scale of each channel.
        native_mask: Brain (X, Y, Z).
        notes: Notes for the user about this scan.
        background: Background that was found; None if a brain mask was given or if there is none.
    """

    slices: FloatMap
    mask: BoolArray
    grid: WorkingGrid
    scales: tuple[Scale, ...]
    native_mask: BoolArray
    notes: tuple[str, ...]
    background: Background | None = None

    @property
    def scale(self) -> Scale:
        """Intensity scale of the scan, of its first channel."""
        return self.scales[0]

    def to_native(self, values: npt.NDArray[Any], order: int = 1) -> FloatMap:
        """Resample working values to the native voxels of the brain.

        Only values inside the working brain mask count: linear interpolation is normalised by the share of brain,
        so that a map that is constant over the brain stays constant up to its edge.

        Args:
            values: Working values (S, H, W).
            order: 1 linear, 0 nearest.

        Returns:
            Native values (X, Y, Z); zero outside the brain, and if linear next to zero where it is not `reached`.
        """
        if order == 0:
            native = to_native(values, self.grid, order=0)
        else:
            native = to_native(np.where(self.mask, values, 0), self.grid)
            share = self._native_share
            np.divide(native, share, out=native, where=share > 0)
        native[~self.native_mask] = 0
        return native

    @cached_property
    def reached(self) -> BoolArray:
        """Voxels of the brain that working brain reaches (X, Y, Z); of the others :meth:`to_native` knows nothing."""
        return self.native_mask & (self._native_share > 0)

    @cached_property
    def _native_share(self) -> FloatMap:
        """Share of working brain that reaches each native voxel, cleaned of rounding (X, Y, Z)."""
        share = to_native(self.mask, self.grid)
        share[share < 1e-3] = 0
        return share


def prepare(
    volume: Volume,
    mask: npt.NDArray[Any] | None,
    config: DataConfig,
    others: Sequence[Volume] = (),
    *,
    accept: Collection[str] = (),
    orientation: Orientation = "axial",
    surroundings: Surroundings | None = None,
) -> WorkingScan:
    """Find the brain, lay the working grid, scale intensities and resample.

    Intensities are averaged over brain voxels only (resampling is normalised by the share of brain), so that neither
    skull nor background bleeds into the edge of the brain [ours].

    Args:
        volume: The scan; of several channels the first, which gives grid and brain.
        mask: Brain (X, Y, Z), or None for a skull-stripped scan.
        config: The data section of the configuration.
        others: Further channels on the same voxels, see :func:`maediff.volume.read_channel`; each has its own scale.
        accept: Codes that :func:`~maediff.working.brainmask.brain_mask` does not refuse.
        orientation: Orientation of the slices.
        surroundings: Of the first channel, if they were looked at before.

    Raises:
        InputError: Empty mask, a whole head without a mask, or a brain without contrast.
        GeometryError: The mask has another shape than the scan.
    """
    channels = (volume, *others)
    surroundings = surroundings or Surroundings(volume)
    native_mask, notes = brain_mask(volume, mask, accept, surroundings)
    slices, brain, grid, scales = _cut(channels, native_mask, config, orientation)
    said = dict.fromkeys((*(note for channel in channels for note in channel.notes), *notes))
    background = surroundings.background if mask is None else None
    return WorkingScan(slices, brain, grid, scales, native_mask, tuple(said), background)


def turned(scan: WorkingScan, channels: Sequence[Volume], config: DataConfig, orientation: Orientation) -> WorkingScan:
    """Cut a prepared scan once more, in another orientation: its brain and the scales of its intensities stay.

    Args:
        scan: From :func:`prepare`.
        channels: The channels that it was made of.
        config: The data section of the configuration.
        orientation: Orientation of the slices.
    """
    slices, brain, grid, scales = _cut(channels, scan.native_mask, config, orientation, scan.scales)
    return replace(scan, slices=slices, mask=brain, grid=grid, scales=scales)


def _cut(
    channels: Sequence[Volume],
    native_mask: BoolArray,
    config: DataConfig,
    orientation: Orientation,
    scales: tuple[Scale, ...] = (),
) -> tuple[FloatMap, BoolArray, WorkingGrid, tuple[Scale, ...]]:
    """Return the slices of a scan, their brain, their grid and the scales, which are fitted if none are given."""
    grid = working_grid(channels[0], native_mask, config, orientation)
    share = to_working(native_mask, grid)
    scales = scales or _scales(channels, native_mask, config)
    stacks = [
        _working(scale.forward(channel.data), native_mask, grid, share, config.clip)
        for scale, channel in zip(scales, channels, strict=True)
    ]
    return np.stack(stacks, 1) if len(stacks) > 1 else stacks[0], share >= 0.5, grid, scales


def _working(scaled: FloatMap, native_mask: BoolArray, grid: WorkingGrid, share: FloatMap, clip: float) -> FloatMap:
    """Resample scaled intensities (X, Y, Z) to the working grid (S, H, W), averaged over brain voxels only."""
    above = np.clip(scaled, -1, clip) + np.float32(1)
    above[~native_mask] = 0
    inside = share >= 0.5
    slices = to_working(above, grid)
    np.divide(slices, share, out=slices, where=inside)
    slices -= np.float32(1)
    slices[~inside] = -1
    np.clip(slices, -1, clip, out=slices)
    return slices


def _scales(channels: Sequence[Volume], native_mask: BoolArray, config: DataConfig) -> tuple[Scale, ...]:
    """Fit the scale of each channel; errors name its file."""
    side = None
    if config.scaling == "contralateral":
        from maediff.working.hemispheres import one_side  # imports torch, which other scalings do without

        first = channels[0]
        whole = _scale(first, native_mask, config).forward(first.data)
        side = one_side(np.where(native_mask, np.maximum(whole, -1), np.float32(-1)), native_mask, first.affine)
    return tuple(_scale(channel, native_mask, config, side) for channel in channels)


def _scale(channel: Volume, native_mask: BoolArray, config: DataConfig, side: BoolArray | None = None) -> Scale:
    try:
        return fit_scale(channel.data, native_mask, config, side)
    except InputError as error:
        raise InputError(f"{channel.name}: {error}") from error


def prepare_label(label: npt.NDArray[Any], grid: WorkingGrid) -> BoolArray:
    """Resample a lesion label to the working grid.

    Args:
        label: Lesion (X, Y, Z), boolean.
        grid: The scan's working grid.

    Returns:
        Boolean (S, H, W): True where at least half of the pixel is lesion. Smaller lesions vanish here; use
        :func:`maediff.working.spatial.lesion_slices` to find all slices with lesion.
    """
    result: BoolArray = to_working(np.asarray(label, dtype=bool), grid) >= 0.5
    return result
