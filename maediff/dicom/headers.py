"""Header values that an exported object copies from its series, in the form that the standard requires.

Scanners, archives and anonymisers write values that highdicom refuses or that cannot be stored: partial dates, times
with colons, sexes as words, character sets of several parts. Such a value is converted if its meaning is clear, else it
is cleared. Both are reported, and neither stops an export. Identifiers are never shortened.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from maediff.dicom.frames import Frame, lookup, numbers
from maediff.dicom.objects import series_number

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
UTF_8 = "ISO_IR 192"
# Attributes that an image must have, though they may be empty; de-identified images often lack them.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
# Other attributes of patient, study and scanner that are copied unchanged if an image has them.
_TAKEN_OVER = (
    *("IssuerOfPatientID", "OtherPatientIDs", "PatientBirthTime", "PatientAge", "PatientSize", "PatientWeight"),
    *("EthnicGroup", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription", "StudyInstanceUID"),
    *("AdmittingDiagnosesDescription", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID"),
    *("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod", "Manufacturer", "ManufacturerModelName"),
    *("DeviceSerialNumber", "SoftwareVersions", "InstitutionName", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "SeriesInstanceUID", "Rows", "Columns"),
)
_KEPT_SETS = (
    *(f"ISO_IR {number}" for number in (13, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 192, 203)),
    *("GB18030", "GBK"),
)
_SEXES = {
    "M": ("m", "male", "man", "mann", "männlich", "maennlich", "masculin", "masculino", "homme", "1"),
    "F": ("f", "female", "woman", "w", "weiblich", "frau", "feminin", "féminin", "femenino", "femme", "2"),
    "O": ("o", "other", "diverse", "divers", "d"),
}
_TIME = re.compile(r"(?P<hours>\d\d):?(?:(?P<minutes>\d\d):?(?:(?P<seconds>\d\d)(?P<part>[.,]\d+)?)?)?")
_BASE_NUMBER = 90000  # above the numbers that scanners use
_MAX_IS = 2**31 - 1  # DICOM's integer string


def export_headers(frames: Sequence[Frame], grid: Any, pydicom: Any) -> tuple[list[Any], list[str]]:
    """Build a single-frame header per slice, from which highdicom takes the attributes of an export's source.

    Args:
        frames: Slices of the series, in the order of the grid.
        grid: The series as highdicom's Volume.
        pydicom: The package.

    Returns:
        Headers, whose SOP Instance UID is that of :func:`placeholder`, and notes on what was converted or cleared,
        without values.
    """
    common, notes = _common(frames[0].image, pydicom)
    common.SliceThickness = _decimal(_thickness_mm(frames[0], grid), pydicom)
    orientation = [_decimal(value, pydicom) for value in grid.direction_cosines]
    spacing = [_decimal(value, pydicom) for value in grid.pixel_spacing]
    headers = []
    for place in range(len(frames)):
        header = pydicom.Dataset()
        header.update(common)
        header.SOPClassUID, header.SOPInstanceUID, header.Modality = MR_IMAGE, placeholder(place), "MR"
        header.ImageOrientationPatient, header.PixelSpacing = orientation, spacing
        position = grid.affine[:3] @ [place, 0, 0, 1]
        header.ImagePositionPatient = [_decimal(value, pydicom) for value in position]
        headers.append(header)
    return headers, notes


def placeholder(place: int) -> str:
    """Name a slice while an object is built; :func:`name_sources` replaces this name by the real one."""
    return f"1.2.{place + 1}"


def name_sources(made: Any, frames: Sequence[Frame], pydicom: Any) -> None:
    """Make an object refer to the images and frames of its series, each image once.

    Args:
        made: Object that highdicom built from :func:`export_headers`.
        frames: Slices of the series, in the order of the grid.
        pydicom: The package.
    """
    names = {placeholder(place): frame for place, frame in enumerate(frames)}
    for item in made.PerFrameFunctionalGroupsSequence:
        for derivation in item.get("DerivationImageSequence", ()):
            for source in derivation.SourceImageSequence:
                _name(source, names[str(source.ReferencedSOPInstanceUID)], with_frame=True)
    for holder, name in ((made, "SourceImageSequence"), *((i, "ReferencedInstanceSequence") for i in _series(made))):
        unique: dict[str, Any] = {}
        for source in holder.get(name, ()):
            reference = pydicom.Dataset()
            reference.ReferencedSOPInstanceUID = source.ReferencedSOPInstanceUID
            frame = names.get(str(source.ReferencedSOPInstanceUID))
            if frame is not None:
                _name(reference, frame, with_frame=False)
            unique.setdefault(str(reference.ReferencedSOPInstanceUID), reference)
        setattr(holder, name, list(unique.values()))


def _series(made: Any) -> Sequence[Any]:
    return made.get("ReferencedSeriesSequence", ())  # type: ignore[no-any-return]


def _name(reference: Any, frame: Frame, *, with_frame: bool) -> None:
    reference.ReferencedSOPClassUID = frame.image.SOPClassUID
    reference.ReferencedSOPInstanceUID = frame.image.SOPInstanceUID
    if with_frame and int(frame.image.get("NumberOfFrames") or 1) > 1:
        reference.ReferencedFrameNumber = frame.index + 1


def export_number(header: Any, offset: int) -> int:
    """Return the number of an exported series: 90000 plus an offset plus the number of its source."""
    return _BASE_NUMBER + offset + int(header.get("SeriesNumber") or 0)


def _number(image: Any) -> tuple[int | None, str]:
    """Return the Series Number if 90000 can be added to it, else None, and a note if it was cleared."""
    number = series_number(image)
    if number is not None and 0 <= number < _MAX_IS - _BASE_NUMBER:
        return number, ""
    return None, "" if image.get("SeriesNumber") in (None, "") else "SeriesNumber cannot be added to 90000 and was left"


def _decimal(value: float, pydicom: Any) -> Any:
    return pydicom.valuerep.DSfloat(float(value), auto_format=True)


def _thickness_mm(frame: Frame, grid: Any) -> float:
    """Return the thickness of a slice, or the distance between slices if it is not stored."""
    try:
        stored = numbers(lookup(frame.image, frame.index, "SliceThickness", "PixelMeasuresSequence"), 1)
    except ValueError:  # an invalid decimal string
        stored = None
    return float(grid.spacing_between_slices if stored is None or stored[0] <= 0 else stored[0])


def _common(image: Any, pydicom: Any) -> tuple[Any, list[str]]:
    """Copy the attributes that all slices share."""
    header, notes = pydicom.Dataset(), []
    for name in (*_MAY_BE_EMPTY, *_TAKEN_OVER):
        value, note = _value(image, name, pydicom)
        if note:
            notes.append(note)
        if value is not None:
            setattr(header, name, value)
        elif name in _MAY_BE_EMPTY:
            setattr(header, name, "")
    header.SeriesNumber, note = _number(image)
    notes += [note] if note else []
    wanted = image.get("SpecificCharacterSet")
    character_set = _character_set(header, wanted, pydicom)
    if character_set:
        header.SpecificCharacterSet = character_set
    if character_set == UTF_8 != wanted:
        notes.append("text is stored as UTF-8, since the character set of the series cannot be kept")
    return header, notes


def _value(image: Any, name: str, pydicom: Any) -> tuple[Any, str]:
    """Return a value in the standard's form, None if there is none, and a note on changes."""
    try:
        value = image.get(name)
    except Exception:  # whatever a package raises for a value that breaks its type
        return None, f"{name} cannot be read and was cleared"
    if value is None or value == "":
        return None, ""
    kind = pydicom.datadict.dictionary_VR(name)
    mend = {"DA": _date, "TM": _time, "DS": _decimals}.get(kind, _sex if name == "PatientSex" else None)
    if mend is None:
        if "\N{REPLACEMENT CHARACTER}" in str(value):
            return None, f"{name} cannot be decoded and was cleared"
        return str(value) if kind == "PN" else value, ""
    text = "\\".join(map(str, value)) if isinstance(value, pydicom.multival.MultiValue) else str(value).strip()
    mended = mend(text)
    if mended is None:
        return None, f"{name} is not as the standard wants it and was cleared"
    return mended, "" if mended == text else f"{name} was brought to the form of the standard"


