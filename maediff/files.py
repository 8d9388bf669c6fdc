"""Atomic writes, so that files are either complete or absent; JSON and checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maediff.errors import OutputError

_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder; what is finished is kept",
    errno.EDQUOT: "free some of the quota or choose another folder; what is finished is kept",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that can be written"),
}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file so that it is present only when finished.

    Yields a temporary path in the same folder with the same suffixes (writers choose the format by it).
    On success it is flushed to disk and renamed to ``path``; on any error it is removed and an earlier
    ``path`` stays as it was. Missing parent folders are made.

    Raises:
        OutputError: The folder or the file cannot be written (any OSError inside the block).

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "map.nii.gz"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_bytes(b"finished")
        >>> target.read_bytes(), temporary.exists()
        (b'finished', False)
    """
    path = Path(path)
    stem, dot, suffixes = _parts(path)
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}{dot}{suffixes}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Build the error to raise for a file that cannot be written, with advice."""
    advice = _ADVICE.get(error.errno or 0, "choose a folder that exists or can be made")
    return OutputError(f"cannot write {path}: {error.strerror or error}; {advice}")


def remove_leftovers(path: Path) -> None:
    """Remove what a killed writer of ``path`` left beside it; only for the one process that may write ``path``."""
    stem, dot, suffixes = _parts(path)
    leftover = re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{8}}{re.escape(dot + suffixes)}")
    with suppress(OSError):  # a missing folder holds nothing
        for found in [entry for entry in path.parent.iterdir() if leftover.fullmatch(entry.name)]:
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink()


def _parts(path: Path) -> tuple[str, str, str]:
    """Part a name into the start of its stem, the dot and the suffixes, of which temporary names are made."""
    stem, dot, suffixes = path.name.lstrip(".").partition(".")
    return stem[:80], dot, suffixes


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically (see :func:`atomic_path`); bytes of file names that are not UTF-8 are escaped.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused because JSON has neither.

    Raises:
        OutputError: The file cannot be written.
        ValueError: ``value`` holds a NaN or an infinity.
        TypeError: ``value`` holds something that JSON cannot express.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Render indented JSON, as :func:`write_json` writes it."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a file that is missing, unreadable or holds anything else counts as empty."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def update_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Set values of a JSON object atomically; a file that holds them already is not written.

    Raises:
        OutputError: The file cannot be written.
    """
    found = read_json(path)
    changed = {**found, **values}
    if changed != found:
        write_json(path, changed)


def file_sha256(path: str | Path) -> str:
    """Hash a file's bytes, reading in pieces.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Flush what a folder lists to disk, if its file system can."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
