"""Synthetic brains: ICBM-152 tissue maps (bundled with nilearn, BSD-3), deformed, contrasted and degraded.

A subject is a mixture of grey matter, white matter and CSF with its own shape, tissue intensities, texture, bias field
and Rician noise. It depends on its key alone: the same key with and without a lesion gives the same brain.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from maediff.data.lesions import Lesion, Site, make_lesion
from maediff.errors import ConfigError
from maediff.typing import BoolArray, DoubleArray, FloatMap

MODALITIES = ("t1", "t2", "flair", "random")
MIXED = (("t2", 0.4), ("flair", 0.2), ("t1", 0.2), ("random", 0.2))
_LEVELS = {  # CSF, grey matter, white matter, deep grey matter; arbitrary units near 1
    "t1": (0.22, 0.62, 0.92, 0.74),
    "t2": (1.00, 0.62, 0.42, 0.50),
    "flair": (0.18, 0.68, 0.54, 0.62),
}
_DETAIL = {"t1": 0.7, "t2": -0.5, "flair": 0.3}
_UNIT = 600.0  # scanner units of intensity 1


@dataclass(frozen=True)
class Phantom:
    """A synthetic skull-stripped scan.

    Attributes:
        image: Intensities (X, Y, Z), float32, zero outside the brain.
        brain: Brain mask.
        label: Lesion mask, exact; all False for a healthy subject.
        affine: (4, 4) voxel to mm: MNI, or the scanner's for a scan drawn from a label map.
        others: Further contrasts of the same brain, on the same grid.
    """

    image: FloatMap
    brain: BoolArray
    label: BoolArray
    affine: DoubleArray
    others: tuple[FloatMap, ...] = ()


@dataclass(frozen=True)
class Atlas:
    """Tissue maps of the template, 0 to 1, (X, Y, Z), and the detail that their mixture does not explain."""

    grey: FloatMap
    white: FloatMap
    brain: FloatMap
    deep: FloatMap
    detail: FloatMap
    affine: DoubleArray
    spacing_mm: float


@lru_cache(maxsize=2)
def atlas(spacing_mm: float = 2.0) -> Atlas:
    """Load the ICBM-152 2009a maps that nilearn bundles; nothing is downloaded.

    Args:
        spacing_mm: Isotropic voxel size, whole mm, since nilearn resamples to whole mm only.

    Raises:
        ConfigError: The spacing is not a whole number, or is below 1 mm.
    """
    if not (spacing_mm >= 1 and float(spacing_mm).is_integer()):
        raise ConfigError(f"spacing {spacing_mm} mm is not possible; the template comes in whole mm, 1 or more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn import datasets

        images = [
            load(resolution=int(spacing_mm))
            for load in (
                datasets.load_mni152_gm_template,
                datasets.load_mni152_wm_template,
                datasets.load_mni152_brain_mask,
                datasets.load_mni152_template,
            )
        ]
    grey, white, brain, template = (np.asarray(image.dataobj, np.float32) for image in images)
    affine = np.asarray(images[0].affine, np.float64)
    grey, white = _crisp(grey, white, brain)
    deep = _deep_grey(brain.shape, affine)
    inside = brain > 0.5
    tissues = np.stack([grey[inside], white[inside], (brain - grey - white).clip(0)[inside]], 1)
    weights, *_ = np.linalg.lstsq(tissues, template[inside], rcond=None)
    detail = np.zeros_like(template)
    detail[inside] = (template[inside] - tissues @ weights) / float(weights.max())
    return Atlas(grey, white, brain, deep, detail.clip(-0.3, 0.3), affine, spacing_mm)


def subject(key: tuple[int, ...], modality: str = "t2", lesion: str | None = None, spacing_mm: float = 2.0) -> Phantom:
    """Synthesise one subject.

    Args:
        key: Integers such as (seed, subject number), which alone determine the anatomy and the scan.
        modality: "t1", "t2", "flair", or "random": tissue intensities in random order.
        lesion: "ms", "tumour", "dark", or None for a healthy brain.
        spacing_mm: Isotropic voxel size, whole mm.

    Returns:
        The scan on the template's grid.

    Raises:
        ConfigError: Unknown modality or kind of lesion, or a spacing that is not a whole number.
    """
    if modality not in MODALITIES:
        raise ConfigError(f"modality {modality!r} is unknown; use {', '.join(MODALITIES)}")
    base = atlas(spacing_mm)
    shape_rng, scan_rng, lesion_rng = (np.random.default_rng([*key, stream]) for stream in (1, 2, 3))
    maps = np.stack([base.grey, base.white, base.brain, base.deep, base.detail])
    grey, white, brain, deep, detail = _warp(maps, _deformation(base, shape_rng))
    found = None
    if lesion is not None:
        site = Site(grey, white, brain > 0.5, base.affine, base.spacing_mm)
        found = make_lesion(lesion, site, lesion_rng)
        if found.push is not None:
            pushed = _identity(brain.shape) - found.push
            grey, white, deep, detail = _warp(np.stack([grey, white, deep, detail]), pushed)
    inside = brain > 0.5
    image = _contrast((grey, white, deep, detail), modality, scan_rng)
    if found is not None:
        image = _paint(image, found, modality, _levels(modality, np.random.default_rng([*key, 2])))
    image = _degrade(image, inside, base.spacing_mm, scan_rng)
    label = found.core_or_more & inside if found is not None else np.zeros_like(inside)
    return Phantom(np.where(inside, image * _UNIT, 0).astype(np.float32), inside, label, base.affine)


def _crisp(grey: FloatMap, white: FloatMap, brain: FloatMap) -> tuple[FloatMap, FloatMap]:
    """Sharpen the group average's soft tissue borders: raise the three shares to a power and normalise."""
    shares = np.stack([grey, white, (brain - grey - white).clip(0)]).clip(0, 1) ** 2.2
    total = shares.sum(0)
    shares = np.divide(shares, total, out=np.zeros_like(shares), where=total > 1e-6)
    return shares[0] * brain, shares[1] * brain


