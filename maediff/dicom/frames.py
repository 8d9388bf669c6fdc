"""The slices of a series: the frames of its objects, whether each object holds one frame or many.

Vendors store the attributes of a frame at the top level of the object, in functional groups that all frames share, or
in functional groups per frame. The frame's own groups take precedence (DICOM PS3.3 C.7.6.16); private groups are
ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maediff.errors import GeometryError, InputError
from maediff.typing import DoubleArray

_OF_OBJECTS = ("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "PixelData")
# Geometry of a frame, in the order of Frame: how many numbers an attribute has, and its functional group.
_GEOMETRY = {
    "PixelSpacing": (2, "PixelMeasuresSequence"),
    "ImageOrientationPatient": (6, "PlaneOrientationSequence"),
    "ImagePositionPatient": (3, "PlanePositionSequence"),
}
_UNEVEN = 0.01  # share of the slice distance
_TURNED = 1e-3  # direction cosines
_NOT_UNIT = 1e-2  # cosines of three decimals stay well below
_SHEARED_VOXELS = 0.1  # shift of a slice within its plane
_SAME_PLACE_MM = 1e-3
# Words in Image Type or Frame Type, from the third value on.
_COMPONENTS = {
    "field map": {"B0", "B0 MAP", "FIELD_MAP", "FIELD MAP"},
    "phase": {"P", "PHASE", "PHASE MAP"},
    "real": {"R", "REAL"},
    "imaginary": {"I", "IMAGINARY"},
}
_GE_COMPONENTS = ("magnitude", "phase", "real", "imaginary")  # by GE's private raw data type


@dataclass(frozen=True)
class Frame:
    """A slice of a scan.

    Attributes:
        image: pydicom data set that contains it.
        index: Its index among the frames of the data set, from 0.
        spacing_mm: Distance between rows and between columns (2,).
        orientation: Direction cosines along a row and along a column (6,).
        position_mm: LPS mm of the centre of the first voxel (3,).
    """

    image: Any
    index: int
    spacing_mm: DoubleArray
    orientation: DoubleArray
    position_mm: DoubleArray


@dataclass(frozen=True)
class Stack:
    """Frames that form a regular grid.

    Attributes:
        frames: Frames in highdicom's order, which makes slices, rows and columns right-handed.
        orientation: Direction cosines along a row and along a column, orthonormal (6,).
        step_mm: Distance between slices.
        notes: Notes for the user.
    """

    frames: tuple[Frame, ...]
    orientation: DoubleArray
    step_mm: float
    notes: tuple[str, ...] = ()


def stack(images: Sequence[Any], folder: Path) -> Stack:
    """Find the frames of a series that are one scan, and sort them.

    Args:
        images: pydicom data sets of one series.
        folder: Name of the series in messages.

    Raises:
        InputError: Attributes are missing or unusable, the images are in colour, there are only phase images, or there
            is a single slice.
        GeometryError: The frames do not form a regular grid.
    """
    _check_objects(images, folder)
    chosen, notes = _magnitude([(image, index) for image in images for index in range(_count(image, folder))], folder)
    frames = [_frame(image, index, folder) for image, index in chosen]
    if len(frames) < 2:
        raise InputError(f"the series in {folder} has a single slice; a volume is needed")
    _check_alike(frames, folder)
    orientation = _orthonormal(frames[0].orientation, folder)
    along_row, along_column = orientation[:3], orientation[3:]
    positions = np.array([frame.position_mm for frame in frames])
    along = positions @ np.cross(along_column, along_row)  # highdicom's direction: the axes are right-handed
    order = np.argsort(along, kind="stable")
    _check_distances(along[order], frames, folder)
    shifts = (positions - positions[order[0]]) @ np.stack([along_column, along_row], 1) / frames[0].spacing_mm
    if np.abs(shifts).max() > _SHEARED_VOXELS:
        raise GeometryError(
            f"slices in {folder} are shifted against each other within their planes by up to "
            f"{np.abs(shifts).max():.2g} voxels, as after a tilt of the gantry; resample the series to a regular grid"
        )
    step = float(along[order[-1]] - along[order[0]]) / (len(frames) - 1)
    return Stack(tuple(frames[place] for place in order), orientation, step, notes)


def lookup(image: Any, index: int, name: str, group: str) -> Any:
    """Return an attribute of a frame: from its functional group, else from the shared group, else from the object."""
    for item in (*_item(image, "PerFrameFunctionalGroupsSequence", index), *_item(image, _SHARED, 0)):
        for macro in item.get(group) or ():
            if name in macro:
                return macro.get(name)
    return image.get(name)


_SHARED = "SharedFunctionalGroupsSequence"


def _item(image: Any, name: str, index: int) -> list[Any]:
    items = image.get(name) or []
    return [items[index]] if index < len(items) else []


def numbers(value: Any, count: int) -> DoubleArray | None:
    """Read `count` finite numbers; None if the value holds anything else.

    Example:
        >>> numbers(["1", "2.5"], 2), numbers([1], 2), numbers("left", 1)
        (array([1. , 2.5]), None, None)
    """
    if isinstance(value, str):  # text: some GE scanners store decimal strings as such
        value = value.split("\\")
    try:
        found = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        return None
    return found if found.shape == (count,) and np.isfinite(found).all() else None


def _check_objects(images: Sequence[Any], folder: Path) -> None:
    for image in images:
        missing = [name for name in _OF_OBJECTS if image.get(name) in (None, "")]
        if missing:
            raise InputError(f"DICOM images in {folder} lack {', '.join(missing)}; export the series again, whole")
        shown = str(image.get("PhotometricInterpretation", "MONOCHROME2"))
        if image.get("SamplesPerPixel", 1) != 1 or not shown.startswith("MONOCHROME"):
            raise InputError(f"DICOM images in {folder} are in colour; a scan with one value per voxel is needed")
        if "MOSAIC" in (image.get("ImageType") or ()):
            raise InputError(
                f"DICOM images in {folder} are Siemens mosaics, all slices of a time point in one picture; they hold "
                "functional or diffusion series, and an anatomical scan is needed"
            )
    for name, what in (("Rows", "rows"), ("Columns", "columns"), ("FrameOfReferenceUID", "frames of reference")):
        kinds = sorted({str(image.get(name)) for image in images})
        if len(kinds) > 1:
            values = f"{len(kinds)} of them" if name.endswith("UID") else ", ".join(kinds)
            raise GeometryError(f"slices in {folder} have different {what}: {values}")


def _count(image: Any, folder: Path) -> int:
    """Count the frames of an object."""
    found = numbers(image.get("NumberOfFrames") or 1, 1)
    count = 0 if found is None else int(found[0])
    described = len(image.get("PerFrameFunctionalGroupsSequence") or ()) or count
    if count < 1 or described != count:
        raise InputError(
            f"a DICOM image in {folder} claims {image.get('NumberOfFrames')} frames and describes {described}; "
            "export the series again, whole"
        )
    return count


def _magnitude(frames: list[tuple[Any, int]], folder: Path) -> tuple[list[tuple[Any, int]], tuple[str, ...]]:
    """Skip phase, real and imaginary frames and field maps, which scanners store beside the magnitude."""
    components = [_component(image, index) for image, index in frames]
    others = sorted(set(components) - {"magnitude"})
    if not others or others == ["real"] == sorted(set(components)):  # a real image alone is an inversion recovery
        return frames, ()
    if "magnitude" not in components:
        raise InputError(f"{folder} holds no magnitude images: {len(frames)} slices are {', '.join(others)} images")
    kept = [frame for frame, component in zip(frames, components, strict=True) if component == "magnitude"]
    return kept, (f"{len(frames) - len(kept)} slices that are {', '.join(others)} images were left out",)


def _component(image: Any, index: int) -> str:
    group = "MRImageFrameTypeSequence"
    said = str(lookup(image, index, "ComplexImageComponent", group) or "").strip().upper()
    words = lookup(image, index, "FrameType", group) or image.get("ImageType") or ()
    tail = {str(word).strip().upper() for word in list(words)[2:]} if not isinstance(words, str) else set()
    for component, names in _COMPONENTS.items():
        if tail & names or said == component.upper():
            return component
    try:
        raw = image.private_block(0x0043, "GEMS_PARM_01")[0x2F].value
        return _GE_COMPONENTS[int(raw)]
    except (KeyError, IndexError, TypeError, ValueError):
        return "magnitude"


def _frame(image: Any, index: int, folder: Path) -> Frame:
    return Frame(image, index, *(_geometry(image, index, name, folder) for name in _GEOMETRY))


def _geometry(image: Any, index: int, name: str, folder: Path) -> DoubleArray:
    """Read an attribute that places a frame.

    Raises:
        InputError: It is missing, or does not hold the expected numbers.
    """
    count, group = _GEOMETRY[name]
    try:
        found = lookup(image, index, name, group)
    except ValueError:  # an invalid decimal string
        found = ()
    if found is None or found == "":
        raise InputError(f"DICOM images in {folder} lack {name}; export the series again, whole")
    value = numbers(found, count)
    positive = name == "PixelSpacing"
    if value is None or (positive and value.min() <= 0):
        raise InputError(
            f"DICOM images in {folder} have a {name} that cannot be used: {count} {'positive ' * positive}numbers are "
            "needed; export the series again"
        )
    return value


def _check_alike(frames: Sequence[Frame], folder: Path) -> None:
    spacings = np.array([frame.spacing_mm for frame in frames])
    if not np.allclose(spacings, spacings[0], rtol=1e-4):
        shown = ", ".join(sorted({f"{row:g} x {column:g} mm" for row, column in spacings}))
        raise GeometryError(f"slices in {folder} have different pixel spacings: {shown}")
    turns = np.array([frame.orientation for frame in frames])
    if np.abs(turns - turns[0]).max() > _TURNED:
        raise GeometryError(f"slices in {folder} are turned against each other, as those of a localizer are")


def _orthonormal(orientation: DoubleArray, folder: Path) -> DoubleArray:
    """Orthonormalise rounded direction cosines.

    Raises:
        GeometryError: They are not two perpendicular unit vectors.
    """
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if np.abs(np.array([*lengths, 1 + along_row @ along_column]) - 1).max() > _NOT_UNIT:
        raise GeometryError(
            f"DICOM images in {folder} have an ImageOrientationPatient that is no pair of perpendicular unit vectors; "
            "export the series again"
        )
    along_row = along_row / lengths[0]
    along_column = along_column - (along_row @ along_column) * along_row
    return np.concatenate([along_row, along_column / np.linalg.norm(along_column)])


def _check_distances(along_mm: DoubleArray, frames: Sequence[Frame], folder: Path) -> None:
    """Refuse slices that share a position, and gaps between slices."""
    steps = np.diff(along_mm)
    if (steps < _SAME_PLACE_MM).any():
        places = 1 + int((steps >= _SAME_PLACE_MM).sum())
        one_object = len({id(frame.image) for frame in frames}) == 1
        apart = "" if one_object else "put one volume into a folder of its own, or "
        raise GeometryError(
            f"{len(along_mm)} images in {folder} share {places} slice positions: {_what_differs(frames)}; a single "
            f"volume is needed: {apart}convert the series with dcm2niix, which splits the volumes, and give one NIfTI "
            "file"
        )
    usual = float(np.median(steps))
    uneven = np.abs(steps - usual) > _UNEVEN * usual
    if uneven.any():
        raise GeometryError(
            f"slices in {folder} are not evenly spaced: {int(uneven.sum())} of {len(steps)} distances differ from "
            f"{usual:.3g} mm, the largest is {steps.max():.3g} mm; slices may be missing, copy the series again"
        )


def _what_differs(frames: Sequence[Frame]) -> str:
    """Describe how the volumes of a series differ, as far as its headers tell."""
    kinds = (
        ("echo times", "EffectiveEchoTime", "MREchoSequence"),
        ("echo times", "EchoTime", ""),
        ("time points", "TemporalPositionIndex", "FrameContentSequence"),
        ("time points", "TemporalPositionIdentifier", ""),
        ("b-values", "DiffusionBValue", "MRDiffusionSequence"),
        ("acquisitions", "AcquisitionNumber", ""),
    )
    for what, name, group in kinds:
        values = {str(lookup(frame.image, frame.index, name, group)) for frame in frames}
        if len(values) > 1:
            return f"{len(values)} {what}"
    return "several echoes or time points"
