"""One raw scan: bias, registration, brain mask, grid and scale; everything that the way back needs is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from maediff.errors import ConfigError, InputError
from maediff.preparation import itk, masks
from maediff.preprocess.brainmask import largest_component
from maediff.preprocess.intensity import Scale
from maediff.preprocess.resample import index_map, resample
from maediff.volume import Volume, new_header

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Shape = tuple[int, int, int]
_CHOICES = {"bias": ("n4", "none"), "register": ("none", "rigid", "affine")}


@dataclass(frozen=True)
class PrepareSettings:
    """What is done to each scan.

    Attributes:
        bias: ``n4`` or ``none``.
        register: ``rigid`` or ``affine`` to the template, or ``none``: keep the scan's place, turn to RAS axes.
        spacing_mm: Voxel size of the result; None keeps 2 mm for the template's grid, else the scan's own.
        mask_from: ``auto`` or one of :data:`maediff.preparation.masks.METHODS`.
        percentiles: In-mask percentiles that become 0 and 1000, or None: intensities stay.

    Raises:
        ConfigError: A value that does not exist or is impossible.
    """

    bias: Literal["n4", "none"] = "n4"
    register: Literal["none", "rigid", "affine"] = "rigid"
    spacing_mm: float | None = None
    mask_from: str = "auto"
    percentiles: tuple[float, float] | None = (1.0, 99.0)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} does not exist; choose one of {', '.join(allowed)}")
        if self.mask_from not in ("auto", *masks.METHODS):
            raise ConfigError(
                f"brain mask method {self.mask_from!r} does not exist; choose auto, {', '.join(masks.METHODS)}"
            )
        if self.spacing_mm is not None and not 0.2 <= self.spacing_mm <= 10:
            raise ConfigError(f"spacing {self.spacing_mm:g} mm is not usable; choose 0.2 to 10 mm")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ConfigError(f"percentiles {self.percentiles} are not usable; 0 <= low < high <= 100 is needed")

    def to_dict(self) -> dict[str, Any]:
        """List the settings as JSON knows them."""
        values = asdict(self)
        return values | {"percentiles": None if self.percentiles is None else list(self.percentiles)}


@dataclass(frozen=True)
class PreparedScan:
    """A model-ready scan.

    Attributes:
        volume: The scan on its new grid, zero outside the brain.
        mask: Brain on the new grid.
        native_mask: Brain on the raw scan's grid.
        to_native: Prepared RAS mm to raw RAS mm (4, 4).
        record: What was done and measured, for the sidecar.
        warnings: What a person should look at.
    """

    volume: Volume
    mask: BoolArray
    native_mask: BoolArray
    to_native: Array
    record: dict[str, Any]
    warnings: tuple[str, ...]


def prepare_scan(volume: Volume, mask: BoolArray | None, settings: PrepareSettings) -> PreparedScan:
    """Make one raw scan model-ready.

    Args:
        volume: The raw scan.
        mask: Brain mask on its voxels, where one is given.
        settings: Which steps.

    Raises:
        InputError: No brain found, no contrast, no plausible registration.
        ConfigError: A program or package that is asked for is missing.
    """
    stripped = mask is None and _stripped(settings, volume)
    method = masks.choose_method(settings.mask_from, given=mask is not None, stripped=stripped)
    known = _known_mask(method, mask, volume)
    data = volume.data
    if settings.bias == "n4":
        data, _ = itk.correct_bias(data, volume.affine, known)
    needed = settings.register != "none" or method == "template"
    to_scan = itk.register(data, volume.affine, known, volume.name) if needed else None
    brain, expected = known, None
    if to_scan is not None:
        expected = masks.template_mask(volume.affine, _shape(data), to_scan)
        brain = expected if brain is None else brain
    if brain is None or not brain.any():
        raise InputError(f"no brain was found in {volume.name}; give a brain mask")
    facts, warnings = masks.check_mask(brain, volume.voxel_mm3, None if method == "template" else expected)
    affine, shape, to_native = _target(volume, brain, to_scan, settings)
    image, new_mask = _resampled(data, brain, volume.affine, to_native @ affine, shape)
    if not new_mask.any():
        raise InputError(f"the brain of {volume.name} lies outside the template's grid; use --register none")
    scale = _scale(image[new_mask], settings, volume.name)
    if scale is not None:
        image = (image - np.float32(scale.low)) * np.float32(1000 / (scale.high - scale.low))
    image = np.where(new_mask, image, 0).astype(np.float32)
    notes = (*volume.notes, *_said(method), *warnings)
    record = {
        "brain_mask": {"method": method, "approximate": method == "template", **facts},
        "registration": None if to_scan is None else {"target": itk.TEMPLATE, "template_to_scan": to_scan.tolist()},
        "raw_grid": {"affine": volume.affine.tolist(), "shape": list(data.shape)},
        "prepared_grid": {"affine": affine.tolist(), "shape": list(shape)},
        "prepared_to_raw_mm": to_native.tolist(),
        "intensity": None if scale is None else {"becomes_0": scale.low, "becomes_1000": scale.high},
        "notes": list(notes),
    }
    codes = "mni" if settings.register != "none" else "scanner"
    prepared = Volume(image, affine, new_header(affine, shape, codes), volume.source)
    return PreparedScan(prepared, new_mask, brain, to_native, record, notes)


def _stripped(settings: PrepareSettings, volume: Volume) -> bool:
    """Look for a skull only where the answer matters."""
    return settings.mask_from == "auto" and masks.looks_stripped(volume)


def resample_label(label: Array, prepared: PreparedScan, raw: Volume) -> BoolArray:
    """Bring a label of the raw scan to the prepared grid: True where at least half of the voxel is label."""
    matrix = index_map(raw.affine, prepared.to_native @ prepared.volume.affine)
    result: BoolArray = resample(label, matrix, _shape(prepared.mask)) >= 0.5
    return result


def _known_mask(method: str, mask: BoolArray | None, volume: Volume) -> BoolArray | None:
    if method == "given":
        return mask
    if method == "stripped":
        return largest_component(volume.data != 0)
    return masks.run_tool(method, volume) if method in masks.TOOLS else None


def _said(method: str) -> tuple[str, ...]:
    return {
        "stripped": ("the scan is skull-stripped already: its non-zero voxels are the brain",),
        "template": ("the brain mask is approximate: the template's, registered to the scan; look at it before use",),
    }.get(method, ())


def _target(
    volume: Volume, brain: BoolArray, to_scan: Array | None, settings: PrepareSettings
) -> tuple[Array, Shape, Array]:
    """Lay the new grid: affine, shape, and prepared RAS mm to raw RAS mm."""
    if to_scan is not None and settings.register != "none":
        atlas = itk.template()
        whole = settings.register == "affine"
        to_native = to_scan if whole else itk.rigid_part(to_scan, atlas.centre_mm)
        return (*_respaced(atlas.affine, _shape(atlas.brain), settings.spacing_mm), to_native)
    order = nib.io_orientation(volume.affine)
    shape = tuple(int(volume.data.shape[int(np.flatnonzero(order[:, 0] == axis)[0])]) for axis in range(3))
    affine = volume.affine @ nib.orientations.inv_ornt_aff(order, volume.data.shape)
    return (*_respaced(affine, (shape[0], shape[1], shape[2]), settings.spacing_mm), np.eye(4))


def _respaced(affine: Array, shape: Shape, spacing_mm: float | None) -> tuple[Array, Shape]:
    """Change the voxel size of a grid, keeping its field of view."""
    if spacing_mm is None:
        return affine, shape
    old = np.linalg.norm(affine[:3, :3], axis=0)
    new = [max(1, round(float(n * o / spacing_mm))) for n, o in zip(shape, old, strict=True)]
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] / old * spacing_mm
    middle = (np.array(shape) - 1) / 2
    result[:3, 3] = affine[:3, :3] @ middle + affine[:3, 3] - result[:3, :3] @ ((np.array(new) - 1) / 2)
    return result, (new[0], new[1], new[2])


def _resampled(data: Array, brain: BoolArray, source: Array, target: Array, shape: Shape) -> tuple[Array, BoolArray]:
    """Resample the brain alone: values are normalised by the share of brain, so that no skull bleeds in."""
    matrix = index_map(source, target)
    share = resample(brain, matrix, shape)
    inside: BoolArray = share >= 0.5
    values = resample(np.where(brain, data, 0), matrix, shape)
    np.divide(values, share, out=values, where=inside)
    return values, inside


def _scale(values: Array, settings: PrepareSettings, name: str) -> Scale | None:
    if settings.percentiles is None:
        return None
    low, high = (float(q) for q in np.percentile(values, settings.percentiles))
    if not high > low:
        raise InputError(f"the brain of {name} has no contrast (percentiles are both {low:g}); check scan and mask")
    return Scale(low, high)


def _shape(data: Array) -> Shape:
    x, y, z = data.shape
    return x, y, z
