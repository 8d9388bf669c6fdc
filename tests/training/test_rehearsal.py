"""A short training is asked for healthy tissue itself, and for the base's answer wherever it could forget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from maediff.methods.objective import estimate_of, perturb
from maediff.training.rehearsal import Rehearsal, exchanged
from maediff.training.stream import SampleStream

KNOTS = torch.tensor([0.3, -0.9, 0.8, 0.1, -0.2])


@pytest.fixture
def config(tiny):
    return tiny("lesions.share=0.6", "diffusion.objective=x0", "diffusion.loss=x0_l2")


@pytest.fixture
def base(random_network, config):
    return random_network(config)


@pytest.fixture
def batch(config, discs):
    stream = SampleStream(discs(9), config, 12, augmented=False)
    return default_collate([stream[index] for index in range(12)])


def test_healthy_tissue_is_its_own_target_and_lesions_become_what_the_base_makes_of_them(base, config, batch):
    found = Rehearsal(base, config)(batch, 1)
    noised = perturb(found, found["mask"], base.abar)
    with torch.no_grad():
        answer = base(noised.image, noised.mask, found["t"]).prediction
    answer = estimate_of(config.diffusion, answer, noised)
    same = slice(3, None)  # the first three of twelve have other intensities
    lesion = ((batch["image"] != batch["clean"]) & (batch["clean"] > -1))[same]
    assert lesion.any()
    assert torch.equal(found["image"][same], batch["image"][same])
    assert torch.equal(found["clean"][same][~lesion], batch["clean"][same][~lesion])
    # the base is asked before targets are replaced, so noise in lesions is that of the painted slice
    asked = perturb({**found, "clean": batch["clean"]}, found["mask"], base.abar)
    assert torch.equal(asked.image, noised.image)
    torch.testing.assert_close(found["clean"][same][lesion], answer[same][lesion])
    brain = found["clean"][:3] > -1
    torch.testing.assert_close(found["clean"][:3][brain], answer[:3][brain])


def test_exchanged_intensities_depend_on_the_batch_alone(base, config, batch):
    rehearsal = Rehearsal(base, config)
    first, again, other = (rehearsal(batch, number)["image"] for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first[:3], other[:3])
    assert torch.equal(first[3:], batch["image"][3:])
    assert torch.equal(first[:3] == -1, batch["image"][:3] == -1)


def test_exchanging_is_interpolation_between_the_points():
    image = torch.linspace(-0.999, 1.4, 400).view(1, 20, 20)
    wanted = np.interp(image.numpy(), np.linspace(-1, 1, len(KNOTS)), KNOTS.numpy())
    np.testing.assert_allclose(exchanged(image, KNOTS).numpy(), wanted, atol=1e-5)
    background = torch.full((1, 2, 2), -1.0)
    assert torch.equal(exchanged(background, KNOTS), background)


def test_the_straight_line_changes_nothing():
    image = torch.rand(1, 8, 8) * 2 - 1
    torch.testing.assert_close(exchanged(image, torch.linspace(-1, 1, 6)), image)
