"""Methods without a network: what they know of healthy scans, as buffers, so that it travels in a model folder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_PARTS = ("mean", "std", "count", "affine")


class Untrained(nn.Module):
    """Voxelwise statistics of healthy scans (method zscore), or nothing (method intensity).

    Sources: Saase et al. 2020 (voxelwise z-scores), Meissen et al. 2021 (intensity alone is hard to beat on FLAIR). The
    maps are made by :mod:`maediff.evaluation.baselines`.

    Args:
        statistics: ``mean``, ``std`` and ``count`` (X, Y, Z) and ``affine`` (4, 4); empty for method intensity.
    """

    def __init__(self, statistics: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in _PARTS:
            self.register_buffer(name, statistics.get(name, torch.zeros(0)).clone().float())
