"""Folding pixels into channels, against torch's own in two dimensions and einops in three."""

from __future__ import annotations

import einops
import pytest
import torch
from torch.nn import functional as F

from maediff.methods.maediff.folding import folded, unfolded


def test_squares_are_folded_as_torch_does():
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(folded(images, 4), F.pixel_unshuffle(images, 4))
    assert torch.equal(unfolded(folded(images, 4), 4), images)


def test_cubes_are_folded_in_the_order_of_their_voxels():
    volumes = torch.rand(2, 3, 4, 6, 8)
    wanted = einops.rearrange(volumes, "b c (d p) (h q) (w r) -> b (c p q r) d h w", p=2, q=2, r=2)
    assert torch.equal(folded(volumes, 2), wanted)


@pytest.mark.parametrize("patch", [1, 2])
def test_unfolding_undoes_folding_of_volumes(patch):
    volumes = torch.rand(2, 3, 4, 6, 8)
    assert torch.equal(unfolded(folded(volumes, patch), patch), volumes)
