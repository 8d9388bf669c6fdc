"""Training volumes drawn from label maps."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from maediff import load_model, train
from maediff.bundle import export_bundle
from maediff.config import load_config
from maediff.errors import ConfigError
from maediff.heads.labels import WHITE, indices
from maediff.heads.sample import Look
from maediff.heads.scan import draw_scan
from maediff.heads.volume import draw_volume, draw_volume_lesions
from maediff.jobs.adapt import adapt_model

SHAPE = (24, 32, 32)


def drawn(head, masks, seed, **settings):
    return draw_volume([head], masks, SHAPE, 2.5, torch.Generator().manual_seed(seed), look=Look(**settings))


def test_lesions_change_nothing_but_themselves(head, masks):
    """Healthy and lesioned volume share anatomy, contrast and noise."""
    changed = 0
    for seed in range(6):
        volume = drawn(head, masks, seed)
        far = torch.nn.functional.max_pool3d(volume.lesion[None, None], 7, 1, 3)[0, 0] == 0
        difference = (volume.image - volume.healthy).abs()
        assert float(difference[far].sum()) < 1.0
        changed += bool(difference.max() > 0.05)
    assert changed > 3


def test_working_units(head):
    highest = []
    for seed in range(6):
        volume = drawn(head, [], seed)
        assert volume.image.shape == volume.lesion.shape == volume.brain.shape == SHAPE
        assert volume.image.min() >= -1
        assert volume.image.max() <= 1.5
        assert (volume.image[~volume.brain] == -1).all()
        highest.append(float(volume.healthy[volume.brain].quantile(0.99)))
    assert 0.7 < max(highest) < 1.3  # in some scans a bright lesion elsewhere is the last percentile


def test_a_volume_depends_on_its_seed_alone(head, masks):
    assert torch.equal(drawn(head, masks, 3).image, drawn(head, masks, 3).image)
    assert not torch.equal(drawn(head, masks, 3).image, drawn(head, masks, 4).image)


def test_without_lesions_a_volume_is_healthy(head, masks):
    volume = drawn(head, masks, 0, lesions=False)
    assert torch.equal(volume.image, volume.healthy)
    assert volume.lesion.max() == 0


def test_slices_belong_together(head):
    """Neighbouring slices are alike, far ones are not: one pose, contrast and scanner for all of them."""
    volume = drawn(head, [], 1, lesions=False, kind="t1")

    def likeness(first, second):
        both = volume.brain[first] & volume.brain[second]
        pair = torch.stack([volume.healthy[first][both], volume.healthy[second][both]])
        return float(torch.corrcoef(pair)[0, 1])

    assert likeness(12, 13) > 0.8
    assert likeness(12, 13) > likeness(12, 18) + 0.1


def test_lesions_reach_across_slices(head):
    """A lesion is a solid body: where it is in a slice, it mostly is in one of the next slices too."""
    shares = []
    for seed in range(8):
        lesion = drawn(head, [], seed).lesion > 0.2
        inner = lesion[1:-1]
        if inner.any():
            shares.append(float((inner & (lesion[2:] | lesion[:-2])).sum() / inner.sum()))
    assert len(shares) > 3
    assert sum(shares) / len(shares) > 0.6


def test_oedema_is_bright_on_flair_and_dark_on_t1(head, monkeypatch):
    monkeypatch.setattr("maediff.heads.volume.draw_material", lambda rng: "gliosis")
    for kind, sign in (("flair", 1), ("t1", -1)):
        volume = drawn(head, [], 5, kind=kind, faintest=1.0)
        inside = volume.lesion > 0.5
        assert inside.any()
        assert sign * float((volume.image - volume.healthy)[inside].mean()) > 0.05


def test_lesions_have_every_shape(head, masks):
    found = [
        lesion
        for seed in range(40)
        for lesion in draw_volume_lesions(head, masks, torch.Generator().manual_seed(seed), 0.8, 0.25)
    ]
    kinds = [lesion.kind for lesion in found]
    assert {"tumour", "ms"} <= set(kinds)
    assert all(0.8 * 0.25 <= lesion.opacity <= 0.8 for lesion in found)
    assert max(lesion.radius_mm for lesion in found) > 25
    spots = [
        lesion.mask for lesion in found if lesion.mask is not None and lesion.mask.voxels.shape == head.classes.shape
    ]
    assert spots
    white = torch.isin(head.classes.int(), torch.tensor(indices(WHITE)).int())
    for mask in spots[:5]:
        assert float((mask.voxels.bool() & white).sum() / mask.voxels.sum()) > 0.4


def test_a_small_volume_lies_in_tissue_somewhere_in_the_brain(head):
    places = set()
    for seed in range(12):
        volume = draw_volume([head], [], (8, 8, 8), 1.0, torch.Generator().manual_seed(seed), look=Look(lesions=False))
        assert volume.brain.any()
        places.add(float(volume.brain.float().mean()))
    assert len(places) > 1


def test_a_volume_beside_the_brain_is_an_error(head, monkeypatch):
    monkeypatch.setattr("maediff.heads.volume.draw_rim", lambda rng: -1000.0)
    with pytest.raises(ValueError, match="lies in the brain"):
        draw_volume([head], [], (4, 4, 4), 2.5, torch.Generator().manual_seed(3), look=Look(lesions=False))


SMALL = (
    "data.size=[32, 32]",
    "heads.slices=24",
    "partition.window=16",
    "partition.stride=16",
    "model.channels=[8, 16]",
    "model.attention=[false, false]",
    "model.mae_width=16",
    "model.mae_depth=1",
    "train.max_steps=2",
    "train.batch_size=2",
    "train.val_every=2",
    "train.pictures=2",
)


@pytest.fixture(scope="module")
def model(head_folder, tmp_path_factory):
    """A model of two steps, and the run that made it."""
    run = tmp_path_factory.mktemp("volumetric") / "run"
    return train(load_config("volumetric", SMALL), head_folder, run, device="cpu")


def test_a_model_is_trained_from_label_maps_and_scores_a_scan_on_its_own_grid(model, head, masks, tmp_path):
    scan = draw_scan(head, masks, torch.Generator().manual_seed(4), kind="t2", lesion="tumour", spacing_mm=(1.5, 3.0))
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan.image, scan.affine), path)
    result = load_model(model, "cpu").predict(path)
    assert result.anomaly.shape == result.reconstruction.shape == scan.image.shape
    np.testing.assert_array_equal(result.volume.affine, scan.affine)
    assert result.anomaly[result.brain_mask].max() > 0
    assert (result.anomaly[~result.brain_mask] == 0).all()
    np.testing.assert_array_equal(load_model(model, "cpu").predict(path).anomaly, result.anomaly)


def test_its_pictures_show_a_slice_of_each_volume(model):
    with Image.open(model.parent / "pictures" / "step-000002.png") as picture:
        assert picture.size == (2 * 32, 3 * 32)
        rows = np.asarray(picture).reshape(3, 32, 2, 32)
    assert (rows[0].max((0, 2)) > 100).all()  # both show a brain


def test_the_card_says_that_it_is_volumetric(model):
    assert "in three dimensions" in (model / "README.md").read_text()


def test_it_cannot_be_adapted_to_slices(model, tmp_path):
    with pytest.raises(ConfigError, match="volumetric model learns from drawn volumes alone"):
        adapt_model(model, tmp_path, tmp_path / "out", device="cpu")


def test_it_cannot_be_a_bundle_of_slices(model, tmp_path):
    with pytest.raises(ConfigError, match="volumetric model cannot be a MONAI bundle"):
        export_bundle(model, tmp_path / "bundle")
