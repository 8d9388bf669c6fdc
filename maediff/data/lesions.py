"""Lesions of the synthetic cohort: MS-like, tumour-like with mass effect, and dark ones, with exact masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from maediff.errors import ConfigError
from maediff.typing import BoolArray, DoubleArray, FloatArray, FloatMap

KINDS = ("ms", "tumour", "dark")


@dataclass(frozen=True)
class Site:
    """The brain that gets a lesion: tissue shares (X, Y, Z), its mask, the affine and the voxel size."""

    grey: FloatMap
    white: FloatMap
    brain: BoolArray
    affine: DoubleArray
    spacing_mm: float


@dataclass(frozen=True)
class Part:
    """A part of a lesion that has one intensity.

    Attributes:
        alpha: Share of lesion, 0 to 1 (X, Y, Z).
        texture: Relative change of the intensity inside (X, Y, Z).
        level: Intensity, given the modality and the levels of CSF, grey, white and deep grey matter.
    """

    alpha: FloatMap
    texture: FloatMap
    level: Callable[[str, DoubleArray], float]


@dataclass(frozen=True)
class Lesion:
    """Parts, painted in order, and the displacement of tissue around them in voxels (3, X, Y, Z), or None."""

    parts: tuple[Part, ...]
    push: FloatMap | None = field(default=None)

    @property
    def core_or_more(self) -> BoolArray:
        """Voxels that are at least a quarter lesion: all that is visible, including thin oedema and soft edges."""
        inside: BoolArray = np.max([part.alpha for part in self.parts], axis=0) >= 0.25
        return inside


def make_lesion(kind: str, site: Site, rng: np.random.Generator) -> Lesion:
    """Draw a lesion.

    Raises:
        ConfigError: Unknown kind.
    """
    makers = {"ms": _ms, "tumour": _tumour, "dark": _dark}
    if kind not in makers:
        raise ConfigError(f"lesion kind {kind!r} is unknown; use {', '.join(KINDS)}")
    return makers[kind](site, rng)


def _ms(site: Site, rng: np.random.Generator) -> Lesion:
    """Draw five to twenty-five spots of 3 to 10 mm in white matter, most of them near the ventricles."""
    fluid = (1 - site.grey - site.white) * site.brain
    depth = ndimage.distance_transform_edt(site.brain) * site.spacing_mm
    ventricle = (fluid > 0.7) & (depth > 25)
    near = np.exp(-ndimage.distance_transform_edt(~ventricle) * site.spacing_mm / 14)
    weight = np.where(depth > 8, site.white**2, 0) * (near + 0.06) * _above_skull_base(site)
    alpha = np.zeros(site.brain.shape, np.float32)
    for _ in range(int(rng.integers(5, 26))):
        radius = float(np.exp(rng.uniform(np.log(1.6), np.log(4.8))))
        alpha = np.maximum(alpha, _ellipsoid(site, _pick(weight, rng), radius, 0.18, rng))
    alpha *= site.brain
    share = rng.uniform(0.35, 0.75)

    def level(modality: str, levels: DoubleArray) -> float:
        csf, grey, _, _ = levels
        if modality == "t2":
            return float(grey + share * (csf - grey))
        if modality == "flair":
            return float(grey * (1.15 + 0.5 * share))
        return float(grey * (1.05 - 0.4 * share)) if modality == "t1" else float(csf + (1 - share) * (grey - csf))

    return Lesion((Part(alpha, _texture(site, 0.04, 1.5, rng), level),))


def _tumour(site: Site, rng: np.random.Generator) -> Lesion:
    """Draw a core of 12 to 39 mm in an oedema of 26 to 56 mm that follows white matter and displaces tissue."""
    depth = ndimage.distance_transform_edt(site.brain) * site.spacing_mm
    centre = _pick(((depth > 14) & (depth < 40)) * _above_skull_base(site), rng)
    outer = float(rng.uniform(13, 28))
    inner = outer * float(rng.uniform(0.45, 0.7))
    push = _push(site, centre, inner, float(rng.uniform(2.5, 6.0)))
    core = _ellipsoid(site, centre, inner, 0.22, rng) * site.brain
    halo = _ellipsoid(site, centre, outer, 0.4, rng)
    oedema = halo * np.clip(1.3 * ndimage.gaussian_filter(site.white, 0.8) + 0.1, 0, 1) * site.brain
    bright, wet, necrotic = rng.uniform(0.3, 0.9), rng.uniform(0.35, 0.75), rng.random() < 0.4
    inmost = _ellipsoid(site, centre, inner * 0.55, 0.2, rng) * site.brain

    def core_level(modality: str, levels: DoubleArray) -> float:
        csf, grey, white, _ = levels
        if modality == "t2":
            return float(grey + bright * (csf - grey))
        if modality == "flair":
            return float(grey * (1.1 + 0.4 * bright))
        return float(grey * (1.0 - 0.45 * bright)) if modality == "t1" else float(csf + (1 - bright) * (white - csf))

    def oedema_level(modality: str, levels: DoubleArray) -> float:
        csf, grey, _, _ = levels
        if modality == "t2":
            return float(grey + 0.8 * wet * (csf - grey))
        if modality == "flair":
            return float(grey * (1.2 + 0.5 * wet))
        return float(grey * (1.0 - 0.25 * wet)) if modality == "t1" else float(csf + (1 - wet) * (grey - csf))

    def fluid_level(_modality: str, levels: DoubleArray) -> float:
        return float(levels[0] * 1.05)

    parts = [
        Part(oedema.astype(np.float32), _texture(site, 0.04, 2.0, rng), oedema_level),
        Part(core.astype(np.float32), _texture(site, 0.1, 1.6, rng), core_level),
    ]
    if necrotic:
        parts.append(Part(inmost.astype(np.float32), _texture(site, 0.05, 1.5, rng), fluid_level))
    return Lesion(tuple(parts), push)


def _dark(site: Site, rng: np.random.Generator) -> Lesion:
    """Draw an old infarct, bleeding or cavity near the cortex, 12 to 36 mm, darker than healthy tissue."""
    depth = ndimage.distance_transform_edt(site.brain) * site.spacing_mm
    centre = _pick(((depth > 8) & (depth < 24)) * _above_skull_base(site), rng)
    alpha = _ellipsoid(site, centre, float(rng.uniform(6, 18)), 0.35, rng) * site.brain
    share = rng.uniform(0.4, 0.75)

    def level(_modality: str, levels: DoubleArray) -> float:
        return float(share * min(levels[1], levels[2]))

    return Lesion((Part(alpha.astype(np.float32), _texture(site, 0.08, 1.5, rng), level),))


def _above_skull_base(site: Site) -> FloatMap:
    """Keep lesions in the cerebrum: 1 above z = -20 mm, else 0."""
    z = site.affine[2, 2] * np.arange(site.brain.shape[2]) + site.affine[2, 3]
    above: FloatMap = (z > -20).astype(np.float32)[None, None, :]
    return above


def _pick(weight: FloatArray, rng: np.random.Generator) -> DoubleArray:
    """Draw a voxel with probability in proportion to its weight."""
    cumulative = np.cumsum(weight, dtype=np.float64)
    index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return np.array(np.unravel_index(min(index, weight.size - 1), weight.shape), np.float64)


def _grids(shape: tuple[int, ...], centre: DoubleArray, spacing_mm: float) -> list[FloatMap]:
    """Return the distances from the centre along each axis, mm, ready to broadcast."""
    axes = [((np.arange(n) - c) * spacing_mm).astype(np.float32) for n, c in zip(shape, centre, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def _ellipsoid(site: Site, centre: DoubleArray, radius_mm: float, wobble: float, rng: np.random.Generator) -> FloatMap:
    """Draw a soft, irregular ellipsoid: 1 inside, 0 outside, an edge of about a voxel."""
    stretch = np.exp(rng.uniform(-0.3, 0.3, 3))
    stretch /= stretch.prod() ** (1 / 3)
    reach = int(np.ceil(radius_mm * stretch.max() * (1 + 3 * wobble) / site.spacing_mm)) + 3
    first = np.maximum(centre.astype(int) - reach, 0)
    last = np.minimum(centre.astype(int) + reach + 1, site.brain.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    grids = _grids(tuple(last - first), centre - first, site.spacing_mm)
    distance = np.sqrt(sum((g / s) ** 2 for g, s in zip(grids, stretch, strict=True)))
    sigma = max(1.0, 0.45 * radius_mm / site.spacing_mm)
    noise = ndimage.gaussian_filter(rng.standard_normal(distance.shape, np.float32), sigma)
    radius = radius_mm * (1 + wobble * (noise / max(float(noise.std()), 1e-6)).clip(-3, 3))
    soft = np.zeros(site.brain.shape, np.float32)
    soft[box] = 1 / (1 + np.exp(np.clip((distance - radius) / (0.35 * site.spacing_mm), -30, 30)))
    return soft


def _push(site: Site, centre: DoubleArray, radius_mm: float, amplitude_mm: float) -> FloatMap:
    """Displace tissue outwards, most at the rim of the core, fading over its diameter; voxels (3, X, Y, Z)."""
    grids = _grids(site.brain.shape, centre, site.spacing_mm)
    distance = np.sqrt(sum(g**2 for g in grids))
    size = amplitude_mm * np.exp(-(((distance - radius_mm) / (1.2 * radius_mm)) ** 2)) * np.tanh(distance / radius_mm)
    unit = size / np.maximum(distance, 1e-3) / site.spacing_mm
    return np.stack([(unit * g).astype(np.float32) for g in np.broadcast_arrays(*grids)])


def _texture(site: Site, amount: float, sigma: float, rng: np.random.Generator) -> FloatMap:
    field = ndimage.gaussian_filter(rng.standard_normal(site.brain.shape, np.float32), sigma)
    texture: FloatMap = (amount * field / field.std()).astype(np.float32)
    return texture
