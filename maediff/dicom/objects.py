"""The objects of a folder: which of its DICOM files are images of the requested MR series."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maediff.dicom.files import dicom_files, has_preamble
from maediff.errors import InputError
from maediff.extras import install_hint

log = logging.getLogger(__name__)

# MR, enhanced MR, legacy converted enhanced MR; not spectra, screenshots, reports and raw data
_IMAGES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
# What the packages raise for a file that is damaged, or that says what cannot be.
READ_ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_objects(folder: Path, series: int | None, pydicom: Any) -> list[Any]:
    """Read the images of the MR series of a folder, or of the requested one.

    Args:
        folder: Folder, or a file.
        series: Series Number, if the folder holds several series.
        pydicom: The package.

    Raises:
        InputError: No MR images, several series, a damaged file, or a compression without a decoder.
    """
    datasets = _datasets(folder, pydicom)
    images = [data for data in datasets if _class_of(data) in _IMAGES and data.get("Modality") in ("MR", "", None)]
    if not images:
        raise InputError(_no_images(datasets, folder, pydicom))
    if len(images) < len(datasets):
        log.info("%s: %d DICOM objects are no MR images and left out", folder, len(datasets) - len(images))
    chosen = _one_series(images, series, folder)
    for image in chosen:
        _check_decodable(image, pydicom, folder)
    return _without_copies(chosen, folder)


def blame(error: BaseException) -> str:
    """Describe where an error came from, without its text, which may hold header values of a patient."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    place = frames[-1]
    return f"{type(error).__name__} in {'/'.join(Path(place.filename).parts[-2:])}, line {place.lineno}"


def _datasets(folder: Path, pydicom: Any) -> list[Any]:
    files = dicom_files(folder)
    if not files:
        raise InputError(f"{folder} holds no DICOM files")
    found = []
    for path in files:
        try:
            data = pydicom.dcmread(path, force=not has_preamble(path))
            _class_of(data), data.get("Modality")
        except (OSError, *READ_ERRORS, pydicom.errors.InvalidDicomError) as error:
            raise InputError(f"cannot read DICOM file {path}: {type(error).__name__}; copy it again") from error
        if "DirectoryRecordSequence" in data:  # an index of files under any name
            continue
        if not _class_of(data) and "Modality" not in data:
            raise InputError(f"DICOM file {path} is damaged: it does not say what it is; copy it again")
        found.append(_with_syntax(data, pydicom))
    return found


def _class_of(data: Any) -> str:
    """Return the SOP class of an object, which a damaged or stripped one may name in its file header alone."""
    return str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")


def _with_syntax(data: Any, pydicom: Any) -> Any:
    """Name the transfer syntax of a file that has no header to name it; pydicom found out when it read the file."""
    if "TransferSyntaxUID" not in data.file_meta:
        names = {
            (True, True): "ImplicitVRLittleEndian",
            (False, True): "ExplicitVRLittleEndian",
            (False, False): "ExplicitVRBigEndian",
        }
        name = names.get(data.original_encoding, "ImplicitVRLittleEndian")
        data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
    return data


def _no_images(datasets: Sequence[Any], folder: Path, pydicom: Any) -> str:
    kinds = sorted({str(data.get("Modality") or "unknown") for data in datasets})
    classes = sorted({pydicom.uid.UID(_class_of(data) or "unknown").name for data in datasets})
    return (
        f"{folder} holds no MR images of a scanner ({len(datasets)} objects of modality {', '.join(kinds)}, stored as "
        f"{', '.join(classes)}); MAEDiff is for MRI, as MR or enhanced MR images"
    )


def _one_series(images: Sequence[Any], number: int | None, folder: Path) -> list[Any]:
    """Keep the images of the one series, or of the requested one."""
    groups: dict[str, list[Any]] = {}
    for data in images:
        groups.setdefault(str(data.get("SeriesInstanceUID", "")), []).append(data)
    if number is not None:
        groups = {uid: group for uid, group in groups.items() if series_number(group[0]) == number}
        if not groups:
            known = sorted({str(series_number(data)) for data in images})
            raise InputError(f"{folder} has no series {number}; its series numbers are {', '.join(known)}")
    if len(groups) > 1:
        raise InputError(_several(groups, folder))
    return next(iter(groups.values()))


def _several(groups: Mapping[str, Sequence[Any]], folder: Path) -> str:
    numbers = [series_number(group[0]) for group in groups.values()]
    shown = ", ".join(
        f"number {number} ({len(group)} images)" for number, group in zip(numbers, groups.values(), strict=True)
    )
    unique = None not in numbers and len(set(numbers)) == len(numbers)
    advice = ", or choose one by number" if unique else "; their numbers do not tell them apart"
    return f"{folder} holds {len(groups)} series: {shown}; put each into a folder of its own{advice}"


def series_number(image: Any) -> int | None:
    """Return the Series Number of an object, or None if it has none that is a whole number."""
    try:
        return int(image.get("SeriesNumber"))
    except (TypeError, ValueError, OverflowError):
        return None


def _without_copies(images: Sequence[Any], folder: Path) -> list[Any]:
    """Leave out files that hold the same image once more, such as ``IM1 (1).dcm``."""
    kept: dict[tuple[str, bytes], Any] = {}
    for image in images:
        pixels = image.get("PixelData")
        key = (str(image.get("SOPInstanceUID") or id(image)), pixels if isinstance(pixels, bytes) else b"")
        kept.setdefault(key, image)
    if len(kept) < len(images):
        log.warning("%s: %d files are copies of others and left out", folder, len(images) - len(kept))
    return list(kept.values())


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
            f"{install_hint('dicom')}, or convert them to Explicit VR Little Endian"
        )
