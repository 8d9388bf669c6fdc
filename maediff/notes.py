"""Notes on a scan, and how much attention each asks for.

A note is a sentence. Notes are warnings unless they are made as :class:`Information`, so a note whose level was lost,
or that was written before there were levels, is shown as a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Level = Literal["information", "warning"]


class Information(str):
    """A note that tells what was read or done, and needs no attention."""

    __slots__ = ()


def level_of(note: str) -> Level:
    """Return the level of a note.

    Example:
        >>> level_of(Information("the contrast reads as T1")), level_of("the scan looks like noise")
        ('information', 'warning')
    """
    return "information" if isinstance(note, Information) else "warning"


def warnings_of(notes: Iterable[str]) -> tuple[str, ...]:
    """Return the notes that are warnings."""
    return tuple(note for note in notes if level_of(note) == "warning")


def notes_record(notes: Iterable[str]) -> dict[str, list[str]]:
    """Return notes as a record stores them: ``notes``, and ``note_levels`` with the level of each in the same order."""
    listed = list(notes)
    return {"notes": [str(note) for note in listed], "note_levels": [level_of(note) for note in listed]}


def read_notes(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the notes of a record; those without a level are warnings.

    Args:
        record: A sidecar, or the record of ``maediff prepare``; of any version.
    """
    notes, levels = record.get("notes") or [], record.get("note_levels")
    texts = [str(note) for note in (notes if isinstance(notes, list) else [notes])]
    known = levels if isinstance(levels, list) and len(levels) == len(texts) else ["warning"] * len(texts)
    return tuple(
        Information(text) if level == "information" else text for text, level in zip(texts, known, strict=True)
    )
