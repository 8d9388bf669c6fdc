"""DISYRE's anomalies: shapes, foreign texture and tissue-selective shifts are what the papers describe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.cluster import KMeans

from maediff.methods import foreign_anomalies
from maediff.methods.foreign_anomalies import CLUSTERS, corrupt, draw_shape, matched_texture, some_tissues


def rng(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pair(discs):
    """Two slices and their brains, each (1, 32, 32)."""
    slices = discs(2)
    images, masks = torch.from_numpy(slices.images).float(), torch.from_numpy(slices.masks)
    return (images[:1], masks[:1]), (images[1:], masks[1:])


# The mixing equation


def test_the_change_is_proportional_to_severity_and_inside_the_brain(pair):
    (clean, brain), foreign = pair
    for seed in range(30):
        full, third, none = (corrupt(clean, brain, foreign, rng(seed), severity=a, clip=9.0) for a in (1.0, 1 / 3, 0.0))
        torch.testing.assert_close(3 * (third - clean), full - clean)
        assert torch.equal(none, clean)
        assert torch.equal(full[~brain], clean[~brain])
        assert not torch.equal(full, clean)


def test_a_slice_without_brain_stays(pair):
    (clean, brain), foreign = pair
    assert corrupt(clean, brain & False, foreign, rng(0), severity=1.0, clip=1.5) is clean


def test_intensities_stay_within_working_units(pair):
    (clean, brain), foreign = pair
    for seed in range(60):
        mixed = corrupt(clean, brain, foreign, rng(seed), severity=1.0, clip=1.5)
        assert -1 <= float(mixed.min()) <= float(mixed.max()) <= 1.5


# Shapes


def point_brain(side):
    """A brain of one pixel in the middle, so that boxes and spheres lie there whole."""
    brain = torch.zeros(1, side, side, dtype=torch.bool)
    brain[0, side // 2, side // 2] = True
    return brain


@pytest.mark.parametrize("side", [129, 65])
def test_a_third_each_are_boxes_spheres_and_blobs_of_the_stated_size(side, monkeypatch):
    monkeypatch.setattr(foreign_anomalies, "_BLURRED", 0.0)
    kinds = {"box": 0, "sphere": 0, "blobs": 0}
    for seed in range(300):
        shape = draw_shape(point_brain(side), rng(seed))[0]
        if not torch.equal(shape, shape.flip(0, 1)):
            kinds["blobs"] += 1
            continue
        turned = torch.equal(shape, shape.T) and torch.equal(shape, shape.flip(0))
        rows, columns = (shape.any(axis).sum().item() * 128 / side for axis in (1, 0))
        sphere = turned and abs(float(shape.sum()) / (np.pi / 4) - (rows * side / 128) ** 2) < 0.14 * shape.sum()
        kinds["sphere" if sphere else "box"] += 1
        longest = 44 if sphere else 44 * (np.cos(np.pi / 12) + np.sin(np.pi / 12))
        assert 10 - 4 <= min(rows, columns) <= max(rows, columns) <= longest + 4
    assert all(0.25 < count / 300 < 0.42 for count in kinds.values()), kinds


def test_seven_in_ten_have_a_blurred_rim():
    brain = torch.ones(1, 128, 128, dtype=torch.bool)
    soft = [bool(((shape > 0) & (shape < 1)).any()) for shape in (draw_shape(brain, rng(k)) for k in range(300))]
    assert 0.63 < np.mean(soft) < 0.77


def test_rims_are_blurred_as_scipy_does(monkeypatch):
    brain = point_brain(96)
    monkeypatch.setattr(foreign_anomalies, "_RIM", (2.0, 2.0))
    blurs = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(foreign_anomalies, "_BLURRED", share)
        blurs[share] = draw_shape(brain, rng(5))[0].numpy()
    wanted = ndimage.gaussian_filter(blurs[0.0], 2.0 * 96 / 128, mode="constant", radius=5)
    np.testing.assert_allclose(blurs[1.0], wanted, atol=1e-5)


# Texture


def test_a_foreign_texture_has_the_intensities_beneath_it_in_its_own_order(pair):
    (clean, brain), (foreign, other) = pair
    where = brain.clone()
    where[:, :, :16] = False
    found = matched_texture(clean, foreign, other, where)
    both = where & other
    assert torch.equal(found[~both], clean[~both])
    assert torch.equal(found[both].sort().values, clean[both].sort().values)
    order = foreign[both].argsort(stable=True)
    assert (found[both][order].diff() >= 0).all()


# Shifts


def test_tissues_are_whole_clusters_of_k_means(pair):
    (clean, brain), _ = pair
    levels = clean[brain].numpy()[:, None]
    starts = np.quantile(levels, (np.arange(CLUSTERS) + 0.5) / CLUSTERS)[:, None]
    labels = KMeans(CLUSTERS, init=starts, n_init=1, max_iter=10, tol=0).fit(levels).predict(levels)
    where, sets = torch.zeros_like(brain), set()
    where[0, 16, 16] = True
    for seed in range(60):
        chosen = some_tissues(clean, brain, where, rng(seed))
        assert chosen[where].all()
        assert not chosen[~brain].any()
        shares = [float(chosen[brain].numpy()[labels == label].mean()) for label in range(CLUSTERS)]
        assert all(share < 0.05 or share > 0.95 for share in shares)
        assert max(shares) > 0.95
        sets.add(tuple(round(share) for share in shares))
    assert len(sets) > 10  # of 16


def test_a_shift_is_one_number_within_one_that_spares_the_other_tissues(pair, monkeypatch):
    """With the slice itself as the foreign one, the texture changes nothing: what is left is the shift."""
    monkeypatch.setattr(foreign_anomalies, "_BLURRED", 0.0)
    (clean, brain), _ = pair
    clean = torch.where(brain, 0.2 + clean / 10, clean)
    shifts, spared = [], 0
    for seed in range(80):
        change = (corrupt(clean, brain, (clean, brain), rng(seed), severity=1.0, clip=9.0) - clean)[brain]
        shifted = change[change.abs() > 1e-6]
        if len(shifted):
            assert float(shifted.max() - shifted.min()) < 1e-5
            shifts.append(float(shifted[0]))
        spared += len(shifted) < len(change)
    assert -1 <= min(shifts) < -0.7
    assert 0.7 < max(shifts) <= 1
    assert spared > 60
