"""The page that shows the house says what the import contract says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_page_shows_the_layers_of_the_contract():
    tomllib = pytest.importorskip("tomllib")
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = {item["name"]: item for item in tools["importlinter"]["contracts"]}
    contract = contracts["Imports run downwards only"]
    shown = re.search(r"## Layers\n.*?```text\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
    assert shown == ["cli", *contract["layers"]]
    assert contract["exhaustive"]


def test_every_room_has_a_line():
    rooms = {path.name for path in (ROOT / "maediff").iterdir() if (path / "__init__.py").is_file()}
    table = PAGE[PAGE.index("## Rooms") : PAGE.index("## Layers")]
    shown = set(re.findall(r"`(\w+)/`", table))
    assert rooms | {"cli", "configs"} <= shown
    assert {name for name in shown if not (ROOT / "maediff" / name).is_dir()} == {"cli", "configs", "maediff"}


def test_the_files_that_the_page_names_are_there():
    for name in set(re.findall(r"`(?:maediff/)?((?:\w+/)*\w+\.py)`", PAGE)):
        folders = ("", "methods/maediff", "config", "methods", "training")
        assert any((ROOT / "maediff" / folder / name).is_file() for folder in folders) or (ROOT / name).is_file(), name
