"""What is installed, and what the sources may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

from maediff.extras import install_hint

ROOT = Path(__file__).parents[2]
PACKAGED = ("maediff", "cli", "configs", "pyproject.toml", "README.md", "LICENSE")
SOURCES = sorted((ROOT / "maediff").rglob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel once, from a copy, so that no build folder is left in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "dist"), str(place)],
        capture_output=True,
        check=True,
    )
    (path,) = (place / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.slow
class TestWheel:
    def test_installs_no_other_top_level_name(self, wheel):
        tops = {name.split("/")[0] for name in wheel.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"maediff"}

    def test_holds_every_module(self, wheel):
        names = set(wheel.namelist())
        expected = {path.relative_to(ROOT).as_posix() for path in SOURCES}
        expected |= {f"maediff/cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
        assert expected <= names

    def test_holds_the_data(self, wheel):
        names = set(wheel.namelist())
        expected = {f"maediff/configs/{path.name}" for path in (ROOT / "configs").iterdir() if path.is_file()}
        data = [path for path in (ROOT / "maediff").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {path.relative_to(ROOT).as_posix() for path in data if not path.name.startswith(".")}
        assert expected <= names

    def test_entry_point_and_licence(self, wheel):
        (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "maediff = maediff.cli:main" in wheel.read(entry).decode()
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_library_never_talks(path):
    """What import-linter cannot see: ``maediff.cli`` is ``cli/`` in the checkout."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "input"}, f"line {node.lineno}"
    roots = {name.split(".")[0] for name in imported}
    assert roots.isdisjoint({"click", "rich", "argparse", "cli"})
    if path.name != "__main__.py":
        assert not [name for name in imported if name.startswith("maediff.cli")]


def test_lock_pins_everything_and_names_no_place():
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all("==" in line for line in lines)
    assert not [line for line in lines if "://" in line or line.startswith(("-", "/", "."))]


def locked_versions():
    """Read the pins that hold for this Python and system."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] not in "#"]
    held = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in held}


def test_lock_pins_whatever_is_needed_directly_or_not():
    """Follow what installed distributions require; CUDA's are left to torch, whose builds differ in them."""
    tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11 on")
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = [text for texts in project["project"]["optional-dependencies"].values() for text in texts]
    waiting = [*map(Requirement, [*project["project"]["dependencies"], *extras, *project["dependency-groups"]["dev"]])]
    seen, locked, missing = set(), locked_versions(), []
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen or name.startswith(("nvidia-", "cuda-")) or name in {"triton", "pip"}:
            continue
        seen.add((name, *requirement.extras))
        if name not in locked:
            missing.append(name)
        with suppress(metadata.PackageNotFoundError):
            for text in metadata.requires(name) or ():
                child = Requirement(text)
                asked = [{"extra": extra} for extra in ("", *requirement.extras)]
                if child.marker is None or any(child.marker.evaluate(environment) for environment in asked):
                    waiting.append(child)
    assert not missing
    assert len(seen) > 60  # the whole tree was followed


def test_lock_covers_what_the_package_needs():
    tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11 on")
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = locked_versions()
    groups = [*project["dependency-groups"].values(), *project["project"]["optional-dependencies"].values()]
    wanted = [*project["project"]["dependencies"], *chain.from_iterable(groups)]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


class TestDockerfile:
    """What can be held without Docker: the file fits the repository that it copies from."""

    @pytest.fixture
    def lines(self):
        return (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()

    def test_copies_what_is_there_and_not_ignored(self, lines):
        let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
        copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
        for name in (name for names in copied for name in names):
            assert (ROOT / name).exists()
            assert f"!{name.rstrip('/')}" in let_through

    def test_copies_all_that_the_wheel_is_made_of(self, lines):
        copied = {name.rstrip("/") for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
        assert set(PACKAGED) <= copied

    def test_defaults_are_those_of_the_project(self, lines):
        tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11 on")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        defaults = dict(line.split()[1].split("=", 1) for line in lines if line.startswith("ARG "))
        assert f"Programming Language :: Python :: {defaults['PYTHON']}" in project["classifiers"]
        assert set(defaults["EXTRAS"].split(",")) <= set(project["optional-dependencies"])

    def test_finds_the_locked_torch_and_runs_as_a_user_without_rights(self, lines):
        lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        assert len([line for line in lock if line.startswith("torch==")]) == 1
        assert "USER 1000" in lines
        assert 'ENTRYPOINT ["maediff"]' in lines


def test_one_place_decides_how_extras_are_installed():
    """No message or page may name an index package `maediff`, which no index has."""
    named = re.compile(r"pip install [^\n]*maediff(\[|\b(?!/))")
    texts = [*SOURCES, *(ROOT / "cli").glob("*.py"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    found = [path.name for path in [*texts, ROOT / "README.md"] if named.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_install_hints_name_the_packages_of_the_extra():
    tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11 on")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in extras.items():
        assert install_hint(extra).startswith("pip install ")
        assert all(f"'{package}'" in install_hint(extra) for package in packages)
