"""From tissue to intensity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maediff.heads.contrast import KINDS, Relaxation, Sequence, draw_contrast, draw_tissue
from maediff.heads.labels import CSF, class_index, indices, outside_brain

WHITE, CORTEX, FLUID = (class_index(name) for name in ("white matter", "cortex", "sulcal CSF"))


def drawn(kind, count=40):
    return [draw_contrast(torch.Generator().manual_seed(seed), kind) for seed in range(count)]


def test_signals_are_those_of_the_textbook():
    tissue = Relaxation(torch.tensor([850.0, 1400.0]), torch.tensor([70.0, 95.0]), torch.tensor([0.7, 0.82]))
    t1, t2, pd = (values.double().numpy() for values in (tissue.t1, tissue.t2, tissue.pd))
    spin_echo = pd * (1 - np.exp(-500 / t1)) * np.exp(-10 / t2)
    np.testing.assert_allclose(Sequence(500.0, float("inf"), 10.0).signal(tissue), spin_echo, rtol=1e-5)
    recovered = pd * np.abs(1 - 2 * np.exp(-2500 / t1) + np.exp(-9000 / t1)) * np.exp(-100 / t2)
    np.testing.assert_allclose(Sequence(9000.0, 2500.0, 100.0).signal(tissue), recovered, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "order"),
    [("t1", (FLUID, CORTEX, WHITE)), ("t2", (WHITE, CORTEX, FLUID)), ("flair", (FLUID, WHITE))],
)
def test_tissues_are_ordered_as_on_real_scans(kind, order):
    for contrast in drawn(kind):
        signal = contrast.signal[list(order)]
        assert (signal.diff() > 0).all(), (kind, signal)


@pytest.mark.parametrize("kind", KINDS)
def test_air_is_dark_and_intensities_are_not_negative(kind):
    for contrast in drawn(kind, 10):
        assert contrast.signal[0] == 0
        assert contrast.spread[0] == 0
        assert (contrast.signal >= 0).all()
        brain = [index for index in range(len(contrast.signal)) if index not in outside_brain()]
        assert 0 < contrast.signal[brain].max() <= 1.000001


def test_kinds_are_drawn_in_their_shares():
    kinds = [contrast.kind for contrast in drawn(None, 200)]
    assert set(kinds) == set(KINDS)
    assert kinds.count("pd") < kinds.count("flair")


def test_fluid_is_one_fluid():
    tissue = draw_tissue(torch.Generator().manual_seed(3))
    fluid = tissue.t1[indices(CSF)]
    assert (fluid / fluid.mean() - 1).abs().max() < 0.15


def test_a_random_contrast_has_no_relaxation():
    contrast = draw_contrast(torch.Generator().manual_seed(0), "random")
    with pytest.raises(ValueError, match="no pulse sequence"):
        contrast.signal_of(draw_tissue(torch.Generator()))
