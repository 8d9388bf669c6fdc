"""CSV and TSV tables; cells are read as text, so that ids such as ``007`` are kept as they are."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from maediff.errors import InputError
from maediff.files import write_text

log = logging.getLogger(__name__)
_MAX_COLUMNS, _MAX_CELL = 1000, 4096
_MAX_LISTED, _MAX_SHOWN = 20, 60
_EMPTY = frozenset(
    {
        *("", "n/a", "n.a.", "n.a", "na", "<na>", "nan", "nat", "none", "null", "nil"),
        *("#n/a", "#nv", "-", "--", "\N{EN DASH}", "\N{EM DASH}", "."),
    }
)
_SEPARATORS = (",", ";", "\t", "|")
_USUAL = frozenset({"image", "mask", "label", "subject", "session", "split", "case", "status", "participant_id"})
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class Table(NamedTuple):
    """Content of a table: the names of its columns, and its rows as cells by column."""

    columns: list[str]
    rows: list[dict[str, str]]


def given(row: Mapping[str, str], name: str) -> str | None:
    """Return a cell, or None if it is missing or empty; ``n/a``, ``NaN``, ``none`` and the like count as empty.

    Example:
        >>> given({"mask": "N/A", "label": "a.nii"}, "mask"), given({"mask": "N/A", "label": "a.nii"}, "label")
        (None, 'a.nii')
    """
    text = row.get(name, "")
    return None if text.strip().lower() in _EMPTY else text


def read_table(path: Path, required: Iterable[str] = (), *, lenient: bool = False) -> Table:
    """Read a table with a line of column names.

    Text is UTF-8, or UTF-16 with a byte order mark, else Windows-1252. Cells are separated by commas (CSV) or tabs
    (TSV), or by whatever separates the header: in many countries spreadsheets write semicolons, some with a first line
    ``sep=;``. Lines above the header that start with ``#`` are skipped.

    Args:
        path: CSV, or TSV by its suffix.
        required: Columns that the table must have.
        lenient: Truncate rows that are longer than the header, and drop columns that are named twice and differ.

    Returns:
        Stripped text; missing cells are empty. Rows without any text and columns without a name are dropped. Column
        names are in lower case.

    Raises:
        InputError: The file is unreadable or empty, has null bytes, rows longer than the header, a column twice, too
            many columns or too long cells; or a required column is missing.
    """
    required = tuple(required)
    lines, separator = _cells(_decoded(path), path, required)
    if not lines:
        raise InputError(f"table {path} is empty; its first line must name the columns")
    _check_cells([cells for _, cells in lines], path)
    names = [name.lower() for name in lines[0][1]]
    rows = []
    for number, cells in lines[1:]:
        if any(cells[len(names) :]) and not lenient:
            raise InputError(
                f"cannot read table {path}: line {number} has {len(cells)} cells, its header names {len(names)} "
                f"columns; put quotation marks around a cell that holds {separator!r}"
            )
        rows.append([*cells, *[""] * len(names)][: len(names)])
    kept = _columns(names, rows, path, lenient=lenient)
    if missing := [name for name in required if name not in kept]:
        raise InputError(f"table {path} has no column {', '.join(missing)}; its columns are {listed(names)}")
    return Table(list(kept), [{name: row[index] for name, index in kept.items()} for row in rows])


def _columns(names: Sequence[str], rows: Sequence[Sequence[str]], path: Path, *, lenient: bool) -> dict[str, int]:
    """Locate columns by name; a column that is named twice is kept if all its cells agree, else refused or dropped."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name:
            places.setdefault(name, []).append(index)
    twice = [name for name, found in places.items() if len(found) > 1]
    if twice and not lenient:
        raise InputError(f"table {path} names the column {', '.join(sorted(twice))} more than once; keep one of each")
    for name in twice:
        if any(len({row[index] for index in places[name]}) > 1 for row in rows):
            log.warning("%s: column %s is there twice with different cells and is not used", path, name)
            del places[name]
    return {name: found[0] for name, found in places.items()}


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data[:4] == b"PK\x03\x04":
            raise InputError(f"table {path} is a workbook, not text; save the sheet as CSV")
        encoding = next((name for mark, name in _BOMS if data.startswith(mark)), None) or _guessed(data)
        return data.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read table {path}: {str(error).strip()}; save it as UTF-8 text") from error


