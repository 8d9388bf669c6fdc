"""Pathology as tissue change."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.errors import InputError
from maediff.heads.contrast import draw_contrast
from maediff.heads.labels import class_index, outside_brain
from maediff.heads.lesions import MATERIALS, cut_mask, draw_lesions, lesion_room, lesion_signal, read_masks
from maediff.heads.plane import draw_plane

WHITE = class_index("white matter")


@pytest.mark.parametrize(
    ("kind", "material", "sign"),
    [("t2", "gliosis", 1), ("flair", "gliosis", 1), ("t1", "gliosis", -1), ("t2", "tumour", 1), ("t1", "tumour", -1)],
)
def test_longer_relaxation_is_bright_on_t2_and_flair_and_dark_on_t1(kind, material, sign):
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        contrast = draw_contrast(rng, kind)
        changed = lesion_signal(contrast, material, rng)
        assert sign * float(changed[WHITE] - contrast.signal[WHITE]) > -0.01, seed  # the faintest hardly differ


def test_tumours_are_mostly_bright_on_flair():
    """More water makes T1 longer, which darkens FLAIR, and T2, which brightens it more."""
    bright = 0
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        contrast = draw_contrast(rng, "flair")
        bright += bool(lesion_signal(contrast, "tumour", rng)[WHITE] > contrast.signal[WHITE])
    assert bright > 50


def test_blood_is_dark_and_enhancement_bright():
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        t2, t1 = draw_contrast(rng, "t2"), draw_contrast(rng, "t1")
        assert lesion_signal(t2, "blood", rng)[WHITE] < t2.signal[WHITE]
        assert lesion_signal(t1, "enhancement", rng)[WHITE] > t1.signal[WHITE]


def test_a_cavity_comes_close_to_fluid():
    rng = torch.Generator().manual_seed(0)
    contrast = draw_contrast(rng, "t2")
    fluid = contrast.signal[class_index("sulcal CSF")]
    before, after = (
        float((values[WHITE] - fluid).abs()) for values in (contrast.signal, lesion_signal(contrast, "cavity", rng))
    )
    assert after < 0.6 * before


def test_random_contrasts_shift_either_way():
    signs = set()
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        contrast = draw_contrast(rng, "random")
        signs.add(float(torch.sign(lesion_signal(contrast, MATERIALS[0], rng)[WHITE] - contrast.signal[WHITE])))
    assert {-1.0, 1.0} <= signs


def test_lesions_lie_in_the_brain_and_severity_bounds_them(head, masks):
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        plane = draw_plane(head, (48, 56), 1.2, rng)
        centre = plane.classes[len(plane.classes) // 2]
        outside = torch.isin(centre, torch.tensor(outside_brain(), dtype=torch.int32))
        for lesion in draw_lesions(plane, masks, rng, severity=0.5):
            assert lesion.opacity[outside].abs().max() == 0
            assert 0 < lesion.opacity.max() <= 0.5 * 1.7 + 1e-6
            assert lesion.material in MATERIALS


def test_many_lesions_are_as_large_as_gliomas(head):
    """Blobs of 40 mm and more, as far as the brain of the toy head goes."""
    plane = draw_plane(head, (48, 48), 2.0, torch.Generator().manual_seed(0), "axial")
    brain = float((lesion_room(plane) > 0.5).sum())
    shares = []
    for seed in range(150):
        drawn = draw_lesions(plane, [], torch.Generator().manual_seed(seed))
        largest = max((float((lesion.opacity > lesion.opacity.max() / 2).sum()) for lesion in drawn), default=0.0)
        shares.append(largest / brain)
    assert 0.15 < np.mean(np.array(shares) > 0.4) < 0.6
    assert np.mean(np.array(shares) < 0.1) > 0.2


def test_no_lesion_where_there_is_no_brain(head, rng):
    plane = draw_plane(head, (48, 56), 1.2, rng)
    empty = type(plane)(
        torch.zeros_like(plane.classes), torch.full_like(plane.depth, 30.0), plane.place, plane.pixel_mm
    )
    assert draw_lesions(empty, [], rng) == []
    assert float(lesion_room(empty).max()) == 0


def test_a_mask_is_cut_where_it_lies_in_the_brain(head, masks):
    """The ball of the fixture lies left of the middle at mid height: mirrored at times, never in front or behind."""
    found = []
    for seed in range(80):
        rng = torch.Generator().manual_seed(seed)
        plane = draw_plane(head, (32, 40), 1.8, rng)
        shape = cut_mask(masks[0], plane, rng)
        if shape.any():
            found.append(plane.place[:, shape > 0].mean(1))
    middle = torch.stack(found)
    assert len(found) > 5
    assert {bool(x > 0) for x in middle[:, 0]} == {True, False}
    assert float(middle[:, 1].mean().abs()) < 0.25


def test_empty_and_unreadable_masks_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no lesion masks"):
        read_masks(tmp_path, in_white=True)
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(InputError, match=r"empty\.nii\.gz.*empty"):
        read_masks(tmp_path, in_white=True)
