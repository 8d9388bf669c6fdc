"""Brain extraction: the network's grid and way back, on heads of which the brain is known."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from maediff.errors import InputError
from maediff.extraction import brain, extract_brain
from maediff.extraction.network import STRIDE, ExtractionNet
from maediff.extraction.scale import normalise
from maediff.volume import Volume, new_header

SHAPE = (60, 72, 64)


def ball(shape, radius):
    middle = (np.array(shape) - 1) / 2
    return ((np.indices(shape) - middle[:, None, None, None]) ** 2).sum(0) <= radius**2


def scan_of(data, affine):
    return Volume(data.astype(np.float32), affine, new_header(affine, data.shape, "scanner"))


class Bright(torch.nn.Module):
    """Takes for brain what is brighter than 0.65."""

    def forward(self, x):
        assert all(side % STRIDE == 0 for side in x.shape[2:])
        return 40 * (x - 0.65)


def head(spacing=(3.0, 3.0, 3.0)):
    affine = np.diag([*spacing, 1.0])
    grid = np.indices(SHAPE) * np.array(spacing)[:, None, None, None]
    distance = np.sqrt(((grid - grid.reshape(3, -1).mean(1)[:, None, None, None]) ** 2).sum(0))
    return scan_of(np.where(distance < 60, 100.0, np.where(distance < 75, 30.0, 0.0)), affine), distance < 60


class TestWayBack:
    @pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (2.5, 3.0, 3.5)])
    def test_the_mask_lies_where_the_brain_lies(self, spacing):
        scan, truth = head(spacing)
        mask = extract_brain(scan, Bright()).mask
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.97

    def test_the_order_of_the_axes_changes_nothing(self):
        scan, _ = head()
        turned = nib.as_closest_canonical(nib.Nifti1Image(scan.data, scan.affine))
        order = nib.orientations.axcodes2ornt(("P", "I", "R"))
        other = turned.as_reoriented(order)
        found = extract_brain(scan_of(np.asarray(other.dataobj), other.affine), Bright()).mask
        back = nib.as_closest_canonical(nib.Nifti1Image(found.astype(np.uint8), other.affine))
        expected = extract_brain(scan, Bright()).mask
        assert np.mean(np.asarray(back.dataobj).astype(bool) != expected) < 2e-3

    def test_thin_appendages_are_removed(self):
        scan, truth = head()
        centre = np.array(SHAPE) // 2
        data = scan.data.copy()
        data[centre[0] - 1 : centre[0] + 1, centre[1], :] = 100
        mask = extract_brain(scan_of(data, scan.affine), Bright()).mask
        assert not mask[centre[0], centre[1], 4]
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.97


class TestSpacing:
    def test_a_flat_head_gets_thicker_slices_and_a_note(self):
        thick, truth = head((3.0, 3.0, 3.0))
        flat = scan_of(thick.data[:, :, 2::3], np.diag([3.0, 3.0, 3.0, 1.0]))
        found = extract_brain(flat, Bright())
        alone = [extract_brain(flat, Bright(), (height,)) for height in brain.HEIGHTS_MM]
        best = max(alone, key=lambda one: one.certainty)  # of several slice distances, that of the clearest border
        assert found.certainty == best.certainty
        assert found.slice_mm == best.slice_mm
        assert [one.slice_mm for one in alone] == pytest.approx([h / flat.data.shape[2] for h in brain.HEIGHTS_MM])
        np.testing.assert_array_equal(found.mask, best.mask)
        assert "mend the header" in found.notes[0]
        assert 2 * (found.mask & truth[:, :, 2::3]).sum() / (found.mask.sum() + truth[:, :, 2::3].sum()) > 0.9

    def test_a_brain_is_preferred_to_a_clearer_speck(self, monkeypatch):
        thick, _ = head((3.0, 3.0, 3.0))
        flat = scan_of(thick.data[:, :, 2::3], np.diag([3.0, 3.0, 3.0, 1.0]))
        mask = np.ones(flat.data.shape, bool)
        looks = iter([brain._Look(mask, 0.99, 5.0, 80.0), brain._Look(mask, 0.9, 6.0, 1200.0)])
        monkeypatch.setattr(brain, "_look", lambda *_: next(looks))
        assert extract_brain(flat, Bright(), (150.0, 180.0)).slice_mm == 6.0

    @pytest.mark.parametrize(("radius", "shrinks"), [(45, False), (55, True)])
    def test_a_brain_that_is_too_long_gets_smaller_pixels(self, radius, shrinks):
        mask = ball((120, 120, 30), radius)
        found = brain._smaller_pixels(mask, np.diag([2.0, 2.0, 5.0, 1.0]))
        if shrinks:
            np.testing.assert_allclose(np.linalg.norm(found[:3, :3], axis=0)[2], 5.0)
            length = np.flatnonzero(mask.any((1, 2))).size * np.linalg.norm(found[:3, 0])
            assert length == pytest.approx(175)
        else:
            assert found is None

    def test_a_slab_whose_header_says_so_is_believed(self):
        thick, _ = head((3.0, 3.0, 3.0))
        slab = scan_of(thick.data[:, :, 20:40], np.diag([3.0, 3.0, 4.5, 1.0]))
        assert extract_brain(slab, Bright()).slice_mm is None


def test_without_a_brain_the_reason_is_said():
    dark = scan_of(20 + np.arange(np.prod(SHAPE)).reshape(SHAPE) % 7, np.diag([3.0, 3.0, 3.0, 1.0]))
    with pytest.raises(InputError, match="give a brain mask"):
        extract_brain(dark, lambda x: torch.full_like(x, -9.0))


def test_intensities_do_not_depend_on_their_unit():
    rng = np.random.default_rng(0)
    image = np.where(ball(SHAPE, 25), rng.random(SHAPE) + 0.5, 0).astype(np.float32)
    np.testing.assert_allclose(normalise(image), normalise(1000 * image), atol=1e-5)


def test_certainty_is_the_soft_dice_of_probability_and_mask():
    inside = ball(SHAPE, 20)
    assert brain.certainty(inside.astype(np.float32)) == 1
    assert brain.certainty(np.zeros(SHAPE, np.float32)) == 0
    assert brain.certainty(np.where(inside, 0.75, 0).astype(np.float32)) == pytest.approx(2 * 0.75 / (0.75 + 1))


def test_the_package_holds_the_weights_and_their_card():
    folder = Path(brain.WEIGHTS).parent
    assert (folder / "model.safetensors").stat().st_size < 3 * 2**20
    card = (folder / "README.md").read_text()
    assert "SynthSeg" in card
    assert "Apache" in card
    brain.packaged_net.cache_clear()
    assert sum(p.numel() for p in brain.packaged_net().parameters()) == sum(
        p.numel() for p in ExtractionNet().parameters()
    )
