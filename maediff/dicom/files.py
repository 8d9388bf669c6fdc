"""Find folders with DICOM files, and name their cases. Files are recognised by their first bytes, without a package."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maediff.data.walk import walk
from maediff.errors import ConfigError, InputError
from maediff.extras import install_hint

_MAGIC_AT, _MAGIC = 128, b"DICM"
_HEAD_BYTES = 1024
_DIRECTORY = rb"1\.2\.840\.10008\.1\.3\.10"  # SOP class of an index of files, called DICOMDIR, DIRFILE or otherwise
_EXPORTS = {  # name that `export-dicom` gives, and SOP class
    "_anomaly.dcm": rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.30",
    "_anomaly-mask.dcm": rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.66\.4",
}
# What an object without a preamble begins with.
_FIRST_GROUPS, _LAST_FIRST_ELEMENT = (0x0002, 0x0008), 0x0018
_LONG_TYPES = (b"OB", b"OW", b"SQ", b"UN", b"UT")


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
            f"DICOM needs pydicom and highdicom, which are not installed: {install_hint('dicom')}"
        ) from error
    return pydicom, highdicom


def is_dicom_file(path: Path) -> bool:
    """Check by its first bytes whether a file is a DICOM object, whatever its name is; indexes do not count.

    Neither are the objects that ``export-dicom`` writes, so that its folder may lie below that of the series.
    """
    head = _head(path)
    if not (_has_magic(head) or _starts_with_element(head)):
        return False
    classes = (_DIRECTORY, *(kind for ending, kind in _EXPORTS.items() if path.name.endswith(ending)))
    return not any(re.search(kind + rb"(?![0-9.])", head) for kind in classes)


def has_preamble(path: Path) -> bool:
    """Check whether a DICOM file begins with the standard's preamble; older ones begin with their first element."""
    return _has_magic(_head(path))


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:
        return b""


def _has_magic(head: bytes) -> bool:
    return head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def _starts_with_element(head: bytes) -> bool:
    """Check for a first element of group 0002 or 0008 that is followed by another one of that group.

    Explicit VR names its type, implicit VR is followed by four bytes of length; both in either byte order.
    """
    for order, big in (("<", False), (">", True)):
        try:
            group, element, length = struct.unpack_from(f"{order}HHI", head)
            if group not in _FIRST_GROUPS or element > _LAST_FIRST_ELEMENT:
                continue
            vr = head[4:6]
            if vr.isalpha() and vr.isupper() and vr not in _LONG_TYPES:
                (length,) = struct.unpack_from(f"{order}H", head, 6)
            elif big:
                continue
            following = struct.unpack_from(f"{order}H", head, 8 + length)
        except struct.error:
            continue
        if following[0] in (group, *_FIRST_GROUPS):
            return True
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
        Folders by case: their path below ``source``, joined by ``_``; the name of ``source`` itself if it holds
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
