"""Tables: cells are text and stay as they were; what cannot be read is named."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff.errors import InputError
from maediff.tables import read_table, write_table

words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=6)


def saved(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@given(rows=st.lists(st.tuples(words.filter(bool), words), max_size=5))
def test_reading_gives_back_what_was_written(tmp_path_factory, suffix, rows):
    path = tmp_path_factory.mktemp("t") / f"x{suffix}"
    written = [{"id": first, "b": second} for first, second in rows]
    write_table(path, written, ("id", "b"))
    assert read_table(path).rows == written
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",")) == written


def test_cells_are_stripped_text_and_nothing_is_guessed(tmp_path):
    path = saved(tmp_path / "x.csv", "\ufeff Id ,B,\n007, NA ,\n\n,,\n1e3\n")
    assert read_table(path).rows == [{"id": "007", "b": "NA"}, {"id": "1e3", "b": ""}]


def test_numbers_are_short_and_missing_ones_are_marked(tmp_path):
    path = tmp_path / "x.tsv"
    rows = [{"a": 1 / 3, "b": True, "c": 5}, {"a": None, "b": None, "c": float("nan")}]
    write_table(path, rows, ("c", "b", "a"), missing="n/a")
    assert path.read_text(encoding="utf-8") == "c\tb\ta\n5\t1\t0.333333\nn/a\tn/a\tn/a\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line"),
        ("\n\n,,\n", "is empty; its first line"),
        ("b,c\n1,2\n", "no column id; its columns are b, c"),
        ("id,ID\n1,2\n", "column id more than once"),
        ("id\n1,2\n", "cannot read table .*line 2"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_table(saved(tmp_path / "x.csv", text), ("id",))
    assert "x.csv" in str(caught.value)


def test_a_table_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read table .*x\.csv"):
        read_table(tmp_path / "x.csv")