def _date(text: str) -> str | None:
    """Return a whole date as YYYYMMDD, or None."""
    digits = re.sub(r"(\d{4})[-./](\d\d)[-./](\d\d)", r"\1\2\3", text)
    try:
        return (
            datetime.datetime.strptime(digits, "%Y%m%d").strftime("%Y%m%d") if re.fullmatch(r"\d{8}", digits) else None
        )
    except ValueError:
        return None


def _time(text: str) -> str | None:
    """Return a time as HHMMSS with up to six decimals, or None."""
    found = _TIME.fullmatch(text)
    if not found:
        return None
    hours, minutes, seconds = (found[name] for name in ("hours", "minutes", "seconds"))
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        return None
    part = (found["part"] or "")[1:7]
    return f"{hours}{minutes or ''}{seconds or ''}{'.' * bool(part)}{part}"


def _decimals(text: str) -> str | None:
    """Return decimal strings, joined by backslashes, with decimal points; None if one is not a number."""
    points = text.replace(",", ".")
    return points if numbers(points, points.count("\\") + 1) is not None else None


def _sex(text: str) -> str | None:
    return next((code for code, words in _SEXES.items() if text.lower() in words), None)


def _character_set(header: Any, wanted: Any, pydicom: Any) -> str | None:
    """Choose the character set: None for ASCII, that of the series if it is a single one and fits, else UTF-8."""
    text = "".join(str(element.value) for element in header)
    if text.isascii():
        return None
    if not isinstance(wanted, str) or wanted not in _KEPT_SETS:
        return UTF_8
    try:
        text.encode(pydicom.charset.python_encoding[wanted])
    except (KeyError, UnicodeEncodeError):
        return UTF_8
    return wanted
