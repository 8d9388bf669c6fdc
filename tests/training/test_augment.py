"""Augmentation and pseudo-lesions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from maediff.config import LesionsConfig
from maediff.diffusion.noise import chance, generator, uniform
from maediff.training.augment import augment
from maediff.training.pseudo_lesions import _blob, _box_sum, add_pseudo_lesions

CLIP = 1.5


@pytest.fixture
def brain(discs):
    slices = discs(2, side=48)
    image, donor = torch.from_numpy(slices.images).float()[:, None]
    mask, _ = torch.from_numpy(slices.masks)[:, None]
    return image, mask, donor


def test_augmentation_keeps_form_and_background(brain):
    image, mask, _ = brain
    before = image.clone()
    for k in range(30):
        changed, moved = augment(image, mask, CLIP, generator(k))
        assert changed.shape == image.shape
        assert moved.dtype == torch.bool
        assert bool((changed[~moved] == -1).all())
        assert -1 <= float(changed.min()) <= float(changed.max()) <= CLIP
        assert 0.7 < float(moved.sum() / mask.sum()) < 1.4
        assert not torch.equal(changed, image)
    assert torch.equal(image, before)


def test_augmentation_depends_on_the_generator_alone(brain):
    image, mask, _ = brain
    first, again, other = (augment(image, mask, CLIP, generator(k))[0] for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_left_and_right_are_swapped_half_of_the_time_and_front_and_back_never():
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    left, front = torch.full((1, 32, 32), -0.8), torch.full((1, 32, 32), -0.8)
    left[:, :14], front[:, :, :14] = 0.8, 0.8  # rows run from left to right, columns from back to front
    swapped = 0
    for k in range(100):
        image, _ = augment(left, mask, CLIP, generator("flip", k))
        swapped += bool(image[:, 20:28, 8:24].mean() > image[:, 4:12, 8:24].mean())
        image, _ = augment(front, mask, CLIP, generator("flip", k))
        assert image[:, 8:24, 20:28].mean() < image[:, 8:24, 4:12].mean()
    assert 35 <= swapped <= 65


def test_pseudo_lesions_lie_inside_the_brain(brain):
    image, mask, donor = brain
    before = image.clone(), donor.clone()
    for k in range(40):
        changed = add_pseudo_lesions(image, mask, donor, CLIP, generator(k))
        assert changed.shape == image.shape
        assert bool((changed[~mask] == -1).all())
        assert float((changed - image).abs()[mask].max()) > 0.02
        assert -1 <= float(changed.min()) <= float(changed.max()) <= CLIP
    assert torch.equal(image, before[0])
    assert torch.equal(donor, before[1])


def test_pseudo_lesions_are_brighter_and_darker_small_and_large(brain):
    image, mask, donor = brain
    changes = [add_pseudo_lesions(image, mask, donor, CLIP, generator(k)) - image for k in range(120)]
    means = torch.tensor([float(c[c.abs() > 0.1].mean()) for c in changes if bool((c.abs() > 0.1).any())])
    assert (means > 0.1).sum() > 8
    assert (means < -0.1).sum() > 8
    sizes = torch.tensor([float((c.abs() > 0.1).sum()) for c in changes]) / float(mask.sum())
    assert float(sizes.quantile(0.1)) < 0.1
    assert float(sizes.quantile(0.9)) > 0.25


@pytest.mark.parametrize(("sign", "least", "most"), [("bright", -0.02, 9), ("dark", -9, 0.02)])
def test_a_sign_makes_lesions_of_that_sign_alone(brain, sign, least, most):
    _, mask, donor = brain
    flat = torch.where(mask, 0.2, -1.0)  # where tissue has no structure, none is blurred away either
    changes = [
        add_pseudo_lesions(flat, mask, donor, CLIP, generator(k), look=LesionsConfig(sign=sign)) - flat
        for k in range(60)
    ]
    strongest = torch.stack([change.flatten()[change.abs().argmax()] for change in changes]).abs()
    assert all(least <= float(change.min()) <= float(change.max()) <= most for change in changes)
    assert float(strongest.quantile(0.1)) < 0.25
    assert float(strongest.quantile(0.8)) > 0.5


def test_blobs_are_as_large_and_as_many_as_asked(brain):
    image, mask, donor = brain

    def area(size, spots):
        look = LesionsConfig(sign="bright", size=size, spots=spots)
        return [
            int(((add_pseudo_lesions(image, mask, donor, CLIP, generator(k), look=look) - image) > 0.03).sum())
            for k in range(40)
        ]

    small, large = area(size=(0.05, 0.06), spots=0), area(size=(0.3, 0.31), spots=0)
    assert max(small) < sorted(large)[10]
    assert area(size=(0.3, 0.31), spots=1) == area(size=(0.05, 0.06), spots=1)


def test_a_slice_without_brain_stays_as_it_is(brain):
    image, mask, donor = brain
    assert add_pseudo_lesions(image, torch.zeros_like(mask), donor, CLIP, generator(0)) is image


def test_numbers_and_coins():
    rng = generator("numbers")
    drawn = [uniform(-2, 3, rng) for _ in range(400)]
    assert -2 <= min(drawn) < -1.8
    assert 2.8 < max(drawn) < 3
    assert not any(chance(0, rng) for _ in range(50))
    assert all(chance(1, rng) for _ in range(50))


def test_most_pseudo_lesions_start_where_the_loss_sees_them(brain):
    image, mask, donor = brain
    window = torch.zeros_like(image)
    window[:, 16:24, 20:28] = 1

    def share_inside(given):
        changes = [
            (add_pseudo_lesions(image, mask, donor, CLIP, generator(k), window=given) - image).abs() for k in range(60)
        ]
        return sum(float((change * window).sum() / change.sum()) for change in changes) / 60

    assert share_inside(window) > 2 * share_inside(None)
    elsewhere = torch.zeros_like(image)
    elsewhere[:, :2, :2] = 1  # no brain there: blobs go anywhere
    assert add_pseudo_lesions(image, mask, donor, CLIP, generator(0), window=elsewhere).shape == image.shape


# A slice and its neighbours (P, C, H, W)

OFFSETS = (-2, -1, 1, 2)


def stacked(brain):
    """Five equal slices of two equal channels, and their brains."""
    image, mask, donor = brain
    return image.expand(5, 2, -1, -1), mask.expand(5, -1, -1, -1), donor.expand(5, 2, -1, -1)


def test_a_slice_and_its_neighbours_change_together_but_for_their_noise(brain):
    image, mask, _ = stacked(brain)
    for k in range(10):
        changed, moved = augment(image, mask, CLIP, generator(k))
        assert changed.shape == image.shape
        assert torch.equal(moved, moved[:1].expand(5, -1, -1, -1))
        assert bool((changed[~moved.expand_as(changed)] == -1).all())
        difference = (changed[1:] - changed[:1]).abs()
        assert float(difference.max()) > 0
        assert float(difference.mean()) < 0.05  # the strongest noise has a deviation of 0.04
        alone, its_brain = augment(image[:1], mask[:1], CLIP, generator(k))
        torch.testing.assert_close(changed[0, 0], alone[0, 0])  # the first channel of the slice is drawn as without
        assert torch.equal(its_brain, moved[:1])


@pytest.mark.parametrize("k", range(12))
def test_a_blob_goes_on_in_the_neighbours_and_ends(k):
    centre, shape = torch.tensor([24, 20]), (48, 48)
    alone = _blob(centre, shape, (0.1, 0.3), generator(k))
    cuts = _blob(centre, shape, (0.1, 0.3), generator(k), offsets=(*OFFSETS, 100))
    assert torch.equal(cuts[:1], alone)  # in the slice itself it is drawn as without neighbours
    areas = dict(zip((0, *OFFSETS, 100), (cuts > 0.25).sum((1, 2)).tolist(), strict=True))
    assert areas[100] == 0
    before, after = areas[-1] - areas[0], areas[1] - areas[0]
    assert min(before, after) <= 0  # it shrinks to one side at least
    for side in (-1, 1):
        if areas[side] < areas[0]:
            assert areas[2 * side] <= areas[side]
    assert areas[1] > 0 or areas[-1] > 0


@pytest.mark.parametrize("sign", ["any", "bright", "dark"])
def test_lesions_of_neighbours_look_like_that_of_the_slice(brain, sign):
    image, mask, donor = stacked(brain)
    look = LesionsConfig(sign=sign, spots=0, size=(0.15, 0.3))
    agree = 0
    for k in range(30):
        rng = generator("look", k)
        changed = add_pseudo_lesions(image, mask, donor, CLIP, rng, look=look, offsets=OFFSETS)
        assert changed.shape == image.shape
        assert bool((changed[~mask.expand_as(changed)] == -1).all())
        own, *others = (changed - image)[:, 0]
        strong = own.abs() > 0.2
        nearest = torch.stack([other for other in others[1:3] if bool((other.abs() > 0.1).any())] or [own])
        agree += bool((nearest[:, strong] * own[strong] >= -1e-3).float().mean() > 0.9)
    assert agree >= 27
    assert add_pseudo_lesions(image, mask & False, donor, CLIP, generator(0), offsets=OFFSETS) is image


def test_lesions_start_in_the_brain_and_window_of_the_slice_itself(brain):
    image, mask, donor = stacked(brain)
    empty = torch.cat([mask[:1], torch.zeros_like(mask[1:])])  # only the slice itself has brain
    dark = torch.where(empty, image, -1.0)
    changed = add_pseudo_lesions(dark, empty, donor, CLIP, generator(1), offsets=OFFSETS)
    assert not torch.equal(changed[0], dark[0])
    assert (changed[1:] == -1).all()


@pytest.mark.parametrize("side", [1, 3, 17])
def test_sums_of_squares_are_scipys(side):
    image = torch.rand(2, 1, 20, 15, generator=generator("box"))
    wanted = side**2 * ndimage.uniform_filter(image.numpy(), (0, 0, side, side), mode="constant")
    np.testing.assert_allclose(_box_sum(image, side), wanted, rtol=1e-4, atol=1e-5)
