"""Laws of the hierarchical partition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maediff.diffusion.noise import generator
from maediff.methods.maediff.layout import boxes, views, windows_with_brain
from maediff.methods.maediff.partition import (
    Blend,
    blend_weight,
    cut,
    origins,
    random_mask,
    random_window,
    visible_cells,
    window_grid,
    window_masks,
)


@st.composite
def layouts(draw):
    """A slice's shape, a window that fits in it and a stride without gaps."""
    shape = (draw(st.integers(4, 24)), draw(st.integers(4, 24)))
    window = draw(st.integers(1, min(shape)))
    return shape, window, draw(st.integers(1, window))


@given(layouts())
def test_windows_cover_every_pixel_and_stay_inside(layout):
    shape, window, stride = layout
    corners = window_grid(shape, window, stride)
    assert (window_masks(corners, window, shape).sum(0) >= 1).all()
    assert (corners >= 0).all()
    assert (corners + window <= torch.tensor(shape)).all()
    assert len(corners.unique(dim=0)) == len(corners)


@given(st.integers(1, 60), st.data())
def test_origins_step_by_the_stride_and_end_at_the_border(length, data):
    window = data.draw(st.integers(1, length))
    stride = data.draw(st.integers(1, window))
    found = origins(length, window, stride)
    assert found[0] == 0
    assert found[-1] == length - window
    assert all(b - a == stride for a, b in pairwise(found[:-1]))
    assert all(0 < b - a <= stride for a, b in pairwise(found))


@pytest.mark.parametrize(("length", "window", "stride"), [(8, 9, 1), (8, 0, 1), (8, 4, 0), (8, 4, 5)])
def test_impossible_windows_are_refused(length, window, stride):
    with pytest.raises(ValueError, match=r"window|stride"):
        origins(length, window, stride)


def every_window(count, corners):
    """Slice index and origin of every window of a number of slices."""
    return torch.arange(count).repeat_interleave(len(corners)), corners.repeat(count, 1)


@given(layouts(), st.sampled_from(["uniform", "gaussian"]), st.integers(0, 2**31))
def test_what_is_cut_out_and_blended_back_is_the_slice(layout, kind, seed):
    shape, window, stride = layout
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slice_index, origin = every_window(2, window_grid(shape, window, stride))
    views = cut(images, slice_index, origin, (window, window))
    blend = Blend(torch.full_like(images, torch.nan))  # nothing of the slices may be looked at
    weight = blend_weight(window, kind).double().expand(len(views), 1, -1, -1)
    for part in torch.arange(len(views)).split(5):
        blend.add(views[part], weight[part], slice_index[part], origin[part])
    torch.testing.assert_close(blend.average(), images, rtol=1e-9, atol=1e-9)


@given(layouts(), st.sampled_from(["uniform", "gaussian"]), st.floats(-5, 5))
def test_blending_a_constant_gives_it_back(layout, kind, value):
    shape, window, stride = layout
    slice_index, origin = every_window(1, window_grid(shape, window, stride))
    blend = Blend(torch.zeros(1, 1, *shape))
    weight = blend_weight(window, kind).expand(len(origin), 1, -1, -1)
    blend.add(torch.full((len(origin), 1, window, window), value), weight, slice_index, origin)
    torch.testing.assert_close(blend.average(), torch.full((1, 1, *shape), value), rtol=1e-5, atol=1e-5)


def test_overlaps_are_averages_and_pixels_without_weight_stay_as_they_came():
    blend = Blend(torch.full((2, 1, 3, 4), 7.0))
    views = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    weight = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    blend.add(views, weight, torch.tensor([1, 1]), torch.tensor([[0, 0], [0, 1]]))
    assert blend.average()[1, 0].tolist() == [[1, 2.5, 3, 7], [1, 2.5, 3, 7], [7, 7, 7, 7]]
    assert (blend.average()[0] == 7).all()


@pytest.mark.parametrize("window", [1, 4, 7])
def test_blend_weights_are_positive_and_symmetric(window):
    for kind in ("uniform", "gaussian"):
        weight = blend_weight(window, kind)
        assert weight.shape == (window, window)
        assert (weight > 0).all()
        torch.testing.assert_close(weight, weight.T)
        torch.testing.assert_close(weight, weight.flip(0))
    with pytest.raises(ValueError, match="blend 'cubic'"):
        blend_weight(window, "cubic")


@given(layouts(), st.integers(0, 2**31), st.floats(0, 0.2))
def test_windows_with_brain_match_brute_force(layout, seed, density):
    shape, window, stride = layout
    mask = torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed)) < density
    corners = window_grid(shape, window, stride)
    wanted = [
        [s, n]
        for s in range(3)
        for n, (r, c) in enumerate(corners.tolist())
        if mask[s, r : r + window, c : c + window].any()
    ]
    assert windows_with_brain(mask, corners, window).tolist() == wanted


