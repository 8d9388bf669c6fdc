"""Convert DICOM folders to NIfTI files whose names and headers hold nothing about the patient."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maediff.data.cases import Case, find_cases, looks_like_scan
from maediff.data.walk import walk
from maediff.dicom.files import is_dicom_file, series_folders
from maediff.dicom.objects import blame
from maediff.dicom.series import read_dicom
from maediff.errors import ConfigError, InputError, MAEDiffError, OutputError
from maediff.volume import write_like

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """Outcome of one series.

    Attributes:
        case: Its name: the folder below the source.
        path: The NIfTI file; None if it failed.
        message: Why it failed.
        notes: Notes for the user.
    """

    case: str
    path: Path | None
    message: str = ""
    notes: tuple[str, ...] = ()


def holds_dicom(source: str | Path, exclude: Iterable[Path] = ()) -> bool:
    """Check whether a source is DICOM: such a file, or a folder with such files and no scans of other kinds.

    Args:
        source: File or folder.
        exclude: Folders not to search, such as that of the results.

    Raises:
        InputError: It holds DICOM and NIfTI scans.
    """
    source = Path(source)
    if source.is_file():
        return is_dicom_file(source)
    if not source.is_dir() or (source / "dataset_description.json").is_file() or (source / "cases.csv").is_file():
        return False
    files = walk(source, exclude).files
    nifti = next((path for path in files if looks_like_scan(path)), None)
    dicom = next((path for path in files if is_dicom_file(path)), None)
    if nifti and dicom:
        raise InputError(f"{source} holds DICOM files ({dicom.parent}) and NIfTI scans ({nifti}); give one kind")
    return dicom is not None


def convert_dicom(source: str | Path, out: str | Path, series: int | None = None) -> list[Converted]:
    """Write every DICOM series below a folder as NIfTI: ``<case>.nii.gz``, float32, in the scanner's RAS mm.

    Only intensities and geometry are taken over. One bad series never stops the others.

    Args:
        source: Folder of series, each in its own folder, or a multi-frame file.
        out: Folder for the NIfTI files.
        series: Series Number, if folders hold several.

    Returns:
        Outcome of each series.

    Raises:
        ConfigError: pydicom or highdicom is missing.
        InputError: No DICOM files.
        OutputError: A file cannot be written.
    """
    return list(_converted(Path(source), Path(out), series))


def dicom_cases(source: Path, folder: Path, mask: str | Path | None = None, series: int | None = None) -> list[Case]:
    """List the series of a DICOM folder as cases, those that cannot be read with their problem.

    Args:
        source: Folder of series, each in its own folder, or a multi-frame file.
        folder: Where they go as NIfTI files.
        mask: Brain mask of a single scan.
        series: Series Number, if folders hold several.

    Raises:
        InputError: No DICOM files, or a mask for several series.
        ConfigError: pydicom or highdicom is missing.
        OutputError: A file cannot be written.
    """
    converted = convert_dicom(source, folder, series)
    if mask is not None and len(converted) > 1:
        raise InputError(f"a brain mask can be given for a single scan, and {source} holds {len(converted)} series")
    return [
        Case(item.case, source, None, None, item.case, None, None, item.case, problem=item.message)
        if item.path is None
        else find_cases(item.path, mask=mask)[0]
        for item in converted
    ]


def _converted(source: Path, out: Path, series: int | None) -> Iterator[Converted]:
    for case, folder in series_folders(source, [out]).items():
        try:
            volume = read_dicom(folder, series)
            path = write_like(out / f"{case}.nii.gz", volume.data, volume)
        except (ConfigError, OutputError):  # of no single series
            raise
        except MAEDiffError as error:
            yield Converted(case, None, str(error))
        except Exception as error:  # whatever the packages raise for one series must not stop the others
            log.debug("case %s failed: %s", case, blame(error))
            yield Converted(case, None, f"the DICOM series in {folder} cannot be read: {blame(error)}")
        else:
            for note in volume.notes:
                log.warning("%s: %s", folder, note)
            yield Converted(case, path, notes=volume.notes)
