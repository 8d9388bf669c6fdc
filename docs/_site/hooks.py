"""What MkDocs is told while it builds: navigation, generated pages, pictures, the notebook and formulas.

MkDocs calls the functions whose names begin with ``on_``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import notebook
import pictures
import reference
import tables
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NAVIGATION: dict[str, list[str]] = {
    "Tutorial": ["tutorial", "first-scan"],
    "How to": [
        "own-data", "prepare", "dicom", "bids", "own-site", "adapters", "thresholds", "input-check", "read-a-report",
        "view", "cluster", "docker", "slicer", "monai-label", "xnat", "model-card", "bundle",
    ],
    "Reference": ["commands", "configuration", "api", "files", "robustness"],
    "Explanation": [
        "method", "architecture", "packaged-model", "maps", "metrics", "calibration", "diffusion", "baselines",
        "benchmark", "benchmark-details", "cross-validation", "measured", "speed",
    ],
}  # fmt: skip
"""Section -> pages; a page that is not there is left out, and one that is not named here stands under More."""

_MADE = re.compile(r"<!-- (picture|table) (\w+): (.*?) -->", re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*(?:\\\((.*?)\\\)|\\\[(.*?)\\\])\s*</\1>', re.DOTALL)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr):<code>~?")
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what code makes: reference pages, pictures, the notebook; then lay out the navigation."""
    made: dict[str, str | bytes] = {
        "commands.md": reference.commands_page(),
        "configuration.md": reference.configuration_page(),
        "api.md": reference.api_page(),
        "style.css": Path(__file__).with_name("style.css").read_text(encoding="utf-8"),
        "iframe-worker.js": Path(__file__).with_name("iframe-worker.js").read_text(encoding="utf-8"),
        **pictures.draw(),
        **notebook.render(Path(config.docs_dir) / "first-scan.ipynb"),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
    pages = {file.src_uri.removesuffix(".md") for file in files if file.src_uri.endswith(".md")}
    config.nav = navigation(pages)
    return files


def navigation(pages: set[str]) -> list[Any]:
    """Lay out the pages that there are.

    Args:
        pages: Names without ``.md``.
    """
    sections = {title: [name for name in names if name in pages] for title, names in NAVIGATION.items()}
    named = {"index", *(name for names in sections.values() for name in names)}
    more = {"More": sorted(pages - named)}
    return [
        {"Home": "index.md"},
        *({title: [f"{n}.md" for n in names]} for title, names in (sections | more).items() if names),
    ]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put pictures and tables where a page asks for them: ``<!-- picture NAME: what it shows -->``."""
    markdown = markdown.replace(".ipynb)", ".md)")  # on the site a notebook is a page
    return _MADE.sub(lambda match: _made(match[1], match[2], " ".join(match[3].split())), markdown)


def _made(kind: str, name: str, text: str) -> str:
    if kind == "table":
        return f"{tables.TABLES[name]()}\n\n*{text}*"
    plain = re.sub(r"[`*]", "", text)
    return f"![{plain}](pictures/{name}.png)\n\n*{text}*"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, which browsers draw without a script or a font of ours; drop Sphinx roles."""
    html = _ROLE.sub("<code>", html)
    return _FORMULA.sub(lambda match: _mathml(match[2] or match[3], "block" if match[3] else "inline"), html)


def _mathml(latex: str, display: str) -> str:
    for entity, character in _ENTITIES.items():
        latex = latex.replace(entity, character)
    return str(convert(latex, display=display))
