"""Which folders hold DICOM files, and what they are called; their first bytes tell, so that no package is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maediff.data.walk import walk
from maediff.errors import ConfigError, InputError

_MAGIC_AT, _MAGIC = 128, b"DICM"
_DIRECTORY = "DICOMDIR"  # an index of files, no image


def packages() -> tuple[Any, Any]:
    """Import pydicom and highdicom.

    Raises:
        ConfigError: They are not installed.
    """
    try:
        import highdicom
        import pydicom
    except ImportError as error:
        raise ConfigError(
            "DICOM needs pydicom and highdicom, which are not installed: pip install 'maediff[dicom]'"
        ) from error
    return pydicom, highdicom


def is_dicom_file(path: Path) -> bool:
    """Tell a DICOM file by its first bytes, whatever its name is."""
    if path.name.upper() == _DIRECTORY or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            stream.seek(_MAGIC_AT)
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """List the DICOM files of a folder, without those of its subfolders; a file stands for itself."""
    if folder.is_file():
        return [folder] if is_dicom_file(folder) else []
    return [path for path in sorted(folder.iterdir()) if is_dicom_file(path)]


def series_folders(source: Path, exclude: Iterable[Path] = ()) -> dict[str, Path]:
    """Find the folders that hold DICOM files, in the tree below a folder; each should hold one series.

    Args:
        source: Folder, or a multi-frame file.
        exclude: Folders not to search, such as that of the results.

    Returns:
        Folders by case: their path below ``source``, joined by ``_``; the name of ``source`` itself where it holds
        files. No header field is part of a name.

    Raises:
        InputError: No DICOM file, or two folders that would have one name.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist; give a DICOM file or a folder of series")
    places = sorted({path.parent for path in walk(source, exclude).files}) if source.is_dir() else [source]
    folders = [place for place in places if dicom_files(place)]
    if not folders:
        raise InputError(f"{source} holds no DICOM files; each series lies in a folder of its own")
    names = [_name(folder, source) for folder in folders]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"two folders in {source} would both be called {twice[0]}; rename one of them")
    return dict(zip(names, folders, strict=True))


def _name(folder: Path, source: Path) -> str:
    parts = folder.relative_to(source).parts
    return "_".join(parts) or (source.resolve().stem if source.is_file() else source.resolve().name) or "scan"
