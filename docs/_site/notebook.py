"""The notebook as a page: run from nothing, so that what the page shows is what the code does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter


def render(path: Path) -> dict[str, str | bytes]:
    """Run a notebook in an empty folder and turn it into Markdown and pictures.

    Args:
        path: The notebook, stored without outputs.

    Returns:
        File name in the site -> content.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    content = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(content, timeout=600, startup_timeout=600, resources=place).execute()
    for cell in content.cells:  # warnings of libraries name folders of this machine
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    body, resources = MarkdownExporter().from_notebook_node(content, {"unique_key": path.stem, "output_files_dir": "."})
    return {f"{path.stem}.md": body, **resources["outputs"]}
