"""Neighbouring slices as context (2.5-D): what a network sees of the slices around the one it restores. [ours]

`data.neighbours` slices on each side are put behind the channels of the slice itself; only the slice is reconstructed.
Its map therefore depends on these slices alone, and the next slice has its own neighbours.

A lesion goes on in the neighbours, so a network that saw it there would draw it. Hence a neighbour shows no more of
what is to be restored than the slice itself does:

- MAEDiff: the window is blank (0) in the neighbours, and cells that touch it are hidden from the masked autoencoder in
  all of them. The slice's own window is noised, not blank. Those of the neighbours are not shown noised too, since a
  lesion under 2n + 1 draws of noise is plainer than under one.
- DDPM: there is no window, and blank neighbours would tell nothing. They are noised like the slice, each by its own
  noise; what goes on in all of them is plainer than in one slice, so more noise is needed. A walk of several steps is
  refused: at the low noise of its last steps, the neighbours would show a lesion that has gone from the slice.

Beyond the ends of a scan neighbours are empty (-1), as slices above and below the brain are. Repeating the last slice
would show it twice. A scan to which empty slices are appended is therefore reconstructed as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def with_neighbours(images: Tensor, index: Tensor, offsets: Sequence[int]) -> Tensor:
    """Take slices of a scan and put their neighbours behind their channels.

    Args:
        images: (S, C, H, W), all slices of the scan in order.
        index: (B,) integers, the slices to take.
        offsets: Distance of each neighbour, see `DataConfig.offsets`.

    Returns:
        (B, C + K, H, W) with K = C times the number of neighbours; those beyond the scan are -1.

    Example:
        >>> scan = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
        >>> with_neighbours(scan, torch.tensor([0, 1]), (-1, 1)).flatten(1)
        tensor([[ 1., -1.,  2.],
                [ 2.,  1.,  3.]])
    """
    if not offsets:
        return images[index]
    place = index[:, None] + torch.tensor((0, *offsets), device=index.device)
    found = images[place.clamp(0, len(images) - 1)]
    found[(place < 0) | (place >= len(images))] = -1.0
    return found.flatten(1, 2)
