"""Stored paths can be opened, by a moved study and below folders called home; shown paths name nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maediff.paths import WRITTEN_IN, found_path, stored_path, without_names

PARTS = st.lists(st.sampled_from(["home", "Users", "projects", "jane", "ä b", "x", "~"]), min_size=1, max_size=5)


@pytest.fixture
def study(tmp_path):
    root = tmp_path / "mnt" / "home" / "jane" / "study"
    (root / "raw").mkdir(parents=True)
    (root / "out").mkdir()
    (root / "raw" / "a.nii.gz").write_bytes(b"a")
    return root


def record(path, folder):
    return {"image": stored_path(path, folder), WRITTEN_IN: str(folder.resolve())}


def test_a_path_below_a_folder_called_home_is_found_again(study):
    found = found_path(record(study / "raw" / "a.nii.gz", study / "out")["image"], study / "out", {})
    assert found.read_bytes() == b"a"


@pytest.mark.parametrize("moved", ["the study", "the outputs", "nothing"])
def test_a_path_is_found_after_a_move(study, moved):
    kept = record(study / "raw" / "a.nii.gz", study / "out")
    folder = study / "out"
    if moved == "the study":
        study.rename(study.parent / "archive")
        folder = study.parent / "archive" / "out"
    if moved == "the outputs":
        (study.parents[2] / "elsewhere").mkdir()
        folder = (study / "out").rename(study.parents[2] / "elsewhere" / "out")
    assert found_path(kept["image"], folder, kept).read_bytes() == b"a"


def test_a_gone_or_odd_path_is_nowhere(study):
    kept = record(study / "raw" / "a.nii.gz", study / "out")
    (study / "raw" / "a.nii.gz").unlink()
    assert found_path(kept["image"], study / "out", kept) is None
    for odd in (None, "", 3, "x" * 5000, "a\0b", "."):
        assert found_path(odd, study / "out", kept) is None


def test_links_are_followed_for_folders_and_names_stay(study):
    (study / "annex").mkdir()
    (study / "annex" / "MD5E-s1.nii.gz").write_bytes(b"annexed")
    (study / "raw" / "b.nii.gz").symlink_to("../annex/MD5E-s1.nii.gz")
    (study / "linked").symlink_to(study / "raw", target_is_directory=True)
    (study / "deep").mkdir()
    (study / "deep" / "out").symlink_to(study / "out", target_is_directory=True)
    kept = stored_path(study / "linked" / "b.nii.gz", study / "deep" / "out")
    assert kept == "../raw/b.nii.gz"
    assert found_path(kept, study / "deep" / "out", {}).read_bytes() == b"annexed"


def test_a_relative_path_is_that_of_the_working_directory(study, monkeypatch):
    monkeypatch.chdir(study / "raw")
    assert stored_path("a.nii.gz", "../out") == "../raw/a.nii.gz"


@given(path=PARTS, folder=PARTS)
def test_a_stored_path_leads_back(path, folder):
    path, folder = Path("/no such root").joinpath(*path), Path("/no such root").joinpath(*folder)
    assert Path(folder, stored_path(path, folder)).resolve() == path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane.doe/scans/a.nii", "~/scans/a.nii"),
        ("cannot read /Users/jane.doe/a.nii: no", "cannot read ~/a.nii: no"),
        (r"C:\Users\jane.doe\a.nii", r"~\a.nii"),
        ("/mnt/home/jane.doe/a.nii", "/mnt/home/…/a.nii"),
        ("/data/homes/a.nii", "/data/homes/a.nii"),
    ],
)
def test_home_folders_name_nobody_when_shown(text, shown):
    assert without_names(text) == shown


def test_the_own_home_is_shortened(monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/jane")
    assert without_names("/data/people/jane/x") == "~/x"
    assert without_names("cannot read /data/people/jane/x") == "cannot read ~/x"
    assert without_names("/data/people/janet/x") == "/data/people/janet/x"
    assert without_names("/mnt/data/people/jane/x") == "/mnt/data/people/jane/x"


def test_without_a_home_folder_nothing_is_hidden_and_nothing_fails(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(f"uid not found: {uid}")))
    assert without_names("/data/x and /home/jane/y") == "/data/x and ~/y"
    assert stored_path("/study/raw/a.nii", "/study/out") == "../raw/a.nii"
