"""Hierarchical patch partition: upper-level windows and sub-level cells, as pure index arithmetic.

Source: Xu, Wang, Du, *MAEDiff*, arXiv 2401.10561, Figure 1. The paper divides a slice into p x p patches, of which
one is diffused and reconstructed, and lays r x r cells over the feature map; at test time the window slides with
step s. That the last window is clamped to the border, and that training windows may start at any pixel, is ours.
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


def window_grid(shape: tuple[int, int], window: int, stride: int) -> Tensor:
    """List all sliding windows of a slice.

    Returns:
        (N, 2) integers: first row and first column of each window.
    """
    rows, columns = (torch.tensor(origins(length, window, stride)) for length in shape)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def random_window(mask: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Choose the origin of a training window that holds a random pixel of the brain.

    Args:
        mask: (H, W) bool, the brain; where it is empty, every pixel counts.
        window: Side p, pixels.
        generator: Source of randomness.

    Returns:
        (2,) integers: first row and first column.
    """
    pixels = mask.nonzero() if bool(mask.any()) else torch.ones_like(mask).nonzero()
    pixel = pixels[torch.randint(len(pixels), (1,), generator=generator)].squeeze(0)
    offset = torch.randint(window, (2,), generator=generator)
    limit = torch.tensor(mask.shape) - window
    return torch.minimum((pixel - offset).clamp(min=0), limit)


def window_masks(corners: Tensor, window: int, shape: tuple[int, int]) -> Tensor:
    """Draw the mask M of each window.

    Args:
        corners: (B, 2) integers, first row and column.
        window: Side p, pixels.
        shape: (H, W) of the slice.

    Returns:
        (B, 1, H, W) float32: 1 inside the window, 0 elsewhere.
    """

    def inside(first: Tensor, length: int) -> Tensor:
        position = torch.arange(length, device=corners.device)
        return (position >= first[:, None]) & (position < first[:, None] + window)

    rows, columns = inside(corners[:, 0], shape[0]), inside(corners[:, 1], shape[1])
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def windows_with_brain(mask: Tensor, corners: Tensor, window: int) -> Tensor:
    """Tell which windows of which slices hold at least one brain pixel.

    Args:
        mask: (S, H, W) bool, the brain.
        corners: (N, 2) origins of the windows of a slice.
        window: Side p, pixels.

    Returns:
        (K, 2) integers: slice index and index into `corners`, slice by slice.
    """
    integral = F.pad(mask.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left = corners.unbind(1)
    bottom, right = top + window, left + window
    count = integral[:, bottom, right] - integral[:, top, right] - integral[:, bottom, left] + integral[:, top, left]
    return (count > 0).nonzero()


def boxes(mask: Tensor) -> Tensor:
    """Bound the brain of each slice.

    Args:
        mask: (S, H, W) bool, the brain.

    Returns:
        (S, 4) integers: first row, first column, and the row and column behind the last; zeros where there is no brain.
    """

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        first, last = line.int().argmax(1), line.shape[1] - line.int().flip(1).argmax(1)
        return first, torch.where(line.any(1), last, 0)

    (top, bottom), (left, right) = ends(mask.any(2)), ends(mask.any(1))
    return torch.stack([top, left, bottom, right], 1)


def views(corners: Tensor, window: int, halo: int, box: Tensor, step: int) -> Tensor:
    """Choose the part of the slice that a network needs to see for each window. [ours]

    That is the window and `halo` pixels around it, cut off where the brain ends, then grown to whole steps.

    Args:
        corners: (K, 2) first row and column of each window.
        window: Side p, pixels.
        halo: Pixels of context on each side.
        box: (K, 4) the brain's box in the slice of each window, see :func:`boxes`; it meets the window's view.
        step: What sides and origins must be multiples of; it divides the slice.

    Returns:
        (K, 4) integers: first row, first column, rows, columns.
    """
    first = torch.maximum(corners - halo, box[:, :2]) // step * step
    last = -(-torch.minimum(corners + window + halo, box[:, 2:]) // step) * step
    return torch.cat([first, last - first], 1)


def crop(images: Tensor, index: Tensor, first: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cut views of one shape out of images, wherever they lie.

    Args:
        images: (S, C, H, W).
        index: (B,) which image each view is of.
        first: (B, 2) integers, first row and column of each view.
        shape: (h, w) of the views.

    Returns:
        (B, C, h, w), channels last in memory.
    """
    rows, columns = pixels_of(first, shape)
    return images.permute(0, 2, 3, 1)[index[:, None, None], rows, columns].permute(0, 3, 1, 2)


def pixels_of(first: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """List the rows (B, h, 1) and columns (B, 1, w) of views, to index images with."""
    rows, columns = (first[:, axis, None] + torch.arange(shape[axis], device=first.device) for axis in (0, 1))
    return rows[:, :, None], columns[:, None, :]


def visible_cells(mask: Tensor, cell: int) -> Tensor:
    """Find the sub-level cells that a mask leaves whole; any touched cell is hidden.

    Args:
        mask: (B, 1, H, W), nonzero where hidden; H and W multiples of `cell`.
        cell: Side of a cell, pixels.

    Returns:
        (B, H / cell, W / cell) bool, True where visible.
    """
    return F.max_pool2d((mask != 0).float(), cell).squeeze(1) == 0


def partition(image: Tensor, corners: Tensor, window: int) -> Tensor:
    """Cut windows out of slices.

    Args:
        image: (B, C, H, W).
        corners: (N, 2) origins.
        window: Side p, pixels.

    Returns:
        (N, B, C, p, p).
    """
    return torch.stack([image[..., r : r + window, c : c + window] for r, c in corners.tolist()])


def merge(patches: Tensor, corners: Tensor, shape: tuple[int, int], weight: Tensor | None = None) -> Tensor:
    """Average windows back into slices; the inverse of :func:`partition`.

    Args:
        patches: (N, B, C, p, p).
        corners: (N, 2) origins.
        shape: (H, W) of the slice.
        weight: (p, p) positive weights, see :func:`blend_weight`; uniform if None.

    Returns:
        (B, C, H, W); pixels that no window covers are 0.
    """
    window = patches.shape[-1]
    weight = torch.ones(window, window) if weight is None else weight
    weight = weight.to(patches)
    total = patches.new_zeros((*patches.shape[1:3], *shape))
    mass = patches.new_zeros(shape)
    for patch, (r, c) in zip(patches, corners.tolist(), strict=True):
        total[..., r : r + window, c : c + window] += weight * patch
        mass[r : r + window, c : c + window] += weight
    return total / torch.where(mass > 0, mass, 1)


def blend_weight(window: int, kind: str) -> Tensor:
    """Make the weight of each pixel of a window for overlapping averages.

    Args:
        window: Side p, pixels.
        kind: "uniform" (the paper's average) or "gaussian" (ours: sigma p / 4, so that seams fade).

    Returns:
        (p, p) float32, positive.

    Raises:
        ValueError: Unknown kind.
    """
    if kind == "uniform":
        return torch.ones(window, window)
    if kind != "gaussian":
        raise ValueError(f"blend {kind!r} is unknown; use 'uniform' or 'gaussian'")
    position = torch.arange(window) - (window - 1) / 2
    profile = torch.exp(-0.5 * (position / (window / 4)) ** 2)
    return torch.outer(profile, profile)
