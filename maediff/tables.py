"""CSV and TSV tables, by pandas; cells are read as text, so that ids such as ``007`` and ``NA`` stay what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from maediff.errors import InputError
from maediff.files import write_text

_MAX_COLUMNS, _MAX_CELL = 1000, 4096
_MAX_LISTED, _MAX_SHOWN = 20, 60


class Table(NamedTuple):
    """What a file says: the names of its columns and its rows, cells by column."""

    columns: list[str]
    rows: list[dict[str, str]]


def read_table(path: Path, required: Iterable[str] = ()) -> Table:
    """Read a table with a line of column names.

    Args:
        path: CSV, or TSV by its suffix; UTF-8.
        required: Columns that must be there.

    Returns:
        Stripped text, missing cells empty; rows without any text are left out. Column names are in lower case, and
        columns without a name are left out.

    Raises:
        InputError: Unreadable, empty, rows longer than the header, a column twice, or a required one missing; more
            columns, or longer cells, than any table has; or null bytes.
    """
    try:
        cells = pd.read_csv(
            path, sep=_separator(path), header=None, dtype=str, na_filter=False, encoding="utf-8-sig"
        ).map(str.strip)
    except pd.errors.EmptyDataError:
        cells = pd.DataFrame()
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"cannot read table {path}: {str(error).strip()}; save it as UTF-8 text") from error
    _check_cells(cells, path)
    cells = cells[cells.ne("").any(axis=1)]
    if cells.empty:
        raise InputError(f"table {path} is empty; its first line must name the columns")
    names = cells.iloc[0].str.lower()
    if twice := sorted(set(names[names.duplicated() & names.ne("")])):
        raise InputError(f"table {path} names the column {', '.join(twice)} more than once; keep one of each")
    if missing := [name for name in required if name not in set(names)]:
        raise InputError(f"table {path} has no column {', '.join(missing)}; its columns are {listed(names)}")
    table = cells.iloc[1:].set_axis(names, axis=1).loc[:, names.ne("").to_numpy()]
    rows: list[dict[str, Any]] = [dict(zip(table.columns, row, strict=True)) for row in table.to_numpy()]
    return Table(list(table.columns), rows)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], missing: str = "") -> None:
    """Write a table atomically: numbers with six digits, whole ones where they are whole.

    Args:
        path: CSV, or TSV by its suffix.
        rows: Cells by column; yes and no become 1 and 0.
        columns: Their order.
        missing: What stands for None and NaN.

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


def _check_cells(cells: pd.DataFrame, path: Path) -> None:
    """Refuse what no table of scans holds, so that messages stay short and paths can be looked up."""
    if cells.shape[1] > _MAX_COLUMNS:
        raise InputError(f"table {path} has {cells.shape[1]} columns, at most {_MAX_COLUMNS} are read; is it a table?")
    longest = int(cells.map(len).to_numpy().max(initial=0))
    if longest > _MAX_CELL:
        raise InputError(
            f"table {path} has a cell of {longest} characters, at most {_MAX_CELL} are read; is a quotation mark open?"
        )
    if cells.map(lambda cell: "\0" in cell).to_numpy().any():
        raise InputError(f"table {path} has null bytes; save it as UTF-8 text")


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
