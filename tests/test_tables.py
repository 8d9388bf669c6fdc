"""Tables: cells are text and stay as they were; what cannot be read is named."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff import tables
from maediff.data.rows import path_cell, read_participants
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


@pytest.mark.parametrize(
    "content",
    [
        b"image;mask;note\na.nii;b.nii;1,5\n",
        b"sep=;\r\nimage;mask;note\r\na.nii;b.nii;1,5\r\n",
        b"image\tmask\tnote\na.nii\tb.nii\t1,5\n",
        b'image,mask,note,,\na.nii,b.nii,"1,5",,,\n',
        b'image,mask,note\ra.nii,b.nii,"1,5"\r',
        'image,mask,note\na.nii,b.nii,"1,5"\n'.encode("utf-16"),
        "image\tmask\tnote\na.nii\tb.nii\t1,5\n".encode("utf-16-le"),
        b'\xef\xbb\xbf"image", "mask", "note"\n"a.nii", "b.nii", "1,5"\n',
        b'# exported 2024-01-02\n# by a tool, version 3\nimage,mask,note\na.nii,b.nii,"1,5"\n\x1a',
        b"#image;mask;note\na.nii;b.nii;1,5\n",
        b"Image\xc2\xa0;Mask;Note\r\r\na.nii\xc2\xa0;b.nii;1,5\r\r\n",
        b"sep=\t\nimage\tmask\tnote\na.nii\tb.nii\t1,5\n",
    ],
)
def test_tables_of_spreadsheets_are_read_as_they_are(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    assert read_table(tmp_path / "x.csv").rows == [{"image": "a.nii", "mask": "b.nii", "note": "1,5"}]


def test_text_that_is_not_utf8_is_that_of_windows(tmp_path):
    (tmp_path / "x.csv").write_bytes("image,subject\na.nii,Jürgen €\n".encode("cp1252"))
    assert read_table(tmp_path / "x.csv").rows[0]["subject"] == "Jürgen €"


def test_a_workbook_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(InputError, match="save the sheet as CSV"):
        read_table(tmp_path / "x.csv")


def test_columns_that_spaces_separate_are_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.csv are separated by spaces; separate them by commas or tabs"):
        read_table(saved(tmp_path / "x.csv", "image mask\na.nii b.nii\n"))


@pytest.mark.parametrize(
    "text", ["", "n/a", "N/A", "NaN", "None", "#N/A", "null", "-", "N.A.", "--", "\N{EN DASH}", "#NV", " na ", "."]
)
def test_what_means_empty_is_empty(tmp_path, text):
    assert tables.given({"label": text}, "label") is None
    assert path_cell({"label": text}, "label", tmp_path) is None


def test_paths_of_windows_and_of_a_mac_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "M\u00fcller.nii").touch()
    for written in ("sub\\M\u00fcller.nii", "sub/Mu\u0308ller.nii", "sub/M\u00fcller.nii", "'sub/M\u00fcller.nii'"):
        assert path_cell({"image": written}, "image", tmp_path) == tmp_path / "sub" / "M\u00fcller.nii"
    assert path_cell({"image": "no\\such.nii"}, "image", tmp_path) == tmp_path / "no\\such.nii"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("participant_id\tsite\nsub-01\tMünchen\n".encode("latin-1"), {"sub-01": {"site": "München"}}),
        ("\ufeffparticipant_id\tsite\r\n01\tx\r\n".encode(), {"sub-01": {"site": "x"}}),
        ("participant_id\tsite\nsub-01\tx\n".encode("utf-16"), {"sub-01": {"site": "x"}}),
        (b"participant_id\tsite\nsub-01\tx\textra\nsub-02\n", {"sub-01": {"site": "x"}, "sub-02": {"site": ""}}),
        (b"participant_id\tage\tage\tsite\nsub-01\t3\t4\tx\n", {"sub-01": {"site": "x"}}),
        (b"participant_id,site\nsub-01,x\n", {"sub-01": {"site": "x"}}),
        (b"", {}),
        (b"subject\tsite\n01\tx\n", {}),
        (bytes(range(256)), {}),
    ],
)
def test_participants_are_read_as_data_sets_have_them(tmp_path, content, expected):
    (tmp_path / "participants.tsv").write_bytes(content)
    assert read_participants(tmp_path) == expected
