"""docs/robustness.md names tests that are there, and counts their cases as pytest does."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
CITED = re.compile(r"`(test_\w+)`(?:: ([^;|`]+))?")
COUNTED = re.compile(r"\| (\d+), (`test_\w+`[^|]*) \|$", re.MULTILINE)


def cited(text):
    """Name the files of a cell and the phrases that choose tests of each, none for all of them."""
    for file, phrases in CITED.findall(text):
        yield file, [phrase.strip(" ).").replace(" ", "_").replace("-", "_").lower() for phrase in phrases.split(",")]


def chosen(names, phrases):
    """Select the names of tests that hold a phrase."""
    return [name for name in names if any(phrase in name.lower() for phrase in phrases)]


def path_of(file):
    (path,) = (ROOT / "tests").rglob(f"{file}.py")
    return path


def test_every_named_test_is_there():
    told = [line for line in PAGE.splitlines() if line.startswith("|")]
    for file, phrases in cited("\n".join(told)):
        names = re.findall(r"def (test_\w+)", path_of(file).read_text(encoding="utf-8"))
        for phrase in phrases:
            assert chosen(names, [phrase]), f"no test of {file} is called {phrase!r}"


def test_cases_are_counted_as_pytest_does(request):
    option = request.config.option
    if option.keyword or option.markexpr or any("::" in argument for argument in request.config.args):
        pytest.skip("a part of the tests runs")
    counts = Counter((item.path.stem, item.originalname) for item in request.session.items if hasattr(item, "function"))
    rows = [(int(number), list(cited(cell))) for number, cell in COUNTED.findall(PAGE)]
    assert len(rows) > 15
    for number, cell in rows:
        if missing := {file for file, _ in cell} - {file for file, _ in counts}:
            pytest.skip(f"{', '.join(missing)} does not run")
        total = sum(
            counts[file, name]
            for file, phrases in cell
            for name in chosen([n for f, n in counts if f == file], phrases)
        )
        assert total == number, f"{cell}: {total} cases, not {number}"
