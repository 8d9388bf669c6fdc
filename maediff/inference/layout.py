"""Where windows lie, how much of its slice the network sees for each, and which are computed together.

That the network may see less than the whole slice is ours: the MAE's features tell it of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maediff.config import Config
from maediff.models.objective import sampler_times
from maediff.partition import boxes, crop, pixels_of, views, window_grid, windows_with_brain


@dataclass(frozen=True)
class Plan:
    """Which windows of which slices are computed, and how much of its slice the network sees for each.

    Attributes:
        corners: (N, 2) origins of the windows of a slice.
        windows: (K, 2) slice index and index into `corners`.
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
        where, which = self.windows[start:stop].to(device).unbind(1)
        first, (rows, columns) = self.views[start:stop, :2].to(device), self.views[start, 2:].tolist()
        return Batch(where, which, first, (rows, columns))

    def _alike(self, start: int, most: int) -> int:
        shapes = self.views[start : start + most, 2:]
        return int((shapes == shapes[0]).all(1).int().cumprod(0).sum())


def plan(mask: Tensor, config: Config) -> Plan:
    """Lay windows over slices and leave out those without brain.

    Args:
        mask: (S, H, W) bool, the brain; sides are multiples of :func:`view_step`.
        config: Window, stride, context, timesteps, draws and sampler.
    """
    kind, side = config.diffusion, config.partition.window
    height, width = mask.shape[1:]
    corners = window_grid((height, width), side, config.partition.stride)
    windows = windows_with_brain(mask, corners, side)
    box, halo = torch.tensor([[0, 0, height, width]]).expand(len(mask), -1), max(height, width)
    if config.infer.context != "slice":
        box = boxes(mask)
    if isinstance(config.infer.context, int):
        halo = config.infer.context
    seen = views(corners[windows[:, 1]], side, halo, box[windows[:, 0]], view_step(config))
    # one shape after another, and in it one corner after another: a batch hides the same cells
    order = ((seen[:, 2] * width + seen[:, 3]) * len(corners) + windows[:, 1]).argsort(stable=True)
    steps = sum(len(sampler_times(kind, t)) - 1 for t in kind.test_timesteps)
    return Plan(corners, windows[order], seen[order], steps * config.infer.draws)


def view_step(config: Config) -> int:
    """Return what the sides of a view must be multiples of: the cell, and what folding and U-Net levels divide by."""
    return math.lcm(config.partition.cell, config.model.patch * 2 ** (len(config.model.channels) - 1))


@dataclass(frozen=True)
class Batch:
    """Windows of one pass: slice, index into the corners, first row and column of the view, and its shape."""

    where: Tensor
    which: Tensor
    first: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.where)

    def see(self, images: Tensor, index: Tensor) -> Tensor:
        """Cut the views (B, C, h, w) out of images (S, C, H, W), of which `index` names one for each window."""
        return crop(images, index, self.first, self.shape)

    def see_cells(self, features: Tensor, cell: int) -> Tensor:
        """Cut the views' cells out of the features (B, D, r, r') of each window."""
        own = torch.arange(len(features), device=features.device)
        return crop(features, own, self.first // cell, (self.shape[0] // cell, self.shape[1] // cell))

    def pixels(self, side: tuple[int, int]) -> Tensor:
        """Number the views' pixels in a stack of slices of shape `side`, as in its flat memory."""
        rows, columns = pixels_of(self.first, self.shape)
        return ((self.where[:, None, None] * side[0] + rows) * side[1] + columns).flatten()
