"""Hierarchical patch partition: upper-level windows and sub-level cells, cutting windows out and blending them back.

Source: Xu, Wang, Du, *MAEDiff*, arXiv 2401.10561, Figure 1. The paper divides a slice into p x p patches, of which
one is diffused and reconstructed, and lays r x r cells over the feature map; at test time the window slides with
step s. Clamping the last window to the border and starting training windows at any pixel are ours, and so are cubes of
voxels instead of squares of pixels: shapes (H, W) may be (D, H, W) wherever they are not cut or blended.

:func:`cut` and :class:`Blend` are inverse: cutting views out and blending them back gives the slice. The sliding engine
uses both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def origins(length: int, window: int, stride: int) -> list[int]:
    """List the first pixels of sliding windows along one axis; the last is clamped to the border.

    Args:
        length: Pixels along the axis, at least `window`.
        window: Side p of the window, pixels.
        stride: Step s, 1 to `window`.

    Returns:
        Increasing origins whose windows cover every pixel.

    Raises:
        ValueError: `window` or `stride` out of range.

    Example:
        >>> origins(96, 48, 20)
        [0, 20, 40, 48]
    """
    if not 1 <= window <= length:
        raise ValueError(f"window {window} must be within 1 and the length {length}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride} must be within 1 and the window {window}")
    last = length - window
    return [*range(0, last, stride), last]


def window_grid(shape: tuple[int, ...], window: int, stride: int) -> Tensor:
    """List all sliding windows of a slice.

    Returns:
        (N, 2) integers: first row and first column of each window; (N, 3) of a volume.
    """
    starts = [torch.tensor(origins(length, window, stride)) for length in shape]
    return torch.cartesian_prod(*starts).reshape(-1, len(shape))


def random_window(mask: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Choose the origin of a training window that holds a random pixel of the brain.

    Args:
        mask: (H, W) bool, the brain; if it is empty, every pixel counts.
        window: Side p, pixels.
        generator: Source of randomness.

    Returns:
        (2,) integers: first row and first column.
    """
    pixels = mask.nonzero() if bool(mask.any()) else torch.ones_like(mask).nonzero()
    pixel = pixels[torch.randint(len(pixels), (1,), generator=generator)].squeeze(0)
    offset = torch.randint(window, (mask.ndim,), generator=generator)
    limit = torch.tensor(mask.shape) - window
    return torch.minimum((pixel - offset).clamp(min=0), limit)


def random_mask(brain: Tensor, window: int, most: int, generator: torch.Generator) -> Tensor:
    """Draw the mask M of a training slice: a window over the brain, or several that may overlap.

    Args:
        brain: (H, W) bool.
        window: Side p, pixels.
        most: Most windows; from 1 to this many are drawn, each number as often.
        generator: Source of randomness.

    Returns:
        (1, H, W) float32: 1 inside a window, 0 elsewhere.
    """
    count = 1 if most == 1 else int(torch.randint(1, most + 1, (), generator=generator))
    corners = torch.stack([random_window(brain, window, generator) for _ in range(count)])
    return window_masks(corners, window, tuple(brain.shape)).amax(0)


def window_masks(corners: Tensor, window: int, shape: tuple[int, ...]) -> Tensor:
    """Build the mask M of each window.

    Args:
        corners: (B, 2) integers, first row and column.
        window: Side p, pixels.
        shape: (H, W) of the slice.

    Returns:
        (B, 1, H, W) float32: 1 inside the window, 0 elsewhere.
    """

    def inside(start: Tensor, length: int) -> Tensor:
        position = torch.arange(length, device=corners.device)
        return (position >= start[:, None]) & (position < start[:, None] + window)

    masks = torch.ones(len(corners), *(1,) * (1 + len(shape)), dtype=torch.bool, device=corners.device)
    for axis, length in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = length
        masks = masks & inside(corners[:, axis], length).view(len(corners), 1, *along)
    return masks.float()


