"""How much maps flicker from slice to slice."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.three_dimensions import flicker

SHAPE = (20, 24, 16)


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def test_what_is_alike_in_all_directions_does_not_flicker(noise):
    assert flicker(noise, np.ones(SHAPE, bool), np.eye(4), (1, 1, 1)) == pytest.approx(1, abs=0.03)


def test_what_is_the_same_in_every_slice_has_no_flicker(noise):
    alike = np.broadcast_to(noise[:, :, :1], SHAPE)
    assert flicker(alike, np.ones(SHAPE, bool), np.eye(4), (1, 1, 1)) == 0


def test_it_is_counted_per_millimetre_and_within_the_brain(noise):
    brain = np.zeros(SHAPE, bool)
    brain[4:15, 5:19, 3:12] = True
    own = flicker(noise, brain, np.diag([1.0, 1.0, 2.0, 1.0]), (1, 1, 2))
    assert own == pytest.approx(flicker(noise, brain, np.eye(4), (1, 1, 1)) / 2)
    noise[~brain] = 1000
    assert flicker(noise, brain, np.diag([1.0, 1.0, 2.0, 1.0]), (1, 1, 2)) == own


def test_the_order_of_storage_does_not_matter(noise):
    axes = np.eye(4)[:, [2, 0, 1, 3]]  # voxel axes run along z, x and y
    turned = np.transpose(noise, (2, 0, 1))
    brain = np.ones(SHAPE, bool)
    assert flicker(turned, np.transpose(brain, (2, 0, 1)), axes, (1, 1, 1)) == pytest.approx(
        flicker(noise, brain, np.eye(4), (1, 1, 1))
    )
