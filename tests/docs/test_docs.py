"""The documentation: its links lead somewhere, its commands and code run, its site loads nothing from elsewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import click
import nibabel as nib
import pytest
import yaml
from maediff.cli import app

import maediff
from maediff.config import Config, parse_config
from maediff.data.phantom import subject

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = {"channel", "stem", "scan", "suffix", "number", "case", "name", "kind"}
"""What pages write between angle brackets."""

MADE = {"commands.md", "configuration.md", "api.md"}
"""Pages that the build makes."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page, language):
    return [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


# Links in the sources


def slug(heading):
    from markdown.extensions.toc import slugify

    return slugify(re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", heading), "-")


def anchors(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


@pages
def test_relative_links_lead_somewhere(page):
    pytest.importorskip("markdown", reason="part of the docs group")
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if urlparse(target).scheme:
            continue
        name, _, anchor = target.partition("#")
        where = (page.parent / name) if name else page
        assert where.exists() or (page.parent == DOCS and name in MADE), target
        if anchor and where.suffix == ".md" and where.exists():
            assert anchor in anchors(where), target


NO_PROSE = re.compile(r"^```.*?^```$|^<!--.*?-->$|^\$\$$.*?^\$\$$|^!\[[^\n]*\)$|^\|[^\n]*$", re.MULTILINE | re.DOTALL)
"""Code, comments that ask for a picture, formulas, pictures and tables."""


@pages
def test_lines_of_prose_end_at_120_columns(page):
    prose = NO_PROSE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))
    assert [line for line in prose.splitlines() if len(line) > 120] == []


def test_the_readme_takes_five_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


# Commands and code in the sources


def command_lines(page):
    """Every `maediff …` of a page: in code blocks, continued lines joined, and between backticks."""
    text = page.read_text(encoding="utf-8")
    code = "\n".join(body for _, body in FENCE.findall(text)).replace("\\\n", " ")
    inline = re.findall(r"`(maediff [^`]+)`", FENCE.sub("", text))
    return [line.strip() for line in (*code.splitlines(), *inline) if line.strip().startswith("maediff ")]


def options_of(words):
    """Find the command that words name; return the options it knows."""
    context, command = click.Context(app, info_name="maediff", **app.context_settings), app
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    return {name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)}


@pages
def test_commands_and_options_exist(page):
    for line in command_lines(page):
        words = shlex.split(line.replace("…", ""), comments=True)[1:]
        if words and not re.fullmatch(r"[a-z]+", words[0]):
            continue  # `maediff COMMAND --help`
        known = options_of(words)
        for word in words:
            if re.match(r"--?[a-zA-Z]", word):
                assert word.partition("=")[0] in known, line


@pages
def test_benchmarks_exist(page):
    for name in re.findall(r"python -m benchmarks\.([\w.]+\w)", page.read_text(encoding="utf-8")):
        place = ROOT / "benchmarks" / name.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name


@pages
def test_python_blocks_compile(page):
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


@pages
def test_yaml_blocks_are_configurations(page):
    for code in blocks(page, "yaml"):
        parse_config(yaml.safe_load(code))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A folder with a coarse synthetic scan, as the pages' Python blocks expect it."""
    folder = tmp_path_factory.mktemp("scan")
    phantom = subject((5, 5), "t2", "tumour", 8)
    (folder / "scans").mkdir()
    for path in (folder / "scan.nii.gz", folder / "scans" / "scan.nii.gz"):
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/own-data.md", "docs/thresholds.md"])
def test_python_blocks_run(page, scan, monkeypatch):
    monkeypatch.chdir(scan)
    found = blocks(ROOT / page, "python")
    assert found
    for code in found:
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
    assert list(scan.glob("*.nii.gz"))


# The tutorial