def visible_cells(mask: Tensor, cell: int) -> Tensor:
    """Find the sub-level cells that a mask leaves whole; any touched cell is hidden.

    Args:
        mask: (B, 1, H, W), nonzero where hidden; H and W multiples of `cell`.
        cell: Side of a cell, pixels.

    Returns:
        (B, H / cell, W / cell) bool, True where visible.
    """
    pool = F.max_pool3d if mask.ndim == 5 else F.max_pool2d
    return pool((mask != 0).float(), cell).squeeze(1) == 0


def blend_weight(window: int, kind: str, dims: int = 2) -> Tensor:
    """Build the weight of each pixel of a window for overlapping averages.

    Args:
        window: Side p, pixels.
        kind: "uniform" (the paper's average) or "gaussian" (ours: sigma p / 4, so that seams fade).
        dims: 2 for squares, 3 for cubes.

    Returns:
        (p, p) or (p, p, p) float32, positive.

    Raises:
        ValueError: Unknown kind.
    """
    if kind == "uniform":
        return torch.ones((window,) * dims)
    if kind != "gaussian":
        raise ValueError(f"blend {kind!r} is unknown; use 'uniform' or 'gaussian'")
    position = torch.arange(window) - (window - 1) / 2
    profile = torch.exp(-0.5 * (position / (window / 4)) ** 2)
    weight = profile
    for _ in range(dims - 1):
        weight = weight[..., None] * profile
    return weight


def cut(images: Tensor, slice_index: Tensor, origin: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cut views of one shape out of slices.

    Args:
        images: (S, C, H, W).
        slice_index: (B,) integers, which slice each view is of.
        origin: (B, 2) integers, first row and column of each view.
        shape: (h, w) of the views.

    Returns:
        (B, C, h, w), channels last in memory.
    """
    rows, columns = _rows_and_columns(origin, shape)
    return images.permute(0, 2, 3, 1)[slice_index[:, None, None], rows, columns].permute(0, 3, 1, 2)


class Blend:
    """Weighted average of views in their slices, collected batch by batch; the inverse of :func:`cut`.

    Args:
        images: (S, C, H, W), the slices; where no view has weight, the average is the unchanged slice.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.total = torch.zeros_like(images.transpose(0, 1)).flatten(1)  # (C, S * H * W)
        self.mass = torch.zeros_like(images[:, :1]).flatten()  # (S * H * W)

    def add(self, views: Tensor, weight: Tensor, slice_index: Tensor, origin: Tensor) -> None:
        """Add views to their slices.

        Args:
            views: (B, C, h, w).
            weight: (B, 1, h, w), not negative.
            slice_index: (B,) integers, which slice each view is of.
            origin: (B, 2) integers, first row and column of each view.
        """
        height, width = self.images.shape[2:]
        rows, columns = _rows_and_columns(origin, (views.shape[2], views.shape[3]))
        # flat indexes of the pixels in the stack of slices
        pixels = ((slice_index[:, None, None] * height + rows) * width + columns).flatten()
        for total, channel in zip(self.total, views.split(1, 1), strict=True):
            total.index_add_(0, pixels, (weight * channel).flatten())
        self.mass.index_add_(0, pixels, weight.flatten())

    def average(self) -> Tensor:
        """Return the slices (S, C, H, W), averaged over the views."""
        images = self.images
        total = self.total.view(-1, len(images), *images.shape[2:]).transpose(0, 1)
        mass = self.mass.view_as(images[:, :1])
        return torch.where(mass > 0, total / mass.clamp(min=1e-12), images)


def _rows_and_columns(origin: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """List the rows (B, h, 1) and columns (B, 1, w) of views, to index images with."""
    rows, columns = (origin[:, axis, None] + torch.arange(shape[axis], device=origin.device) for axis in (0, 1))
    return rows[:, :, None], columns[:, None, :]