@given(layouts(), st.integers(0, 2**31), st.floats(0, 0.1))
def test_a_random_window_holds_brain_and_lies_inside(layout, seed, density):
    shape, window, _ = layout
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    corner = random_window(mask, window, generator("window", seed))
    row, column = corner.tolist()
    assert 0 <= row <= shape[0] - window
    assert 0 <= column <= shape[1] - window
    assert mask[row : row + window, column : column + window].any() or not mask.any()
    assert corner.tolist() == random_window(mask, window, generator("window", seed)).tolist()


def test_a_mask_of_one_window_is_the_random_window():
    brain = torch.zeros(24, 32, dtype=torch.bool)
    brain[5:20, 8:30] = True
    corner = random_window(brain, 6, generator("mask", 1))
    expected = window_masks(corner[None], 6, (24, 32))[0]
    assert torch.equal(random_mask(brain, 6, 1, generator("mask", 1)), expected)


def test_a_mask_of_several_windows_is_a_union_of_up_to_so_many():
    brain = torch.zeros(24, 32, dtype=torch.bool)
    brain[12, 16] = True
    brain[3, 4] = True
    areas = []
    for seed in range(60):
        mask = random_mask(brain, 4, 5, generator("mask", seed))
        assert mask.shape == (1, 24, 32)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert (mask[0] * brain).any()
        opened = -torch.nn.functional.max_pool2d(-mask, 4, 1)  # each hidden pixel lies in a whole window
        again = torch.nn.functional.max_pool2d(torch.nn.functional.pad(opened, (3, 3, 3, 3)), 4, 1)
        assert torch.equal(again, mask)
        areas.append(int(mask.sum()))
    assert min(areas) == 16  # a single window is drawn too
    assert 32 < max(areas) <= 5 * 16


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.floats(0, 0.3))
def test_a_cell_is_visible_exactly_if_the_mask_leaves_it_whole(rows, columns, cell, seed, density):
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.rand(2, 1, rows * cell, columns * cell, generator=rng) < density).float() * -0.01  # any nonzero hides
    visible = visible_cells(mask, cell)
    assert visible.shape == (2, rows, columns)
    for b in range(2):
        for i in range(rows):
            for j in range(columns):
                part = mask[b, 0, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
                assert bool(visible[b, i, j]) == bool((part == 0).all())


def test_masks_are_ones_inside_the_window_alone():
    mask = window_masks(torch.tensor([[1, 2], [0, 0]]), 2, (4, 5))
    assert mask.shape == (2, 1, 4, 5)
    assert mask[0, 0].nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert mask.sum().item() == 8


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.floats(0, 0.2))
def test_boxes_hold_the_brain_and_touch_it_on_all_sides(height, width, seed, density):
    mask = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) < density
    for brain, (top, left, bottom, right) in zip(mask, boxes(mask).tolist(), strict=True):
        inside = brain[top:bottom, left:right]
        assert inside.sum() == brain.sum()
        if brain.any():
            assert all(bool(edge.any()) for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        else:
            assert (top, left, bottom, right) == (0, 0, 0, 0)


@given(layouts(), st.integers(0, 30), st.integers(1, 8), st.integers(0, 2**31))
def test_views_are_whole_steps_that_hold_what_they_must_and_little_more(layout, halo, step, seed):
    (height, width), window, stride = layout
    height, width = height * step, width * step
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, height, width, generator=rng) < 0.05
    corners = window_grid((height, width), window, stride)
    rows = windows_with_brain(mask, corners, window)
    start, stop = views(corners[rows[:, 1]], window, halo, boxes(mask)[rows[:, 0]], step)
    assert (start % step == 0).all()
    assert (stop % step == 0).all()
    assert (start < stop).all()
    assert (start >= 0).all()
    assert (stop <= torch.tensor([height, width])).all()
    found = torch.cat([start, stop], 1).tolist()
    for (slice_, corner), (top, left, bottom, right) in zip(rows.tolist(), found, strict=True):
        hidden = window_masks(corners[corner][None], window, (height, width))[0, 0].bool() & mask[slice_]
        assert hidden[top:bottom, left:right].sum() == hidden.sum()
        assert max(bottom - top, right - left) < window + 2 * halo + 2 * step


def test_cuts_are_slices_of_their_images():
    images = torch.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    index, first = torch.tensor([1, 0, 1]), torch.tensor([[0, 0], [2, 3], [3, 5]])
    found = cut(images, index, first, (2, 2))
    for view, k, (row, column) in zip(found, index.tolist(), first.tolist(), strict=True):
        assert torch.equal(view, images[k, :, row : row + 2, column : column + 2])
