"""Read one DICOM series as a volume in RAS mm, or raise an error that describes the problem.

Messages name folders, never header fields of a patient. highdicom places the voxels, on the way in and on the way out
alike (:mod:`maediff.dicom.export`), so that results overlay the images that they came from.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maediff.dicom.files import packages
from maediff.dicom.frames import Frame, stack
from maediff.dicom.objects import READ_ERRORS, blame, read_objects
from maediff.dicom.pixels import intensities
from maediff.errors import InputError
from maediff.volume import Volume, new_header


@dataclass(frozen=True)
class Series:
    """The images of one series.

    Attributes:
        folder: Where they are.
        frames: Their slices, in the order of the grid.
        grid: The series as highdicom's Volume: array (slices, rows, columns), affine to LPS mm.
        notes: Notes for the user.
    """

    folder: Path
    frames: tuple[Frame, ...]
    grid: Any
    notes: tuple[str, ...] = ()

    @property
    def volume(self) -> Volume:
        """The scan, (columns, rows, slices) in RAS mm."""
        turned = self.grid.permute_spatial_axes([2, 1, 0])
        data = np.ascontiguousarray(turned.array, np.float32)
        affine = np.asarray(turned.get_affine("RAS"), np.float64)
        return Volume(data, affine, new_header(affine, data.shape, "scanner"), self.folder, self.notes)


def read_dicom(folder: str | Path, series: int | None = None) -> Volume:
    """Read a DICOM series as a volume, with rescale slope and intercept applied.

    Args:
        folder: Folder with the files of a series, or a multi-frame file.
        series: Series Number, if the folder holds several.

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
        try:
            found = stack(read_objects(folder, series, pydicom), folder)
            array, notes = intensities(found.frames, folder, pydicom)
        except READ_ERRORS as error:
            raise InputError(f"the DICOM series in {folder} makes no regular volume: {blame(error)}") from error
        first = found.frames[0]
        grid = highdicom.Volume.from_attributes(
            array=array,
            image_position=first.position_mm,
            image_orientation=found.orientation,
            pixel_spacing=first.spacing_mm,
            spacing_between_slices=found.step_mm,
            coordinate_system="PATIENT",
            frame_of_reference_uid=str(first.image.FrameOfReferenceUID),
        )
    return Series(folder, found.frames, grid, (*found.notes, *notes))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and logs of the packages, whose header values may name a patient."""
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
