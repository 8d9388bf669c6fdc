"""The training log: one row per logged step; a resumed run continues it."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

from maediff.files import atomic_path, cannot_write

_COLUMNS = ("step", "loss", "mae_loss", "val_loss", "lr", "grad_norm", "images_per_second")


class LossLog:
    """`log.csv`: one row per logged step; rows after the resumed step are dropped.

    Args:
        path: The file.
        step: Steps done before this run.
        writes: False in all processes but the main one.
    """

    def __init__(self, path: Path, step: int, writes: bool) -> None:
        self.path, self.step, self.writes = path, step, writes

    def __enter__(self) -> LossLog:
        if not self.writes:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows_until(self.step) if self.step else []
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])
        self.file = self.path.open("a", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file)
        return self

    def write(self, step: int, loss: float, mae_loss: float, val_loss: float | None, *rest: float) -> None:
        """Write a row, in the order of the columns.

        Raises:
            OutputError: The disk is full.
        """
        if self.writes:
            shown = "" if val_loss is None else repr(val_loss)
            try:
                self.writer.writerow([step, repr(loss), repr(mae_loss), shown, *(f"{value:.6g}" for value in rest)])
                self.file.flush()
            except OSError as error:
                raise cannot_write(self.path, error) from error

    def __exit__(self, *_: object) -> None:
        if self.writes:
            with contextlib.suppress(OSError):  # disk full; already reported by write()
                self.file.close()

    def _rows_until(self, step: int) -> list[list[str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        return [row for row in rows if len(row) == len(_COLUMNS) and row[0].isdecimal() and int(row[0]) <= step]
