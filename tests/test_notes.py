"""A level stays with its note, in memory and in records of any version; a lost level makes a warning."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff.notes import Information, level_of, notes_record, read_notes, warnings_of

NOTES = st.lists(st.text() | st.text().map(Information))


@given(NOTES)
def test_a_record_keeps_text_order_and_level(notes):
    record = json.loads(json.dumps(notes_record(notes)))
    back = read_notes(record)
    assert list(back) == notes
    assert [level_of(note) for note in back] == [level_of(note) for note in notes]
    assert record["notes"] == notes  # as records were before there were levels


@given(NOTES)
def test_warnings_are_what_is_not_information(notes):
    assert list(warnings_of(notes)) == [note for note in notes if not isinstance(note, Information)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, ()),
        ({"notes": None}, ()),
        ({"notes": "one"}, ("one",)),
        ({"notes": ["one", 2]}, ("one", "2")),
        ({"notes": ["one", "two"], "note_levels": ["information"]}, ("one", "two")),  # does not fit
        ({"notes": ["one"], "note_levels": "information"}, ("one",)),
        ({"notes": ["one"], "note_levels": ["of another version"]}, ("one",)),
    ],
)
def test_without_a_level_a_note_is_a_warning(record, expected):
    assert read_notes(record) == warnings_of(read_notes(record)) == expected


def test_a_level_survives_copies_and_processes():
    note = Information("read as T1")
    for other in (copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert other == note
        assert level_of(other) == "information"


def test_a_note_made_of_another_is_a_warning():
    assert level_of(f"{Information('read as T1')}, but unsure") == "warning"