def steps(page):
    """List bash blocks, each with the output that is shown right below it, or None."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    followed = [*found[1:], ("", "")]
    return [
        (code, below[1] if below[0] == "text" else None)
        for (kind, code), below in zip(found, followed, strict=True)
        if kind == "bash"
    ]


def shape(text):
    """Replace every number and run of box drawing, and drop spaces, which depend on the numbers' widths.

    A training that takes less than ten seconds does not tell its share of the matrix product's speed.
    """
    text = re.sub(r", \d+% of the matrix product's speed", "", text)
    text = re.sub(r"\b[0-9a-f]{64}\b|\d[\d,.]*", "N", text)
    return [" ".join(line.split()) for line in re.sub(r"[─━]+", "-", text).splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute alone, ten on a machine that eight others share
def test_the_tutorial_runs_and_shows_what_is_said(tmp_path):
    home = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{home}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
    }
    for code, output in steps(DOCS / "tutorial.md"):
        done = subprocess.run(
            ["bash", "-euc", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        told = done.stdout.decode()
        assert done.returncode == 0, told
        if output is not None:
            assert shape(told) == shape(output), code
    assert (tmp_path / "report.html").is_file()


# The notebook


def cells():
    content = json.loads((DOCS / "first-scan.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_uses_public_names_only():
    tree = ast.parse("\n".join(cells()))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"maediff", "pandas"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [node.attr for node in used if node.attr.startswith("_")]
    of_maediff = {node.attr for node in used if isinstance(node.value, ast.Name) and node.value.id == "maediff"}
    assert of_maediff
    assert of_maediff <= set(maediff.__all__)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebook_runs_and_shows_something_in_each_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    shown = []
    for source in cells():
        *first, last = ast.parse(source).body
        exec(compile(ast.Module(first, []), "first-scan.ipynb", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "first-scan.ipynb", "eval"), names))
        else:
            exec(compile(ast.Module([last], []), "first-scan.ipynb", "exec"), names)
    case, result, figure, findings, files, outcomes, metrics = shown
    assert set(case) == {"image", "mask", "label"}
    assert "data:image/png" in result._repr_html_()
    assert len(figure.axes) >= 3
    assert findings["volume_ml"].is_monotonic_decreasing
    assert any(name.endswith("_anomaly.nii.gz") for name in files)
    assert set(outcomes["status"]) == {"done"}
    assert metrics["mean"].between(0, 1).all()


# The built site


class Page(HTMLParser):
    """Collects what a page loads, links to and can be linked at."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.title, self.unknown, self._in_title = "", set(), False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self._in_title = tag == "title" and not self.title
        self.unknown |= {tag} & PLACEHOLDERS
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href") is not None:
            self.links.append(found["href"])
        elif tag == "link" and "canonical" not in (found.get("rel") or "") and found.get("href"):
            self.loads.append(found["href"])
        self.loads += [found[name] for name in ("src", "srcset", "data", "poster") if found.get(name)]

    def handle_data(self, data):
        if self._in_title:
            self.title, self._in_title = data.strip(), False


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once."""
    pytest.importorskip("mkdocs", reason="the docs group is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()
    return SimpleNamespace(folder=folder, pages={path: Page(path) for path in sorted(folder.rglob("*.html"))})


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestSite:
    def test_every_page_is_there(self, site):
        built = {path.relative_to(site.folder).with_suffix(".md").as_posix() for path in site.pages}
        wanted = {page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents}
        assert wanted | MADE | {"first-scan.md"} <= built

    def test_nothing_is_loaded_from_other_hosts(self, site):
        for path, page in site.pages.items():
            assert not [load for load in page.loads if urlparse(load).netloc], path.name
        for path in site.folder.rglob("*.css"):
            style = path.read_text(encoding="utf-8")
            assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"']?(?:https?:)?//", style), path.name

    def test_links_and_anchors_lead_somewhere(self, site):
        for path, page in site.pages.items():
            if path.name == "404.html":
                continue  # its links are from the root of the host
            for link in page.links:
                parts = urlparse(link)
                if parts.scheme or parts.netloc:
                    continue
                where = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                where = where / "index.html" if where.is_dir() else where
                assert where.exists(), (path.name, link)
                if parts.fragment and where in site.pages:
                    assert unquote(parts.fragment) in site.pages[where].ids, (path.name, link)

    def test_every_command_and_setting_is_described(self, site):
        commands = (site.folder / "commands.html").read_text(encoding="utf-8")
        for name in app.list_commands(click.Context(app)):
            assert f"maediff {name}" in commands
        settings = site.pages[site.folder / "configuration.html"]
        assert set(Config.model_fields) - {"method"} <= settings.ids

    def test_formulas_are_mathml(self, site):
        method = (site.folder / "method.html").read_text(encoding="utf-8")
        assert method.count("<math") >= 5
        assert "arithmatex" not in method

    def test_placeholders_are_text_and_no_elements(self, site):
        assert "image_&lt;channel&gt;" in (site.folder / "commands.html").read_text(encoding="utf-8")
        for path, page in site.pages.items():
            assert page.unknown == set(), path.name

    def test_titles_can_be_searched(self, site):
        titles = {path.name: page.title for path, page in site.pages.items() if path.name != "404.html"}
        assert all(titles.values())
        assert len(set(titles.values())) == len(titles)
        assert not [title for title in titles.values() if re.search(r"[`<>]", title)]

    def test_it_is_dark_for_those_who_want_it_dark(self, site, browser):
        browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.send("Page.navigate", url=(site.folder / "index.html").as_uri())
        browser.wait_for("document.body?.dataset.mdColorScheme === 'slate'")
        light = browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert light < 80

    def test_search_works_in_pages_opened_as_files(self, site, browser):
        browser.send("Page.navigate", url=(site.folder / "view.html").as_uri())
        browser.wait_for(
            "document.readyState === 'complete' && document.querySelector('[data-md-toggle=search]')?.type"
        )
        browser.value("document.querySelector('[data-md-toggle=search]').click()")
        browser.value("document.querySelector('[data-md-component=search-query]').focus()")
        browser.send("Input.insertText", text="threshold")
        browser.wait_for("document.querySelectorAll('.md-search-result__item a').length > 3")
        links = browser.value("[...document.querySelectorAll('.md-search-result__item a')].map(a => a.href)")
        assert any("thresholds.html" in link for link in links)
        assert all(link.startswith("file:") for link in links)