def _deep_grey(shape: tuple[int, ...], affine: DoubleArray) -> FloatMap:
    """Mark deep grey matter, such as thalamus and putamen, by a soft box in MNI space."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    x, y, z = (affine[i, i] * grids[i] + affine[i, 3] for i in range(3))
    distance = np.maximum(np.maximum(np.abs(x) / 34, np.abs(y + 3) / 26), np.abs(z - 4) / 17)
    soft: FloatMap = (1 / (1 + np.exp((distance - 1) / 0.04))).astype(np.float32)
    return soft


def smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> FloatMap:
    """Draw Gaussian noise, smoothed to `sigma` voxels on a grid as coarse as that allows; unit variance."""
    step = max(1, int(sigma / 1.5))
    coarse = [-(-n // step) + 3 for n in shape]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), sigma / step, mode="wrap")
    if step > 1:
        fine = F.interpolate(torch.from_numpy(field)[None, None], scale_factor=float(step), mode="trilinear")
        field = fine[0, 0].numpy()
    first = rng.integers(step, 2 * step, 3)
    field = field[tuple(slice(i, i + n) for i, n in zip(first, shape, strict=True))]
    result: FloatMap = ((field - field.mean()) / field.std()).astype(np.float32)
    return result


def _identity(shape: tuple[int, ...]) -> FloatMap:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))


def _deformation(base: Atlas, rng: np.random.Generator) -> FloatMap:
    """Draw the source of each voxel: affine change, smooth shape change of a few mm, and fine folding."""
    shape, step = base.brain.shape, base.spacing_mm
    centre = (np.array(shape, np.float32)[:, None, None, None] - 1) / 2
    turn = np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3)) * (1 - np.eye(3))
    matrix = (turn * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    coordinates = np.einsum("ij,jxyz->ixyz", matrix, _identity(shape) - centre) + centre
    for sigma_mm, amplitude_mm in ((24.0, 3.5), (9.0, 1.6), (4.0, 0.8)):
        for axis in range(3):
            coordinates[axis] += amplitude_mm / step * smooth_noise(shape, sigma_mm / step, rng)
    moved: FloatMap = coordinates.astype(np.float32)
    return moved


def _warp(maps: FloatMap, coordinates: FloatMap) -> FloatMap:
    """Sample maps (C, X, Y, Z) at voxel coordinates (3, X, Y, Z), linearly; 0 beyond the border."""
    scale = torch.tensor([2 / (n - 1) for n in maps.shape[1:]])
    grid = torch.from_numpy(coordinates).permute(1, 2, 3, 0) * scale - 1
    warped = F.grid_sample(torch.from_numpy(maps)[None], grid.flip(-1)[None], align_corners=True)
    return warped[0].numpy()


def _levels(modality: str, rng: np.random.Generator) -> DoubleArray:
    """Draw a subject's intensities of CSF, grey, white and deep grey matter."""
    if modality == "random":
        while True:
            csf, grey, white = rng.uniform(0.15, 1.0, 3)
            if min(abs(csf - grey), abs(grey - white), abs(csf - white)) > 0.1:
                deep = grey + rng.uniform(0.1, 0.5) * (white - grey)
                return np.array([csf, grey, white, deep])
    return np.array(_LEVELS[modality]) * rng.normal(1, 0.05, 4)


def _contrast(maps: tuple[FloatMap, FloatMap, FloatMap, FloatMap], modality: str, rng: np.random.Generator) -> FloatMap:
    """Mix grey, white and deep grey matter, each with its own texture, and the detail of the template."""
    grey, white, deep, detail = maps
    csf_level, grey_level, white_level, deep_level = _levels(modality, rng)
    grey_map = grey_level + (deep_level - grey_level) * deep
    csf = (1 - grey - white).clip(0)
    image = csf * csf_level + grey * grey_map + white * white_level
    gain = _DETAIL.get(modality)
    if gain is None:
        gain = float(rng.uniform(-0.7, 0.7))
    texture = 0.035 * smooth_noise(grey.shape, 1.3, rng) + 0.03 * smooth_noise(grey.shape, 4.0, rng)
    mixed: FloatMap = (image * (1 + texture * (grey + white)) + gain * detail).astype(np.float32)
    return mixed.clip(0.02)


def _paint(image: FloatMap, lesion: Lesion, modality: str, levels: DoubleArray) -> FloatMap:
    """Blend each part of a lesion into the image."""
    for part in lesion.parts:
        value = part.level(modality, levels) * (1 + part.texture)
        image = image + part.alpha * (value - image)
    return image.astype(np.float32)


def _degrade(image: FloatMap, inside: BoolArray, spacing_mm: float, rng: np.random.Generator) -> FloatMap:
    """Apply point spread, bias field and Rician noise."""
    image = ndimage.gaussian_filter(np.where(inside, image, 0), 0.35)
    bias = np.exp(rng.uniform(0.02, 0.08) * smooth_noise(image.shape, 40.0 / spacing_mm, rng))
    sigma = rng.uniform(0.012, 0.028)
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32) * sigma
    noisy: FloatMap = np.hypot(image * bias + real, imaginary).astype(np.float32)
    return noisy
