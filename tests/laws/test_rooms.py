"""The tests mirror the library: a file of its name for every module, or a line that says where it is tested."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
LISTED = dict(
    line.split()
    for line in (TESTS / "modules.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
MODULES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for room in ("maediff", "cli")
    for path in sorted((ROOT / room).rglob("*.py"))
}


def definitions(tree):
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def own_test(module):
    place = Path(module.removeprefix("maediff/"))
    return TESTS / place.parent / f"test_{place.stem}.py"


@pytest.mark.parametrize("module", [name for name, tree in MODULES.items() if definitions(tree)])
def test_every_module_is_tested_by_a_file_of_its_name_or_listed(module):
    if own_test(module).is_file():
        assert module not in LISTED, f"tests/modules.txt: {module} has a test file of its name; remove the line"
    else:
        assert module in LISTED, (
            f"write {own_test(module).relative_to(ROOT)}, or say in tests/modules.txt where it is tested"
        )


@pytest.mark.parametrize("module", LISTED)
def test_the_list_names_modules_and_test_files_that_are_there(module):
    assert module in MODULES
    assert LISTED[module] == "-" or (TESTS / LISTED[module]).is_file()


# Equation, function, test


EQUATIONS = (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")


def test_the_tests_that_the_page_of_equations_names_are_there():
    file, count = "", 0
    for place, name in re.findall(r"`([\w/]+\.py|…)::(test_\w+)`", EQUATIONS):
        file = file if place == "…" else place
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), f"{file}::{name}"
        count += 1
    assert count >= 25


def test_the_functions_that_the_page_of_equations_names_are_there():
    names = set(re.findall(r"`((?:diffusion|variational)\.\w+|methods\.\w+\.\w+)`", EQUATIONS))
    settings = {"diffusion.sampler", "diffusion.variance", "diffusion.bound_weight"}
    homes = {"diffusion": "maediff/diffusion/steps.py", "variational": "maediff/diffusion/variational.py"}
    for name in names - settings:
        room, _, function = name.rpartition(".")
        assert function in definitions(MODULES[homes.get(room, f"maediff/{room.replace('.', '/')}.py")]), name
    public = {name for home in homes.values() for name in definitions(MODULES[home]) if not name.startswith("_")}
    told = {name.rpartition(".")[2] for name in names}
    helpers = {"level", "descend", "patch_mean", "eps_from_x0", "x0_loss", "Denoiser"}
    assert public - told - helpers == set(), "say in docs/diffusion.md which equation each is, and which test proves it"
