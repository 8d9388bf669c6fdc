"""Ratings: rows are only ever added, the latest counts, and agreement is that of textbooks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff.errors import InputError, OutputError
from maediff.evaluation.ratings import Rating, append_rating, read_ratings, summarise_ratings, write_summary


def rating(reader, finding, said, case="a", **more):
    return Rating("2026-01-01T00:00:00+00:00", reader, case, finding, said, x_mm=1.0, y_mm=2.0, z_mm=3.0, **more)


def test_rows_are_added_and_the_latest_counts(tmp_path):
    append_rating(tmp_path, rating("anna", 1, "real", comment="first"))
    before = (tmp_path / "ratings.tsv").read_bytes()
    append_rating(tmp_path, rating("anna", 1, "unsure", comment='a\tb\n"c"'))
    append_rating(tmp_path, rating("ben", 1, "real"))
    assert (tmp_path / "ratings.tsv").read_bytes().startswith(before)
    found = {item.reader: (item.rating, item.comment) for item in read_ratings(tmp_path)}
    assert found == {"anna": ("unsure", 'a b "c"'), "ben": ("real", "")}


def test_readers_who_rate_at_once_lose_nothing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: append_rating(tmp_path, rating(f"r{k % 3}", k + 1, "real")), range(24)))
    assert sorted(item.finding for item in read_ratings(tmp_path)) == list(range(1, 25))


def test_a_row_that_was_cut_off_by_hand_does_not_swallow_the_next(tmp_path):
    append_rating(tmp_path, rating("anna", 1, "real"))
    path = tmp_path / "ratings.tsv"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append_rating(tmp_path, rating("anna", 2, "real"))
    assert len(read_ratings(tmp_path)) == 2


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        append_rating(tmp_path / "file", rating("anna", 1, "real"))


def test_agreement_and_precision_are_those_of_the_textbook():
    """The 2 x 2 example of Cohen's kappa with 20, 5, 10 and 15 pairs: kappa 0.4."""
    said = ["real real"] * 20 + ["real artefact"] * 5 + ["artefact real"] * 10 + ["artefact artefact"] * 15
    pairs = [line.split() for line in said]
    ratings = [rating(name, k + 1, pair[i]) for i, name in enumerate("ab") for k, pair in enumerate(pairs)]
    found = summarise_ratings([*ratings, rating("a", 99, "unsure")], bootstrap=20)
    assert found["pairs"] == [
        {"readers": ["a", "b"], "findings": 50, "agreement": pytest.approx(0.7), "kappa": pytest.approx(0.4)}
    ]
    assert found["readers"]["a"] | {"precision": None} == {
        "rated": 51, "real": 25, "artefact": 25, "unsure": 1, "precision": None,
    }  # fmt: skip
    assert found["readers"]["a"]["precision"]["mean"] == 0.5
    assert found["readers"]["b"]["precision"]["mean"] == 0.6
    assert found["majority"]["precision"] == {"mean": pytest.approx(20 / 35), "ci_low": None, "ci_high": None, "n": 35}
    assert (found["findings"], found["scans"]) == (51, 1)


def test_what_is_not_defined_is_none():
    found = summarise_ratings([rating("a", 1, "real"), rating("b", 1, "real"), rating("c", 2, "unsure")], bootstrap=5)
    first, second, _ = found["pairs"]
    assert (first["kappa"], first["agreement"]) == (None, 1.0)  # one rating only: chance agreement is certain
    assert (second["findings"], second["kappa"], second["agreement"]) == (0, None, None)
    assert found["readers"]["c"]["precision"]["mean"] is None


def test_the_same_number_at_another_place_is_another_finding():
    there = Rating("2026", "b", "a", 1, "real", x_mm=50.0, y_mm=2.0, z_mm=3.0)
    assert summarise_ratings([rating("a", 1, "real"), there], bootstrap=5)["pairs"][0]["findings"] == 0


@pytest.mark.parametrize("wrong", [{"said": "yes"}, {"reader": ""}, {"finding": 0}])
def test_wrong_ratings_are_refused(wrong):
    with pytest.raises(InputError):
        rating(**{"reader": "a", "finding": 1, "said": "real"} | wrong)


def test_broken_tables_name_the_line(tmp_path):
    with pytest.raises(InputError, match="maediff view"):
        read_ratings(tmp_path)
    (tmp_path / "ratings.tsv").write_text("time\treader\tcase\tfinding\trating\nx\ta\tb\tone\treal\n")
    with pytest.raises(InputError, match="line 2"):
        read_ratings(tmp_path)


def test_the_command_summarises_ratings_with_or_without_a_reference(tmp_path):
    append_rating(tmp_path, rating("anna", 1, "real"))
    append_rating(tmp_path, rating("ben", 1, "artefact"))
    arguments = ["evaluate", "-i", str(tmp_path), "-o", str(tmp_path / "m")]
    found = CliRunner().invoke(app, [*arguments, "--ratings", "--json"])
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)["ratings"]
    assert (
        summary == json.loads((tmp_path / "m" / "ratings.json").read_text()) == write_summary(tmp_path, tmp_path / "n")
    )
    assert "Cohen's kappa" in found.stderr
    assert CliRunner().invoke(app, arguments).exit_code == 2
