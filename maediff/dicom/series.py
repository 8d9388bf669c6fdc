"""One DICOM series becomes a volume in RAS mm, or an error that says what is wrong with it.

Messages name folders, never header fields of a patient. highdicom places the voxels, on the way in and on the way out
alike (:mod:`maediff.dicom.export`), so that results overlay the images that they came from.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maediff.dicom.files import dicom_files, packages
from maediff.errors import GeometryError, InputError
from maediff.typing import DoubleArray
from maediff.volume import Volume, new_header

log = logging.getLogger(__name__)

_NEEDED = (
    *("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"),
    *("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "PixelData"),
)
# MR, enhanced MR, legacy converted enhanced MR; not spectra, screenshots, reports and raw data
_IMAGES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_UNEVEN, _TURNED = 0.01, 1e-3  # share of the slice distance; direction cosines
# What the packages raise for a file that is damaged, or that says what cannot be.
_READ_ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Series:
    """The images of one series.

    Attributes:
        folder: Where they lie.
        images: pydicom data sets: single slices, or one multi-frame image.
        grid: The series as highdicom's Volume: array (slices, rows, columns), affine to LPS mm.
    """

    folder: Path
    images: tuple[Any, ...]
    grid: Any

    @property
    def volume(self) -> Volume:
        """The scan, (columns, rows, slices) in RAS mm."""
        turned = self.grid.permute_spatial_axes([2, 1, 0])
        data = np.ascontiguousarray(turned.array, np.float32)
        affine = np.asarray(turned.get_affine("RAS"), np.float64)
        return Volume(data, affine, new_header(affine, data.shape, "scanner"), self.folder)


def read_dicom(folder: str | Path, series: int | None = None) -> Volume:
    """Read a DICOM series as a volume, with rescale slope and intercept applied.

    Args:
        folder: Folder with the files of a series, or a multi-frame file.
        series: Series Number, where the folder holds several.

    Raises:
        ConfigError: pydicom or highdicom is missing.
        InputError: No MR images, several series, damaged or undecodable files, missing attributes or slices.
        GeometryError: Slices that do not make a regular grid.
    """
    return read_series(folder, series).volume


def read_series(folder: str | Path, series: int | None = None) -> Series:
    """Read a DICOM series with its headers; arguments and errors are those of :func:`read_dicom`."""
    folder = Path(folder)
    pydicom, highdicom = packages()
    with quiet():
        images = _one_series(_datasets(folder, pydicom), series, folder)
        multiframe = int(images[0].get("NumberOfFrames") or 1) > 1
        _check_decodable(images[0], pydicom, folder)
        if not multiframe:
            _check_slices(images, folder)
        try:
            grid = _multiframe(images, highdicom) if multiframe else _single_frames(images, highdicom)
        except _READ_ERRORS as error:
            raise InputError(f"the DICOM series in {folder} makes no regular volume: {error}") from error
    return Series(folder, tuple(images), grid)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the packages from telling header values, which may name a patient, by warnings or logs."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _datasets(folder: Path, pydicom: Any) -> list[Any]:
    files = dicom_files(folder)
    if not files:
        raise InputError(f"{folder} holds no DICOM files")
    found = []
    for path in files:
        try:
            data = pydicom.dcmread(path)
        except (OSError, *_READ_ERRORS, pydicom.errors.InvalidDicomError) as error:
            raise InputError(f"cannot read DICOM file {path}: {type(error).__name__}; copy it again") from error
        if "SOPClassUID" not in data or "Modality" not in data:
            raise InputError(f"DICOM file {path} is damaged: it does not say what it is; copy it again")
        found.append(data)
    return found


def _one_series(datasets: Sequence[Any], number: int | None, folder: Path) -> list[Any]:
    """Keep the images of the one MR series, or of the one that is asked for."""
    images = [data for data in datasets if data.Modality == "MR" and data.SOPClassUID in _IMAGES]
    if not images:
        kinds = sorted({str(data.Modality) for data in datasets})
        raise InputError(
            f"{folder} holds no MR images ({len(datasets)} objects of modality {', '.join(kinds)}); MAEDiff is for MRI"
        )
    if len(images) < len(datasets):
        log.info("%s: %d DICOM objects are no MR images and left out", folder, len(datasets) - len(images))
    groups: dict[str, list[Any]] = {}
    for data in images:
        groups.setdefault(str(data.get("SeriesInstanceUID", "")), []).append(data)
    if number is not None:
        groups = {uid: group for uid, group in groups.items() if group[0].get("SeriesNumber") == number}
        if not groups:
            known = sorted({str(data.get("SeriesNumber")) for data in images})
            raise InputError(f"{folder} has no series {number}; its series numbers are {', '.join(known)}")
    if len(groups) > 1:
        shown = ", ".join(f"number {group[0].get('SeriesNumber')} ({len(group)} images)" for group in groups.values())
        raise InputError(
            f"{folder} holds {len(groups)} series: {shown}; put each into a folder of its own, or choose one by number"
        )
    return next(iter(groups.values()))


def _check_decodable(image: Any, pydicom: Any, folder: Path) -> None:
    syntax = image.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed:
        return
    try:
        ready = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        ready = False
    if not ready:
        raise InputError(
            f"the images in {folder} are compressed as {syntax.name}, which cannot be decoded here: "
            "pip install 'maediff[dicom]' python-gdcm, or convert them to Explicit VR Little Endian"
        )


def _check_slices(images: Sequence[Any], folder: Path) -> None:
    for image in images:
        missing = [name for name in _NEEDED if image.get(name) in (None, "")]
        if missing:
            raise InputError(f"DICOM images in {folder} lack {', '.join(missing)}; export the series again, whole")
        if image.get("SamplesPerPixel", 1) != 1:
            raise InputError(f"DICOM images in {folder} are in colour; a scan with one value a voxel is needed")
    if len(images) < 2:
        raise InputError(f"the series in {folder} has a single slice; a volume is needed")
    for name, what in (("Rows", "rows"), ("Columns", "columns"), ("PixelSpacing", "pixel spacings")):
        kinds = {str(image.get(name)) for image in images}
        if len(kinds) > 1:
            raise GeometryError(f"slices in {folder} have different {what}: {', '.join(sorted(kinds))}")
    turns = np.array([image.ImageOrientationPatient for image in images], float)
    if np.abs(turns - turns[0]).max() > _TURNED:
        raise GeometryError(f"slices in {folder} are turned against each other, as those of a localizer are")
    positions = np.array([image.ImagePositionPatient for image in images], float)
    _check_distances(positions @ np.cross(turns[0, :3], turns[0, 3:]), folder)


def _check_distances(along_mm: DoubleArray, folder: Path) -> None:
    """Refuse slices that share a place, and places without a slice."""
    steps = np.diff(np.sort(along_mm))
    if (steps < 1e-3).any():
        places = 1 + int((steps >= 1e-3).sum())
        raise GeometryError(
            f"{len(along_mm)} images in {folder} share {places} slice positions: several echoes or time points; "
            "put one volume into a folder of its own"
        )
    usual = float(np.median(steps))
    uneven = np.abs(steps - usual) > _UNEVEN * usual
    if uneven.any():
        raise GeometryError(
            f"slices in {folder} are not evenly spaced: {int(uneven.sum())} of {len(steps)} distances differ from "
            f"{usual:.3g} mm, the largest is {steps.max():.3g} mm; slices may be missing, copy the series again"
        )


def _single_frames(images: Sequence[Any], highdicom: Any) -> Any:
    return highdicom.get_volume_from_series(
        images, dtype=np.float32, apply_real_world_transform=False, orientation_tol=_TURNED, rtol=_UNEVEN
    )


def _multiframe(images: Sequence[Any], highdicom: Any) -> Any:
    if len(images) > 1:
        raise ValueError(f"{len(images)} multi-frame images; put each into a folder of its own")
    image = highdicom.Image.from_dataset(images[0], copy=True)
    return image.get_volume(dtype=np.float32, apply_real_world_transform=False, rtol=_UNEVEN)
