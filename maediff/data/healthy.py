"""Healthy training scans as whole volumes, for baselines without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from maediff.data.cases import Case
from maediff.errors import InputError
from maediff.typing import BoolArray
from maediff.volume import Volume, read_mask, read_nifti
from maediff.working.brainmask import brain_mask
from maediff.working.hemispheres import axial_axes


def healthy_scans(cases: Sequence[Case]) -> Iterator[tuple[Volume, BoolArray]]:
    """Read training scans with their brains, without the axial slices that hold any of a lesion label.

    Raises:
        InputError: Every slice of a scan holds some of its label, or a scan cannot be used.
    """
    for case in cases:
        volume = read_nifti(case.image)
        brain, _ = brain_mask(volume, read_mask(case.mask, volume, "brain mask") if case.mask else None)
        if case.label:
            _, *in_plane = axial_axes(volume.affine)
            brain = brain & ~read_mask(case.label, volume, "label").any(tuple(in_plane), keepdims=True)
        if not brain.any():
            raise InputError(f"{case.id}: every slice holds some of the lesion label; leave the scan out")
        yield volume, brain