def _guessed(data: bytes) -> str:
    """Find the encoding of text without a mark: UTF-16 of Latin letters has a null in every pair of bytes."""
    start = data[:2000]
    for name, nulls in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if nulls and nulls.count(0) > 0.9 * len(nulls):
            return name
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        undefined = any(byte in data for byte in b"\x81\x8d\x8f\x90\x9d")  # in Windows-1252
        return "latin-1" if undefined else "cp1252"
    return "utf-8"


def _cells(text: str, path: Path, required: Iterable[str]) -> tuple[list[tuple[int, list[str]]], str]:
    """Split text into its lines that are not empty, each with its number in the file; also return the separator."""
    if "\0" in text:
        raise InputError(f"table {path} has null bytes; save it as UTF-8 text")
    first, _, rest = text.partition("\n")
    stated = first.strip().strip('"').lower()
    skipped = int(stated.startswith("sep=") and len(stated) <= len("sep=,"))
    text = rest if skipped else text
    default = _separator(path)
    comments, text = _without_comments(text.rstrip("\x1a"))
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = _separator_of(header, default, {*_USUAL, *required})
    if skipped:
        separator = first.strip("\r").strip('"')[len("sep=") :][:1] or "\t"
    elif separator not in header and len(_USUAL.intersection(header.lower().split())) > 1:
        raise InputError(f"the columns of table {path} are separated by spaces; separate them by commas or tabs")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    above = skipped + comments
    try:
        lines = [(reader.line_num + above, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise InputError(f"cannot read table {path}: {error}; is a quotation mark open?") from error
    return [(number, cells) for number, cells in lines if any(cells)], separator


def _without_comments(text: str) -> tuple[int, str]:
    """Drop the lines above the header that start with ``#`` and count them; if one names columns, it is the header."""
    lines = text.splitlines(keepends=True)
    count = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    named = [number for number in range(count) if _USUAL.intersection(re.findall(r"\w+", lines[number].lower()))]
    if named and named[-1] == count - 1 and not _USUAL.intersection(re.findall(r"\w+", lines[count].lower())):
        count -= 1  # "#image,mask"
        lines[count] = lines[count].lstrip("# ")
    return count, "".join(lines[count:])


def _separator_of(header: str, default: str, known: Iterable[str]) -> str:
    """Choose the separator that yields the most usual columns in the header; by default that of the suffix."""
    known = frozenset(known)

    def found(separator: str) -> tuple[int, bool, bool]:
        names = [name.strip().strip('"').lower() for name in header.split(separator)]
        usual = sum(name in known or name.startswith("image_") for name in names)
        return usual, len(names) > 1, separator == default

    return max(_SEPARATORS, key=found)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], missing: str = "") -> None:
    """Write a table atomically: numbers with six digits, whole numbers without decimals.

    Args:
        path: CSV, or TSV by its suffix.
        rows: Cells by column; True and False become 1 and 0.
        columns: Their order.
        missing: Text for None and NaN.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = [{name: int(cell) if isinstance(cell, bool) else cell for name, cell in row.items()} for row in rows]
    table = pd.DataFrame(plain, columns=list(columns))
    text = table.to_csv(sep=_separator(path), index=False, na_rep=missing, float_format="%.6g", lineterminator="\n")
    write_text(path, text)


def listed(names: Iterable[str]) -> str:
    """List names for a message: the first few, and how many more there are.

    Example:
        >>> listed(["image", "", "mask"])
        'image, mask'
    """
    texts = [name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…" for name in names if name]
    more = len(texts) - _MAX_LISTED
    return ", ".join(texts[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _check_cells(lines: Sequence[Sequence[str]], path: Path) -> None:
    """Refuse sizes that no table of scans has, so that messages stay short and paths can be looked up."""
    width = max(map(len, lines))
    if width > _MAX_COLUMNS:
        raise InputError(f"table {path} has {width} columns, at most {_MAX_COLUMNS} are read; is it a table?")
    longest = max(len(cell) for cells in lines for cell in cells)
    if longest > _MAX_CELL:
        raise InputError(
            f"table {path} has a cell of {longest} characters, at most {_MAX_CELL} are read; is a quotation mark open?"
        )


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
