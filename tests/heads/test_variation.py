"""What varies in healthy brains: smoothly, in tissue alone, and in white matter beside the ventricles."""

from __future__ import annotations

import pytest
import torch

from maediff.heads.labels import CSF, WHITE, class_index, indices, outside_brain
from maediff.heads.plane import draw_plane
from maediff.heads.variation import draw_caps, regional_variation


@pytest.fixture
def plane(head):
    return draw_plane(head, (48, 56), 2.0, torch.Generator().manual_seed(3))


def central(plane):
    return plane.classes[len(plane.classes) // 2]


def among(plane, classes):
    return torch.isin(central(plane), torch.tensor(classes, dtype=torch.int32))


def test_tissue_varies_and_fluid_does_not(plane, rng):
    factor = regional_variation(plane, rng)
    still = among(plane, [*indices(CSF), *outside_brain()])
    assert (factor[still] == 1).all()
    assert float((factor[~still] - 1).abs().max()) < 0.16
    assert float(factor[~still].std()) > 1e-3


def test_grey_and_white_matter_vary_each_in_its_own_way(plane):
    means = []
    for seed in range(40):
        factor = regional_variation(plane, torch.Generator().manual_seed(seed))
        white, grey = among(plane, indices(WHITE)), among(plane, [class_index("cortex")])
        means.append([float(factor[white].mean()), float(factor[grey].mean())])
    assert abs(float(torch.tensor(means).T.corrcoef()[0, 1])) < 0.5


def test_caps_lie_in_white_matter_beside_the_ventricles(head):
    drawn = 0
    for seed in range(12):
        plane = draw_plane(head, (48, 56), 2.0, torch.Generator().manual_seed(seed))
        for cap in draw_caps(plane, torch.Generator().manual_seed(seed)):
            where = cap.opacity > 0
            assert float(cap.opacity.max()) <= 0.5
            assert not where[~among(plane, indices(WHITE))].any()
            if not where.any():
                continue
            drawn += 1
            fluid = among(plane, [class_index("lateral ventricle")]).nonzero().float()
            far = torch.cdist(where.nonzero().float(), fluid, p=float("inf")).min(1).values.max() * plane.pixel_mm
            assert float(far) <= 4
    assert drawn
