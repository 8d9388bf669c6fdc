"""Where windows lie, how much of its slice the network sees for each, and which are computed together.

That the network may see less than the whole slice is ours: the MAE's features tell it of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maediff.config import Config
from maediff.methods.maediff.partition import boxes, crop, pixels_of, views, window_grid, windows_with_brain
from maediff.methods.objective import sampler_times


@dataclass(frozen=True)
class Plan:
    """Which windows of which slices are computed, and how much of its slice the network sees for each.

    Attributes:
        corners: (N, 2) origins of the windows of a slice.
        windows: (K, 1 + N) slice index and indexes into `corners` of the windows that share a pass, the first of them
            repeated where there are fewer than N.
        views: (K, 4) first row, first column, rows and columns; views of one shape are neighbours.
        passes: Forward passes of a window: timesteps times draws times sampler steps.
    """

    corners: Tensor
    windows: Tensor
    views: Tensor
    passes: int

    def batch(self, start: int, most: int, device: torch.device) -> Batch:
        """Take windows from `start` on whose views have one shape, up to `most`."""
        stop = start + self._alike(start, most)
        where, which = self.windows[start:stop].to(device).split([1, self.windows.shape[1] - 1], 1)
        first, (rows, columns) = self.views[start:stop, :2].to(device), self.views[start, 2:].tolist()
        return Batch(where.squeeze(1), which, first, (rows, columns))

    def _alike(self, start: int, most: int) -> int:
        shapes = self.views[start : start + most, 2:]
        return int((shapes == shapes[0]).all(1).int().cumprod(0).sum())


def plan(mask: Tensor, config: Config) -> Plan:
    """Lay windows over slices and leave out those without brain.

    Args:
        mask: (S, H, W) bool, the brain; sides are multiples of :func:`view_step`.
        config: Window, stride, context, windows a pass of a slice, timesteps, draws and sampler.
    """
    kind, side = config.diffusion, config.partition.window
    height, width = mask.shape[1:]
    corners = window_grid((height, width), side, config.partition.stride)
    windows = _shared(windows_with_brain(mask, corners, side), corners, side, _together(config, (height, width)))
    box, halo = torch.tensor([[0, 0, height, width]]).expand(len(mask), -1), max(height, width)
    if config.infer.context != "slice":
        box = boxes(mask)
    if isinstance(config.infer.context, int):
        halo = config.infer.context
    seen = _bounds(
        [views(corners[which], side, halo, box[windows[:, 0]], view_step(config)) for which in windows.T[1:]]
    )
    # one shape after another, and in it one corner after another: a batch hides the same cells
    order = ((seen[:, 2] * width + seen[:, 3]) * len(corners) + windows[:, 1]).argsort(stable=True)
    steps = sum(len(sampler_times(kind, t)) - 1 for t in kind.test_timesteps)
    return Plan(corners, windows[order], seen[order], steps * config.infer.draws)


def view_step(config: Config) -> int:
    """Return what the sides of a view must be multiples of: the cell, and what folding and U-Net levels divide by."""
    return math.lcm(config.partition.cell, config.model.patch * 2 ** (len(config.model.channels) - 1))


@dataclass(frozen=True)
class Batch:
    """Windows of one batch: slices (B,), indexes into corners (B, N), first rows and columns of views, their shape."""

    where: Tensor
    which: Tensor
    first: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.where)

    def see(self, images: Tensor, index: Tensor) -> Tensor:
        """Cut the views (B, C, h, w) out of images (S, C, H, W), of which `index` names one for each window."""
        return crop(images, index, self.first, self.shape)

    def united(self, placed: Tensor) -> Tensor:
        """Unite what stands for each corner (N, 1, H, W), zero outside its window, over windows of a pass."""
        return placed[self.which].amax(1)

    def see_own(self, images: Tensor, cell: int = 1) -> Tensor:
        """Cut the views, or their cells, out of the image or features (B, C, h, w) of each pass."""
        own = torch.arange(len(images), device=images.device)
        return crop(images, own, self.first // cell, (self.shape[0] // cell, self.shape[1] // cell))

    def pixels(self, side: tuple[int, int]) -> Tensor:
        """Number the views' pixels in a stack of slices of shape `side`, as in its flat memory."""
        rows, columns = pixels_of(self.first, self.shape)
        return ((self.where[:, None, None] * side[0] + rows) * side[1] + columns).flatten()


def _together(config: Config, shape: tuple[int, int]) -> int:
    """Bound the windows of a pass by the setting, and so that half of the slice stays visible."""
    return max(1, min(config.infer.together, shape[0] * shape[1] // (2 * config.partition.window**2)))


def _shared(windows: Tensor, corners: Tensor, side: int, most: int) -> Tensor:
    """Let windows of a slice that do not overlap share a pass. [ours]

    Args:
        windows: (K, 2) slice index and index into `corners`, slice by slice.
        corners: (N, 2) origins.
        side: Side of a window, pixels.
        most: Windows a pass.

    Returns:
        (G, 1 + most), see :class:`Plan`.
    """
    if most == 1:
        return windows
    gap = (corners[:, None] - corners).abs()
    distance = torch.where((gap >= side).any(2), gap.square().sum(2), 0)
    known: dict[tuple[int, ...], list[list[int]]] = {}  # most slices hold the same windows
    rows = []
    for where in windows[:, 0].unique().tolist():
        which = tuple(windows[windows[:, 0] == where, 1].tolist())
        known[which] = known.get(which) or _groups(which, distance, most)
        rows += [[where, *group] for group in known[which]]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 1 + most)


def _groups(which: tuple[int, ...], distance: Tensor, most: int) -> list[list[int]]:
    """Group windows greedily: the one with the fewest partners left first, and each with the farthest of them.

    Args:
        which: Windows of a slice.
        distance: (N, N) between windows, squared pixels; 0 where they overlap.
        most: Size of a group; smaller ones repeat their first window.
    """
    left, groups = list(which), []
    while left:
        partners = (distance[left][:, left] > 0).sum(1)
        group = [left.pop(int(partners.argmin()))]
        while left and len(group) < most:
            nearest = distance[group][:, left].amin(0)
            if not bool(nearest.any()):
                break
            group.append(left.pop(int(nearest.argmax())))
        groups.append(group + group[:1] * (most - len(group)))
    return groups


def _bounds(seen: list[Tensor]) -> Tensor:
    """Bound the views (K, 4) of the windows that share a pass."""
    stacked = torch.stack(seen)
    first, last = stacked[..., :2].amin(0), (stacked[..., :2] + stacked[..., 2:]).amax(0)
    return torch.cat([first, last - first], 1)
