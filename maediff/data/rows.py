"""What the rows of tables name: files, and people of a BIDS data set."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from maediff.errors import InputError
from maediff.tables import given, read_table

log = logging.getLogger(__name__)


def path_cell(row: Mapping[str, str], name: str, folder: Path) -> Path | None:
    """Read a cell that names a file.

    If there is no file of the very name, it is tried with slashes for backslashes (of a table made on Windows), with
    accents in another Unicode form (of one made on a Mac), and without single quotation marks.

    Args:
        row: Cells by column.
        name: The column.
        folder: Folder of the table, to which paths are relative.

    Returns:
        The path, whether or not it exists; None if the cell is empty.

    Raises:
        InputError: ``~name`` of an unknown user.
    """
    text = given(row, name)
    if text is None:
        return None
    forms = [text, text.replace("\\", "/"), text.strip("'")]
    forms += [unicodedata.normalize(form, slashed) for form in ("NFC", "NFD") for slashed in forms]
    places = [folder / _expanded(form) for form in dict.fromkeys(forms)]
    return next((place for place in places if _there(place)), places[0])


def read_participants(folder: Path) -> dict[str, dict[str, str]]:
    """Read what ``participants.tsv`` of a data set says of each patient.

    Nobody has asked for this table, so one that cannot be read is left out with a warning.

    Args:
        folder: Root of the data set.

    Returns:
        Cells by column for each participant, such as ``sub-01``; the first of several rows. Empty without a table.
    """
    table = folder / "participants.tsv"
    if not table.is_file():
        return {}
    try:
        rows = read_table(table, ("participant_id",), lenient=True).rows
    except InputError as error:
        log.warning("participants.tsv is not used: %s", error)
        return {}
    people: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row["participant_id"]
        facts = {key: cell for key, cell in row.items() if key != "participant_id"}
        people.setdefault(name if name.startswith("sub-") else f"sub-{name}", facts)
    return people


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text} names the home of an unknown user; write the path out") from error


def _there(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # too long for the file system, or a null byte
        return False
