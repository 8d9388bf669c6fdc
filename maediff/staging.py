"""Checksums of a model folder, and the replacement of its files: either all or none.

A replacement has two phases, and the process may be killed between any two moves::

    old        SHA256SUMS lists the old files
     |         stage: write each new file as .NAME.next, then .SHA256SUMS.next, which commits
    staged     all new files are on disk; if killed before this, the folder is old, and the next writer cleans up
     |         move: .NAME.next -> NAME, one after another
    half-way   SHA256SUMS no longer matches; .SHA256SUMS.next will once all moves are done, and any reader does them
     |         .SHA256SUMS.next -> SHA256SUMS
    new        SHA256SUMS lists the new files
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from maediff.errors import ModelError
from maediff.files import atomic_path, cannot_write, file_sha256, flush_folder, remove_leftovers, write_text
from maediff.system import memory_bytes

WEIGHTS, CONFIG, CALIBRATION, CARD, MANIFEST = (
    "model.safetensors",
    "config.yaml",
    "calibration.json",
    "README.md",
    "model.json",
)
FILES = (WEIGHTS, CONFIG, CALIBRATION, CARD, MANIFEST)
LOCATIONS = "locations.safetensors"
"""The only optional file of a model folder."""
ADAPTER = "adapter.safetensors"
"""Replaces the weights in an adapted model: low-rank updates, and the base that they belong to."""
CHECKSUMS = "SHA256SUMS"
_ALLOWED = (*FILES, LOCATIONS, ADAPTER)
_MAX_TEXT_BYTES = 64 * 1024**2  # far more than any file of a model folder except the weights, or the adapter's


def sums_in_force(folder: Path) -> str:
    """Verify a model folder and return the text of the checksums that its files match.

    These are the checksums in SHA256SUMS. If :func:`replace_files` was killed while it moved files, the remaining moves
    are done first, and these are the next checksums.
    """
    try:
        return _fitting_sums(folder, CHECKSUMS)
    except ModelError:
        if (folder / staged_name(CHECKSUMS)).is_file():
            with suppress(ModelError):
                return _rolled_forward(folder)
        raise


def _rolled_forward(folder: Path) -> str:
    """Move the files that a killed replacement had staged, if all files match their checksums afterwards."""
    sums = parse_sums(read_text(folder / staged_name(CHECKSUMS)), folder)
    staged = [name for name, digest in sums.items() if _has(folder / staged_name(name), digest)]
    for name in sums.keys() - staged:
        if not _has(folder / name, sums[name]):
            raise ModelError(
                f"{folder / name} does not fit {staged_name(CHECKSUMS)}; the model is damaged: fetch it again"
            )
    try:
        _move_staged(folder, staged)
    except OSError as error:
        raise ModelError(
            f"a calibration of {folder} was cut off and cannot be finished: {error.strerror}; let someone who may "
            "write there run `maediff info` on it"
        ) from error
    text = _fitting_sums(folder, staged_name(CHECKSUMS))
    with suppress(OSError):  # without permission to write, the text is enough
        os.replace(folder / staged_name(CHECKSUMS), folder / CHECKSUMS)
    return text


def _move_staged(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):  # another reader of the folder may have moved it already
            os.replace(folder / staged_name(name), folder / name)


def staged_name(name: str) -> str:
    """Return the name of the hidden file that will replace another."""
    return f".{name}.next"


def _has(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and file_sha256(path) == digest
    except OSError:
        return False


def _fitting_sums(folder: Path, sums: str) -> str:
    text = read_text(folder / sums)
    for name, expected in parse_sums(text, folder).items():
        if not (folder / name).is_file():  # a device or a pipe would be read forever
            raise ModelError(f"{folder / name} is listed in {CHECKSUMS} but is missing or is not a file")
        _check_size(folder / name)
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise ModelError(
                f"{folder / name} is listed in {CHECKSUMS} but cannot be read: {error.strerror}"
            ) from error
        if found != expected:
            raise ModelError(
                f"{folder / name} does not fit its checksum (found {found[:12]}…, {CHECKSUMS} says {expected[:12]}…); "
                "the model is damaged or was edited: fetch or train it again"
            )
    return text


def settled_sums(folder: Path, text: str) -> dict[str, str]:
    """Clean up after a killed replacement; only the process that writes to the folder may call this.

    Args:
        folder: A verified model folder.
        text: The current checksums, see :func:`sums_in_force`.

    Returns:
        Checksum of each file.
    """
    if read_text(folder / CHECKSUMS) != text:
        _put_in_force(folder, text)
    remove_staged(folder)
    return parse_sums(text, folder)


def remove_staged(folder: Path) -> None:
    """Remove the staged files of a killed replacement; only the process that writes to the folder may call this."""
    for name in (CHECKSUMS, *_ALLOWED):  # the checksums first: without them, staged files are ignored
        with suppress(OSError):
            (folder / staged_name(name)).unlink()
        remove_leftovers(folder / staged_name(name))
        remove_leftovers(folder / name)


def replace_files(folder: Path, sums: Mapping[str, str], contents: Mapping[str, bytes | None]) -> str:
    """Replace files of a model folder, and remove those whose content is None: either all or none.

    The new files are staged under hidden names, and their checksums last. Then the files are moved. Whoever finds the
    folder half-way does the remaining moves, so that a kill at any moment leaves the old model or the new one.

    Args:
        folder: Model folder.
        sums: Current checksum of each file.
        contents: New content by file name; None removes the file.

    Returns:
        The hash of the new model.

    Raises:
        OutputError: The folder cannot be written.
    """
    kept = {name: digest for name, digest in sums.items() if name not in contents}
    new = {name: content for name, content in contents.items() if content is not None}
    text = format_sums(kept | {name: hashlib.sha256(content).hexdigest() for name, content in new.items()})
    try:
        for name, content in new.items():
            with atomic_path(folder / staged_name(name)) as temporary:
                temporary.write_bytes(content)
        write_text(folder / staged_name(CHECKSUMS), text)
    except BaseException:
        remove_staged(folder)
        raise
    _put_in_force(folder, text, new)
    return hashlib.sha256(text.encode()).hexdigest()


def _put_in_force(folder: Path, text: str, staged: Iterable[str] = ()) -> None:
    """Move staged files and then their checksums, and remove the optional file that these do not list."""
    try:
        _move_staged(folder, staged)
        with suppress(FileNotFoundError):
            os.replace(folder / staged_name(CHECKSUMS), folder / CHECKSUMS)
        if LOCATIONS not in parse_sums(text, folder):
            (folder / LOCATIONS).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder / CHECKSUMS, error) from error
    flush_folder(folder)


def _check_size(path: Path) -> None:
    """Refuse a file of a model folder before it is read if it is too large: a sparse file can claim any size."""
    size, limit = path.stat().st_size, memory_bytes() if path.name in (WEIGHTS, ADAPTER) else _MAX_TEXT_BYTES
    if limit is not None and size > limit:
        raise ModelError(f"{path} has {size} bytes; at most {limit} are read: it is damaged, or no MAEDiff model")


def read_text(path: Path) -> str:
    """Read a text file of a model folder.

    Raises:
        ModelError: It is missing, not text, or larger than any such file.
    """
    try:
        if path.is_file():
            _check_size(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}; this is not a whole MAEDiff model folder") from error


def format_sums(sums: Mapping[str, str]) -> str:
    """Render checksums by file name as `sha256sum` does, sorted by name."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def parse_sums(text: str, folder: Path) -> dict[str, str]:
    """Read checksums by file name.

    Raises:
        ModelError: A file is listed that a model folder does not hold, or one that it must hold is not.
    """
    sums: dict[str, str] = {}
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if name not in _ALLOWED:  # also keeps every path inside the folder
            raise ModelError(f"{folder / CHECKSUMS} lists {name!r}; allowed are {', '.join(_ALLOWED)}")
        sums[name] = digest
    needed = [ADAPTER if ADAPTER in sums and name == WEIGHTS else name for name in FILES]
    missing = [name for name in needed if name not in sums]
    if missing:
        raise ModelError(
            f"{folder / CHECKSUMS} lists no {', '.join(missing)}; this is not a whole MAEDiff model folder"
        )
    return sums
