"""Slices through a head."""

from __future__ import annotations

import pytest
import torch

from maediff.heads.labels import outside_brain
from maediff.heads.plane import FINE, draw_plane, draw_pose


def test_a_plane_has_classes_depth_and_place(head, rng):
    plane = draw_plane(head, (48, 56), 1.5, rng)
    assert plane.classes.shape[1:] == plane.depth.shape == plane.place.shape[1:] == (96, 112)
    assert set(plane.classes.unique().tolist()) <= set(head.classes.unique().tolist())
    assert plane.pixel_mm == 1.5 / FINE


def test_depth_is_negative_in_the_brain(head, rng):
    for _ in range(5):
        plane = draw_plane(head, (48, 56), 1.5, rng)
        centre = plane.classes[len(plane.classes) // 2]
        outside = torch.isin(centre, torch.tensor(outside_brain(), dtype=torch.int32))
        assert (plane.depth[outside] > 0).all()


def test_the_same_generator_draws_the_same_plane(head):
    first, second = (draw_plane(head, (32, 32), 2.0, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.classes, second.classes)
    other = draw_plane(head, (32, 32), 2.0, torch.Generator().manual_seed(6))
    assert not torch.equal(first.depth, other.depth)


@pytest.mark.parametrize(("orientation", "normal"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_the_normal_of_an_orientation_hardly_changes_within_a_slice(head, orientation, normal):
    spread = torch.stack(
        [
            draw_plane(head, (48, 48), 1.5, torch.Generator().manual_seed(seed), orientation).place.std((1, 2))
            for seed in range(6)
        ]
    ).mean(0)
    assert int(spread.argmin()) == normal


def test_a_straight_cut_looks_up_the_volume(head):
    pose = draw_pose((32, 40), 2.0, torch.Generator().manual_seed(0), "axial")
    straight = type(pose)(torch.eye(3), pose.u - pose.u.mean(), pose.v - pose.v.mean(), False, pose.pixel_mm)
    plane = straight.cut(head, 3.0, 1.0, torch.zeros(3, 64, 80))
    centre = head.box.mean(0)
    for row, column in ((32, 40), (20, 50), (45, 30)):
        point = centre + torch.tensor([float(straight.u[row]), float(straight.v[column]), 3.0])
        x, y, z = point.round().long().tolist()
        assert plane.classes[0, row, column] == head.classes[x, y, z]
    mirrored = type(pose)(torch.eye(3), straight.u, straight.v, True, pose.pixel_mm)
    reflected = mirrored.cut(head, 3.0, 1.0, torch.zeros(3, 64, 80))
    assert float((reflected.place[0] + plane.place[0]).abs().max()) < 1e-5


def test_an_unknown_orientation_is_refused(head, rng):
    with pytest.raises(ValueError, match=r"oblique.*axial, coronal, sagittal"):
        draw_plane(head, (32, 32), 2.0, rng, "oblique")
