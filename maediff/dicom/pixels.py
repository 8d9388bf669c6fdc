"""Intensities of frames, with the scanner's rescaling applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maediff.dicom.frames import Frame, lookup, numbers
from maediff.dicom.objects import READ_ERRORS
from maediff.errors import InputError
from maediff.typing import Array, FloatMap

_TRANSFORMATION = "PixelValueTransformationSequence"
INVERTED = "the images are MONOCHROME1, stored with bright for dark; they were turned, so that air is 0"


def intensities(frames: Sequence[Frame], folder: Path, pydicom: Any) -> tuple[FloatMap, tuple[str, ...]]:
    """Decode frames and convert stored values to intensities: lookup table, else slope and intercept.

    Args:
        frames: Frames of one scan, in order.
        folder: What messages call the series.
        pydicom: The package.

    Returns:
        Intensities (slices, rows, columns), and notes for the user.

    Raises:
        InputError: Pixels that cannot be decoded, or a slope or an intercept that cannot be used.
    """
    scaled = {lookup(frame.image, frame.index, "RescaleSlope", _TRANSFORMATION) is not None for frame in frames}
    if scaled == {True, False}:
        raise InputError(f"some slices in {folder} have a RescaleSlope and others have none; export the series again")
    decoded: dict[int, Array] = {}
    slices = []
    for frame in frames:
        image = frame.image
        if id(image) not in decoded:
            decoded[id(image)] = _decoded(image, folder)
        stored = _without_overlays(decoded[id(image)][frame.index], image)
        if "ModalityLUTSequence" in image:
            slices.append(np.asarray(pydicom.pixels.apply_modality_lut(stored, image), np.float32))
            continue
        slope, intercept = _rescale(frame, folder)
        slices.append((stored * slope + intercept).astype(np.float32))
    array = np.stack(slices)
    inverted = {str(frame.image.get("PhotometricInterpretation", "")) == "MONOCHROME1" for frame in frames}
    if inverted == {True, False}:
        raise InputError(f"slices in {folder} are stored as MONOCHROME1 and as MONOCHROME2; export the series again")
    return (array.max() - array, (INVERTED,)) if inverted == {True} else (array, ())


def _decoded(image: Any, folder: Path) -> Array:
    """Decode all frames of an object, (frames, rows, columns)."""
    wanted = (
        int(image.Rows) * int(image.Columns) * int(image.get("NumberOfFrames") or 1) * int(image.BitsAllocated) // 8
    )
    if not image.file_meta.TransferSyntaxUID.is_compressed and len(image.PixelData) >= 2 * wanted:
        raise InputError(
            f"a DICOM image in {folder} holds {len(image.PixelData)} bytes of pixels and explains {wanted}: its Number "
            "of Frames or its size is wrong; export the series again"
        )
    try:
        return np.asarray(image.pixel_array).reshape(-1, int(image.Rows), int(image.Columns))
    except (*READ_ERRORS, MemoryError) as error:
        raise InputError(
            f"the DICOM series in {folder} makes no regular volume: an image cannot be decoded ({error}); copy it again"
        ) from error


def _rescale(frame: Frame, folder: Path) -> tuple[float, float]:
    """Read slope and intercept; 1 and 0 if an image has none."""
    values = []
    for name, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        try:
            found = lookup(frame.image, frame.index, name, _TRANSFORMATION)
        except ValueError:  # an invalid decimal string
            found = ()
        value = numbers(usual if found is None or found == "" else found, 1)
        if value is None or (name == "RescaleSlope" and value[0] == 0):
            raise InputError(
                f"DICOM images in {folder} have a {name} that cannot be used; it must be a number"
                f"{' other than 0' if usual else ''}: export the series again"
            )
        values.append(float(value[0]))
    return values[0], values[1]


def _without_overlays(stored: Array, image: Any) -> Array:
    """Clear the bits above the stored ones where an older scanner drew overlays into them."""
    bits, allocated = int(image.BitsStored), int(image.BitsAllocated)
    places = [image.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2)]
    drawn = any(place is not None and int(place.value or 0) >= bits for place in places)
    if not drawn or bits >= allocated or stored.dtype.kind not in "ui":
        return stored
    kept = stored.astype(np.int64) & ((1 << bits) - 1)
    if stored.dtype.kind == "i":
        kept -= (kept >> (bits - 1)) << bits
    return kept.astype(stored.dtype)
