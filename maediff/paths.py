"""Paths that one command stores and another opens, and how they are shown to people.

A stored path is never shortened. It is relative to the folder of the file that names it, so that a study can be moved
as a whole; it is absolute if the two share only the root. :data:`WRITTEN_IN` records where that folder was, so that the
path can still be resolved after only the file that names it has been moved. Only :func:`without_names` hides anything;
its result is shown to people and never opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRITTEN_IN = "written_in"
"""Key of a sidecar whose value is the absolute path of the folder in which the sidecar was written."""
_HOME = re.compile(r"(?P<before>[^\s'\"=(,\[]?)(?P<root>/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\"]+")


def stored_path(path: str | Path, folder: str | Path) -> str:
    """Write a path so that a file in `folder` can name it.

    Links among the path's folders are resolved. The file itself is not resolved, so a git-annex link keeps its name.

    Args:
        path: Path to store; if it is relative, it starts at the working directory.
        folder: Folder of the file that names it; it need not exist yet.

    Returns:
        The path relative to `folder`, with forward slashes; absolute if the two share only the root.

    Example:
        >>> stored_path("/study/raw/a.nii.gz", "/study/out")
        '../raw/a.nii.gz'
        >>> stored_path("/scans/a.nii.gz", "/study/out")
        '/scans/a.nii.gz'
    """
    absolute, base = _absolute(path), Path(folder).resolve()
    if absolute.anchor != base.anchor or absolute.parts[1:2] != base.parts[1:2]:
        return absolute.as_posix()
    return Path(os.path.relpath(absolute, base)).as_posix()


def found_path(text: object, folder: str | Path, record: Mapping[str, Any]) -> Path | None:
    """Find a file that a record names with :func:`stored_path`.

    Args:
        text: The stored path; a value that is not text names no file.
        folder: Folder in which the record is now.
        record: The record; its :data:`WRITTEN_IN` says where it was written.

    Returns:
        The first of :func:`stored_places` that is a file; None if none is.
    """
    return next((place for place in stored_places(text, folder, record) if _is_file(place)), None)


def stored_places(text: object, folder: str | Path, record: Mapping[str, Any]) -> list[Path]:
    """List where a stored path may lead, starting at the folder where its record was written, then where it is now.

    The original folder comes first: if only the outputs were moved, a scan of another study may have the same name.

    Arguments are those of :func:`found_path`.
    """
    if not isinstance(text, str) or not text:
        return []
    written_in = record.get(WRITTEN_IN)
    bases = [*([Path(written_in)] if isinstance(written_in, str) else []), Path(folder).resolve()]
    return list(dict.fromkeys(Path(os.path.normpath(base / text)) for base in bases))  # links are resolved already


def readable(text: str) -> str:
    r"""Make a file name that is not UTF-8 printable: its bytes are read as Windows-1252, the most common case.

    Example:
        >>> readable("M\udcfcller"), readable("Müller")
        ('Müller', 'Müller')
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("cp1252", errors="replace")
    return text


def without_names(text: str) -> str:
    """Hide user names in a text that people read: the user's home folder, and any other, becomes ``~``.

    If the home folders are not directly below the root (``/mnt/home/…``), only the name is hidden. Never store the
    result.

    Example:
        >>> without_names("/home/jane/scans/a.nii.gz"), without_names("/mnt/home/jane/scans/a.nii.gz")
        ('~/scans/a.nii.gz', '/mnt/home/…/scans/a.nii.gz')
    """
    home = os.path.expanduser("~")
    if len(home) > 1 and home != "~":
        text = re.sub(rf"(?<![^\s'\"=(,\[]){re.escape(home)}(?=$|[/\\\s'\"])", "~", text)

    def hidden(match: re.Match[str]) -> str:
        before, root = match["before"], match["root"]
        return f"{before}{root}…" if before else "~"

    return _HOME.sub(hidden, text)


def _absolute(path: str | Path) -> Path:
    path = Path(path)
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for the file system, or a null byte
        return False
