"""Intensity and voxelwise z-scores as methods: their statistics from training scans, and their maps of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from maediff.config import Config
from maediff.data.cases import Case
from maediff.errors import GeometryError, InputError
from maediff.evaluation.baselines import HealthyStatistics, filter_map, fit_zscore, intensity_map, zscore_map
from maediff.methods.build import Untrained
from maediff.typing import BoolArray, FloatMap
from maediff.volume import Volume, read_mask, read_nifti
from maediff.working.brainmask import brain_mask

COMMON_SPACES = {3: "Talairach", 4: "MNI", 5: "another template"}
"""NIfTI codes of sform or qform that say that voxels of two scans may be compared."""


def untrained_weights(config: Config, cases: Sequence[Case]) -> dict[str, Tensor]:
    """Collect what a method without a network knows of healthy training scans.

    Slices (third axis) that hold any of a lesion label are left out, as in training.

    Args:
        config: Its method is "intensity" or "zscore".
        cases: Training scans.

    Returns:
        The state of :class:`~maediff.methods.untrained.Untrained`.

    Raises:
        GeometryError: Method zscore, and a scan that does not say that it lies in a template's space.
        InputError: Fewer than three scans.
    """
    if config.method == "intensity":
        return Untrained({}).state_dict()
    found = fit_zscore(_healthy(cases))
    parts = {"mean": found.mean, "std": found.std, "count": found.count, "affine": found.affine}
    return Untrained({name: torch.from_numpy(part) for name, part in parts.items()}).state_dict()


def untrained_maps(network: Untrained, volume: Volume, brain: BoolArray, config: Config) -> tuple[FloatMap, FloatMap]:
    """Make the anomaly map and what a healthy scan would look like, on the scan's own voxels.

    The map is in units of the brain's median over its dark end (intensity) or of standard deviations (zscore); the
    healthy scan is the brain's median everywhere, or the mean of the healthy scans in this scan's units; outside the
    brain it is the scan.

    Args:
        network: What :func:`untrained_weights` collected.
        volume: The scan.
        brain: Its brain (X, Y, Z).
        config: Method and score.

    Raises:
        GeometryError: Method zscore, and a scan that does not say that it lies in a template's space.
        InputError: The brain has no contrast.
    """
    low, middle = np.percentile(volume.data[brain], [1.0, 50.0])
    if config.method == "intensity":
        values = intensity_map(volume.data, brain, config.score.sign)
        healthy = np.where(brain, np.float32(middle), volume.data)
    else:
        check_common_space(volume, "method zscore")
        parts = {name: value.cpu().numpy() for name, value in network.named_buffers()}
        statistics = HealthyStatistics(**{**parts, "affine": parts["affine"].astype(np.float64)})
        values = zscore_map(volume, brain, statistics, config.score.sign)
        healthy = np.where(brain, low + (middle - low) * statistics.mean_on(volume), volume.data).astype(np.float32)
    return filter_map(values, brain, volume.spacing_mm, config.score), healthy


def check_common_space(volume: Volume, what: str) -> None:
    """Refuse a scan whose header does not place it in a template's space.

    Args:
        volume: The scan.
        what: What compares it with others, in messages.

    Raises:
        GeometryError: Neither sform nor qform has the code of a template.
    """
    codes = [int(volume.header[name]) for name in ("sform_code", "qform_code")]
    if not set(codes) & set(COMMON_SPACES):
        allowed = ", ".join(f"{code} ({name})" for code, name in COMMON_SPACES.items())
        raise GeometryError(
            f"{volume.name}: sform and qform have the codes {codes}, so its voxels cannot be compared with those of "
            f"other scans; {what} needs scans in a template's space, codes {allowed}: register them first, or do "
            "without it"
        )


def _healthy(cases: Sequence[Case]) -> Iterator[tuple[Volume, BoolArray]]:
    for case in cases:
        volume = read_nifti(case.image)
        check_common_space(volume, "method zscore")
        brain, _ = brain_mask(volume, read_mask(case.mask, volume, "brain mask") if case.mask else None)
        if case.label:
            brain = brain & ~read_mask(case.label, volume, "label").any((0, 1))
        if not brain.any():
            raise InputError(f"{case.id}: every slice holds some of the lesion label; leave the scan out")
        yield volume, brain
