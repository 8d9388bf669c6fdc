"""Choose which windows are computed, which share a pass, and how much of the slice the network sees. All for speed.

None of this is in the paper, which computes every window of every slice separately and shows the network the whole
slice. The network can see less because the MAE's features describe the rest. [ours]

Letters: S slices, N corners (windows of the grid of one slice), K passes of the network, G windows that share a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff.config import Config
from maediff.methods.maediff.partition import cut, window_grid
from maediff.methods.objective import sampler_times


@dataclass(frozen=True)
class Layout:
    """Which windows of which slices are computed, and how much of its slice the network sees for each.

    Attributes:
        corners: (N, 2) first row and column of the windows of a slice.
        slice_index: (K,) the slice of each pass.
        corner_index: (K, G) indexes into `corners` of the windows that share the pass; the first of them is repeated
            if there are fewer than G.
        origin: (K, 2) first row and column of the view, the part of the slice that the network sees.
        view_shape: (K, 2) rows and columns of the view; views of equal shape are adjacent.
        steps: Network evaluations per pass: timesteps times draws times sampler steps.
    """

    corners: Tensor
    slice_index: Tensor
    corner_index: Tensor
    origin: Tensor
    view_shape: Tensor
    steps: int

    def __len__(self) -> int:
        return len(self.slice_index)

    def batch(self, start: int, most: int, device: torch.device) -> Batch:
        """Return up to `most` passes from `start` on whose views have the same shape."""
        shapes = self.view_shape[start : start + most]
        alike = int((shapes == shapes[0]).all(1).int().cumprod(0).sum())
        taken = slice(start, start + alike)
        rows, columns = shapes[0].tolist()
        return Batch(
            self.slice_index[taken].to(device),
            self.corner_index[taken].to(device),
            self.origin[taken].to(device),
            (rows, columns),
        )


@dataclass(frozen=True)
class Batch:
    """A batch of passes that are computed together.

    Attributes:
        slice_index: (B,) the slice of each pass.
        corner_index: (B, G) the windows of each pass.
        origin: (B, 2) first row and column of each view.
        shape: (h, w) of the views.
    """

    slice_index: Tensor
    corner_index: Tensor
    origin: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.slice_index)

    def divided(self, count: int) -> list[Batch]:
        """Divide into at most `count` batches of nearly equal length, in order."""
        indices = (self.slice_index, self.corner_index, self.origin)
        slices, corners, origins = (index.tensor_split(min(count, len(self))) for index in indices)
        return [Batch(*part, self.shape) for part in zip(slices, corners, origins, strict=True)]

    def views(self, images: Tensor, slice_index: Tensor) -> Tensor:
        """Cut the views (B, C, h, w) out of slices (S, C, H, W), of which `slice_index` names one per pass."""
        return cut(images, slice_index, self.origin, self.shape)

    def own_views(self, images: Tensor, cell: int = 1) -> Tensor:
        """Cut the views, or their cells, out of images or features (B, C, H, W), one per pass."""
        own = torch.arange(len(images), device=images.device)
        return cut(images, own, self.origin // cell, (self.shape[0] // cell, self.shape[1] // cell))

    def united(self, placed: Tensor) -> Tensor:
        """Unite images (N, 1, H, W), one per corner and zero outside its window, over the windows of each pass."""
        return placed[self.corner_index].amax(1)


def lay_out(mask: Tensor, config: Config) -> Layout:
    """Lay windows over slices and skip those without brain.

    Args:
        mask: (S, H, W) bool, the brain; sides are multiples of :func:`view_step`.
        config: Window, stride, context, windows that share a pass, timesteps, draws and sampler.
    """
    side = config.partition.window
    height, width = mask.shape[1:]
    corners = window_grid((height, width), side, config.partition.stride)
    windows = windows_with_brain(mask, corners, side)
    slice_index, corner_index = _grouped(windows, corners, side, _most_together(config, (height, width)))
    origin, view_shape = _views(mask, corners, slice_index, corner_index, config)
    # Sorted by shape, then by corner: all views of a batch have one shape and hide the same cells.
    shape_number = view_shape[:, 0] * width + view_shape[:, 1]
    order = (shape_number * len(corners) + corner_index[:, 0]).argsort(stable=True)
    steps = sum(len(sampler_times(config.diffusion, t)) - 1 for t in config.diffusion.test_timesteps)
    return Layout(
        corners,
        slice_index[order],
        corner_index[order],
        origin[order],
        view_shape[order],
        steps * config.infer.draws,
    )


def view_step(config: Config) -> int:
    """Return the number of pixels that sides of a view are multiples of: cell, folding and U-Net levels divide it."""
    return math.lcm(config.partition.cell, config.model.patch * 2 ** (len(config.model.channels) - 1))


def windows_with_brain(mask: Tensor, corners: Tensor, window: int) -> Tensor:
    """Return which windows of which slices hold at least one brain pixel.

    Args:
        mask: (S, H, W) bool, the brain.
        corners: (N, 2) origins of the windows of a slice.
        window: Side p, pixels.

    Returns:
        (windows, 2) integers: slice index and index into `corners`, slice by slice.
    """
    integral = F.pad(mask.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left = corners.unbind(1)
    bottom, right = (corners + window).unbind(1)
    count = integral[:, bottom, right] - integral[:, top, right] - integral[:, bottom, left] + integral[:, top, left]
    return (count > 0).nonzero()


def boxes(mask: Tensor) -> Tensor:
    """Compute the bounding box of the brain in each slice.

    Args:
        mask: (S, H, W) bool, the brain.

    Returns:
        (S, 4) integers: first row, first column, and the row and column behind the last; zeros if there is no brain.
    """

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        first, last = line.int().argmax(1), line.shape[1] - line.int().flip(1).argmax(1)
        return first, torch.where(line.any(1), last, 0)

    (top, bottom), (left, right) = ends(mask.any(2)), ends(mask.any(1))
    return torch.stack([top, left, bottom, right], 1)


def views(corners: Tensor, window: int, halo: int, box: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Choose the part of the slice that a network needs to see for each window. [ours]

    That is the window and `halo` pixels around it, clipped to the box of the brain, then grown to whole steps.

    Args:
        corners: (K, 2) first row and column of each window.
        window: Side p, pixels.
        halo: Pixels of context on each side.
        box: (K, 4) the brain's box in the slice of each window, see :func:`boxes`; it meets the window's view.
        step: Sides and origins are multiples of it; it divides the sides of the slice.

    Returns:
        First row and column, and the row and column behind the last; (K, 2) integers each.
    """
    start = torch.maximum(corners - halo, box[:, :2]) // step * step
    stop = -(-torch.minimum(corners + window + halo, box[:, 2:]) // step) * step
    return start, stop


def _views(
    mask: Tensor, corners: Tensor, slice_index: Tensor, corner_index: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """Return the view of each pass that `infer.context` allows: origin and shape, (K, 2) each."""
    height, width = mask.shape[1:]
    context = config.infer.context
    box = torch.tensor([[0, 0, height, width]]).expand(len(mask), -1) if context == "slice" else boxes(mask)
    halo = context if isinstance(context, int) else max(height, width)
    of_group = [
        views(corners[index], config.partition.window, halo, box[slice_index], view_step(config))
        for index in corner_index.T
    ]
    origin = torch.stack([start for start, _ in of_group]).amin(0)
    end = torch.stack([stop for _, stop in of_group]).amax(0)
    return origin, end - origin


def _most_together(config: Config, shape: tuple[int, int]) -> int:
    """Return the most windows per pass: the setting, limited so that half of the slice stays visible."""
    return max(1, min(config.infer.together, shape[0] * shape[1] // (2 * config.partition.window**2)))


def _grouped(windows: Tensor, corners: Tensor, side: int, most: int) -> tuple[Tensor, Tensor]:
    """Group windows of a slice that do not overlap into shared passes. [ours]

    Args:
        windows: Slice index and index into `corners` of each window, slice by slice.
        corners: (N, 2) first row and column of each window.
        side: Side of a window, pixels.
        most: G, windows per pass.

    Returns:
        `slice_index` (K,) and `corner_index` (K, G), see :class:`Layout`.
    """
    if most == 1:
        return windows[:, 0], windows[:, 1:]
    gap = (corners[:, None] - corners).abs()
    distance = torch.where((gap >= side).any(2), gap.square().sum(2), 0)
    groups_of: dict[tuple[int, ...], list[list[int]]] = {}  # most slices hold the same windows
    slice_index: list[int] = []
    corner_index: list[list[int]] = []
    for index in windows[:, 0].unique().tolist():
        own = tuple(windows[windows[:, 0] == index, 1].tolist())
        if own not in groups_of:
            groups_of[own] = _groups(own, distance, most)
        slice_index += [index] * len(groups_of[own])
        corner_index += groups_of[own]
    return torch.tensor(slice_index, dtype=torch.long), torch.tensor(corner_index, dtype=torch.long).reshape(-1, most)


def _groups(own: tuple[int, ...], distance: Tensor, most: int) -> list[list[int]]:
    """Group windows greedily: start with the window that has the fewest partners left, and add its farthest ones.

    Args:
        own: Windows of a slice, as indexes into the corners.
        distance: (N, N) between windows, squared pixels; 0 if they overlap.
        most: Size of a group; smaller ones repeat their first window.
    """
    left = list(own)
    groups = []
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
