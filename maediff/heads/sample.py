"""One synthetic slice: its healthy version, the same slice with lesions, the brain and the lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maediff.config import Orientation
from maediff.diffusion.noise import chance, uniform
from maediff.heads.acquisition import draw_acquisition
from maediff.heads.contrast import Contrast, Kind, draw_contrast
from maediff.heads.fields import shrink, smooth_field
from maediff.heads.labels import BrainLabels
from maediff.heads.lesions import Lesion, LesionMask, draw_lesions, lesion_signal
from maediff.heads.plane import FINE, Plane, draw_plane
from maediff.heads.variation import draw_caps, regional_variation

_LEAST_BRAIN = 0.02
_TRIES = 8
_SHARP = (0.0, 0.0)
_LEAK_SHARE, _LEAK_MM = 0.15, (6.0, 30.0)
"""Share of slices whose brain mask holds muscle, scalp or skull at some places, and how far it reaches there."""
_BRIGHT_SHARE, _BRIGHTEST = 0.25, 0.8
"""Share of slices of scans whose large bright lesion, here or on other slices, is the last percentile; how far above
that of healthy tissue it lies at most, as a share of the distance between both percentiles."""


@dataclass(frozen=True)
class HeadSlice:
    """A synthetic slice in working units: -1 and 1 at the scan's 1st and 99th percentile, -1 outside the brain.

    A volume has (D, H, W) for (H, W), see :mod:`maediff.heads.volume`.

    Attributes:
        healthy: (H, W).
        image: (H, W), with lesions.
        brain: (H, W) bool, a brain mask with the errors of real stripping.
        lesion: (H, W) 0 to 1, opacity of the lesions.
        kind: Kind of contrast.
    """

    healthy: Tensor
    image: Tensor
    brain: Tensor
    lesion: Tensor
    kind: Kind


@dataclass(frozen=True)
class Look:
    """What drawn slices and volumes look like.

    Attributes:
        severity: Highest opacity of lesions, 0 to 1.
        faintest: Lowest opacity of lesions, as a share of the highest; faint lesions are as frequent as strong ones.
        lesions: Whether to draw lesions.
        random_share: Share of random contrasts.
        kind: Kind of contrast; drawn if None.
        percentiles: Percentiles of the scan's brain that map to -1 and 1, as in `data.percentiles`.
        clip: Upper limit of intensities.
    """

    severity: float = 1.0
    faintest: float = 0.2
    lesions: bool = True
    random_share: float = 0.27
    kind: Kind | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    clip: float = 1.5


def draw_slice(
    heads: Sequence[BrainLabels],
    masks: Sequence[LesionMask],
    shape: tuple[int, int],
    spacing_mm: float,
    rng: torch.Generator,
    *,
    look: Look | None = None,
    orientation: Orientation = "axial",
) -> HeadSlice:
    """Draw a slice through one of the heads.

    Args:
        heads: Label maps.
        masks: Real lesion masks for their shapes; may be empty.
        shape: (H, W), working pixels.
        spacing_mm: Side of a working pixel.
        rng: Source of randomness.
        look: Contrasts and lesions.
        orientation: "axial", "coronal" or "sagittal".
    """
    look = look or Look()
    for _ in range(_TRIES):
        head = heads[int(torch.randint(len(heads), (), generator=rng))]
        plane = draw_plane(head, shape, spacing_mm, rng, orientation)
        brain, rim = _brain_mask(plane, rng)
        if float(brain.float().mean()) >= _LEAST_BRAIN:
            break
    contrast = draw_contrast(rng, look.kind, look.random_share)
    scanner = draw_acquisition(shape, rng)
    found = draw_lesions(plane, masks, rng, look.severity, look.faintest) if look.lesions else []
    low, high = scaled_range(contrast, head, rim, look.percentiles, rng)
    spread = contrast.spread[plane.classes[0, ::FINE, ::FINE]]
    variation = regional_variation(plane, rng)
    ideal = with_lesions(looked_up(contrast.signal, plane), plane, contrast, draw_caps(plane, rng), rng)

    def scanned(signal: Tensor) -> Tensor:
        units = 2 * (scanner.apply(signal * variation, spread) - low) / (high - low) - 1
        return torch.where(brain, units.clamp(-1, look.clip), -1.0)

    healthy = scanned(ideal)
    if not found:
        return HeadSlice(healthy, healthy, brain, torch.zeros(shape), contrast.kind)
    image = scanned(with_lesions(ideal, plane, contrast, found, rng))
    opacity = torch.stack([lesion.opacity for lesion in found]).amax(0)
    lesion = shrink(opacity, _SHARP, FINE) * brain
    return HeadSlice(healthy, image, brain, lesion, contrast.kind)


def looked_up(values: Tensor, plane: Plane) -> Tensor:
    """Average the value of each class over the thickness of the slice (h, w)."""
    found = values.index_select(0, plane.classes.reshape(-1)).reshape(plane.classes.shape)
    return found.mean(0) if len(found) > 1 else found[0]


def with_lesions(
    ideal: Tensor, plane: Plane, contrast: Contrast, lesions: Sequence[Lesion], rng: torch.Generator
) -> Tensor:
    """Mix the signal of changed tissue into a slice (h, w), one lesion after another."""
    for lesion in lesions:
        changed = looked_up(lesion_signal(contrast, lesion.material, rng), plane)
        ideal = ideal + lesion.opacity * (changed - ideal)
    return ideal


def _brain_mask(plane: Plane, rng: torch.Generator) -> tuple[Tensor, float]:
    """Draw a brain mask (H, W) like those of stripping tools, and its usual rim beyond the tissue, mm."""
    depth = shrink(plane.depth, _SHARP, FINE)
    rim = draw_rim(rng)
    wobble = 1.5 * float(torch.rand((), generator=rng)) ** 2 * smooth_field((depth.shape[0], depth.shape[1]), 8, rng)[0]
    return depth + wobble < rim + _leaks((depth.shape[0], depth.shape[1]), rng), rim


def _leaks(shape: tuple[int, int], rng: torch.Generator) -> Tensor | float:
    """Draw how much farther a mask reaches where the tool that made it took other tissue for brain, mm (H, W)."""
    if not chance(_LEAK_SHARE, rng):
        return 0.0
    field = smooth_field(shape, uniform(10, 30, rng), rng)[0]
    return uniform(*_LEAK_MM, rng) * torch.sigmoid(6 * (field - 0.8))


def draw_rim(rng: torch.Generator) -> float:
    """Draw how far a brain mask reaches beyond the tissue, mm; some are too tight, some hold meninges."""
    choice = float(torch.rand((), generator=rng))
    share = float(torch.rand((), generator=rng))
    if choice < 0.45:
        return 0.5 + 2.0 * share
    if choice < 0.85:
        return -1.0 + 1.7 * share
    return 2.5 + 3.5 * share


def scaled_range(
    contrast: Contrast,
    head: BrainLabels,
    rim: float,
    percentiles: tuple[float, float],
    rng: torch.Generator,
) -> tuple[float, float]:
    """Compute the intensities of the scan's percentiles from the whole head's histogram; lesions shift them."""
    classes = head.pool[0, head.pool[1] <= rim]
    values = contrast.signal[classes] + contrast.spread[classes] * torch.randn(len(classes), generator=rng)
    low, high = torch.quantile(values, torch.tensor([percentiles[0] / 100, percentiles[1] / 100])).tolist()
    shift = 0.04 * torch.randn(2, generator=rng)
    span = max(high - low, 0.05)
    bright = uniform(0, _BRIGHTEST, rng) if chance(_BRIGHT_SHARE, rng) else 0.0
    above = bright + float(shift[1].clamp(-0.08, 0.12))
    return low + span * float(shift[0].clamp(-0.05, 0.05)), high + span * above
