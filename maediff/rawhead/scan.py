"""Prepare one raw scan: bias, registration, brain mask, grid and scale, with all that restoring needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from maediff.errors import ConfigError, InputError
from maediff.extraction import extract_brain
from maediff.notes import Information, notes_record
from maediff.rawhead import itk, masks
from maediff.rawhead.grid import Brain, Grid, lay_grid, resample_brain, shape_of
from maediff.typing import Array, BoolArray
from maediff.volume import Volume, new_header
from maediff.working.components import largest_component
from maediff.working.foreground import find_background, looks_stripped
from maediff.working.intensity import Scale
from maediff.working.resample import index_map, resample

_CHOICES = {"bias": ("n4", "none"), "register": ("none", "rigid", "affine")}


@dataclass(frozen=True)
class PrepareSettings:
    """Preparation steps for each scan.

    Attributes:
        bias: ``n4`` or ``none``.
        register: ``rigid`` or ``affine`` to the template, or ``none``: keep the scan's place, turn to RAS axes.
        spacing_mm: Voxel size of the result; None keeps 2 mm for the template's grid, else the scan's own.
        mask_from: ``auto`` or one of :data:`maediff.rawhead.masks.METHODS`.
        percentiles: In-mask percentiles that become 0 and 1000, or None: intensities stay.
        align_channels: Register further channels to the first; False trusts their headers.

    Raises:
        ConfigError: A value that does not exist or is impossible.
    """

    bias: Literal["n4", "none"] = "n4"
    register: Literal["none", "rigid", "affine"] = "none"
    spacing_mm: float | None = None
    mask_from: str = "auto"
    percentiles: tuple[float, float] | None = (1.0, 99.0)
    align_channels: bool = True

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
        record: Steps and measurements, for the sidecar.
        warnings: Warnings for the user.
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
        mask: Brain mask on its voxels, if one is given.
        settings: Which steps.

    Raises:
        InputError: No brain found, no contrast, no plausible registration.
        ConfigError: A program or package that is asked for is missing.
    """
    stripped = mask is None and _stripped(settings, volume)
    method = masks.choose_method(settings.mask_from, given=mask is not None, stripped=stripped)
    known, said = _known_mask(method, mask, volume)
    data = volume.data
    if settings.bias == "n4":
        data, _ = itk.correct_bias(data, volume.affine, known)
    needed = settings.register != "none" or method == "template"
    to_scan = itk.register(data, volume.affine, known, volume.name) if needed else None
    brain, expected = known, None
    if to_scan is not None:
        expected = masks.template_mask(volume.affine, shape_of(data), to_scan)
        brain = expected if brain is None else brain
    if brain is None or not brain.any():
        raise InputError(f"no brain was found in {volume.name}; give a brain mask")
    facts, warnings = masks.check_mask(brain, volume.voxel_mm3, None if method == "template" else expected)
    grid = lay_grid(volume, to_scan, settings.register, settings.spacing_mm)
    image, new_mask = resample_brain(data, brain, volume.affine, grid)
    if not new_mask.any():
        raise InputError(f"the brain of {volume.name} lies outside the template's grid; use --register none")
    steps = {
        "brain_mask": {"method": method, "approximate": method == "template", **facts},
        "registration": None if to_scan is None else {"target": itk.TEMPLATE, "template_to_scan": to_scan.tolist()},
    }
    notes = (*volume.notes, *said, *warnings)
    return finish_scan(volume, image, Brain(new_mask, brain), grid, settings=settings, steps=steps, notes=notes)


def finish_scan(
    volume: Volume,
    image: Array,
    brain: Brain,
    grid: Grid,
    *,
    settings: PrepareSettings,
    steps: dict[str, Any],
    notes: tuple[str, ...],
) -> PreparedScan:
    """Scale the intensities of a resampled scan, clear voxels outside the brain, and assemble the record.

    Args:
        volume: The raw scan.
        image: Its intensities on the prepared grid.
        brain: Brain on both grids.
        grid: The prepared grid.
        settings: Which steps.
        steps: What was done before, for the record.
        notes: Notes for the user.

    Raises:
        InputError: The brain has no contrast.
    """
    scale = _scale(image[brain.prepared], settings, volume.name)
    if scale is not None:
        image = (image - np.float32(scale.low)) * np.float32(1000 / (scale.high - scale.low))
    image = np.where(brain.prepared, image, 0).astype(np.float32)
    record = {
        **steps,
        "raw_grid": {"affine": volume.affine.tolist(), "shape": list(volume.data.shape)},
        "prepared_grid": {"affine": grid.affine.tolist(), "shape": list(grid.shape)},
        "prepared_to_raw_mm": grid.to_native.tolist(),
        "intensity": None if scale is None else {"becomes_0": scale.low, "becomes_1000": scale.high},
        **notes_record(notes),
    }
    prepared = Volume(image, grid.affine, new_header(grid.affine, grid.shape, grid.code), volume.source)
    return PreparedScan(prepared, brain.prepared, brain.native, grid.to_native, record, notes)


def _stripped(settings: PrepareSettings, volume: Volume) -> bool:
    """Check for a skull only if the result matters."""
    return settings.mask_from == "auto" and looks_stripped(volume)


def resample_label(label: Array, prepared: PreparedScan, raw: Volume) -> BoolArray:
    """Bring a label of the raw scan to the prepared grid: True where at least half of the voxel is label."""
    matrix = index_map(raw.affine, prepared.to_native @ prepared.volume.affine)
    result: BoolArray = resample(label, matrix, shape_of(prepared.mask)) >= 0.5
    return result


def _known_mask(method: str, mask: BoolArray | None, volume: Volume) -> tuple[BoolArray | None, tuple[str, ...]]:
    """Find the brain on the scan's own voxels, unless the template gives it, with warnings."""
    if method == "given":
        return mask, ()
    if method == "stripped":
        background = find_background(volume.data)
        brain = None if background is None else largest_component(background.outside(volume.data))
        return brain, (Information("the scan is skull-stripped already: what is not background is the brain"),)
    if method == "extraction":
        found = extract_brain(volume)
        return found.mask, found.notes
    if method == "template":
        said = "the brain mask is approximate: the template's, registered to the scan; look at it before use"
        return None, (said,)
    return masks.run_tool(method, volume), ()


def _scale(values: Array, settings: PrepareSettings, name: str) -> Scale | None:
    if settings.percentiles is None:
        return None
    low, high = (float(q) for q in np.percentile(values, settings.percentiles))
    if not high > low:
        raise InputError(f"the brain of {name} has no contrast (percentiles are both {low:g}); check scan and mask")
    return Scale(low, high)
