"""Shared parts of all benchmarks: command line, data, tables, results with the facts of the machine."""

from __future__ import annotations

import argparse
import logging
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maediff.errors import InputError, MAEDiffError
from maediff.evaluation import Estimate
from maediff.files import write_json, write_text
from maediff.provenance import machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"


class AbsentError(MAEDiffError):
    """Something that a benchmark needs is not on this machine: real scans, a model, an earlier result."""


def shared_data(name: str, data: Path = DATA) -> Path | None:
    """Locate a set of real scans, which lie outside the repository; None if it is absent."""
    folder = data / name
    return folder if (folder / "cases.csv").is_file() else None


def data_folder(name: str, data: Path = DATA) -> Path:
    """Locate a set of real scans that a benchmark cannot do without.

    Args:
        name: Folder of the set, for example ``lgg_flair``.
        data: Where the sets lie.

    Raises:
        AbsentError: It is missing; the message gives the expected place.
    """
    folder = shared_data(name, data)
    if folder is None:
        raise AbsentError(
            f"no {name} data: {data / name / 'cases.csv'} does not exist. The scans are no part of the repository "
            "(their licences); put them there, or name the folder that holds them with --data"
        )
    return folder


def lesion_shapes(data: Path = DATA) -> dict[str, str]:
    """Return the settings of section `heads` that name the folders of real lesion masks; absent ones are left out."""
    folders = {"white_matter_masks": data / "mslub_lesion_masks", "lesion_masks": data / "stroke_lesion_masks"}
    return {name: str(folder) for name, folder in folders.items() if folder.is_dir()}


def git_commit() -> str | None:
    """Return the commit of this checkout, with ``+`` if tracked files differ from it; None outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder: one command line for all, and a line of the index.

    Attributes:
        file: `__file__` of the script.
        doc: Its docstring: the question in the first line, then how to run it.
        page: Page of the repository with the findings.
        results: Stored results, below `benchmarks/results`; several if several settings are stored.
    """

    file: str
    doc: str | None
    page: str
    results: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name as `python -m` wants it."""
        parts = Path(self.file).resolve().relative_to(ROOT).with_suffix("").parts
        return ".".join(part for part in parts if part != "__main__")

    def parser(self) -> argparse.ArgumentParser:
        """Build the command line: the docstring as help, and the options that all benchmarks share."""
        parser = argparse.ArgumentParser(
            f"python -m {self.module}",
            description=self.doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write results and the facts of the machine")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
        parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="folder of real scans (%(default)s)")
        return parser

    def run(
        self,
        measure: Callable[[argparse.Namespace], Mapping[str, Any]],
        add_options: Callable[[argparse.ArgumentParser], None] | None = None,
        arguments: Sequence[str] | None = None,
    ) -> int:
        """Parse the command line, measure, write the results, and turn errors into messages.

        Args:
            measure: Takes the options and returns the results, which it has printed.
            add_options: Adds the options of this benchmark alone.
            arguments: Command line; that of the process by default.

        Returns:
            Exit code.
        """
        parser = self.parser()
        if add_options is not None:
            add_options(parser)
        options = parser.parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        try:
            results = measure(options)
            if options.json is not None:
                save_results(options.json, results)
        except MAEDiffError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        return 0


def save_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write ``{"machine": …, "results": …}`` with versions and commit, atomically."""
    record = {"machine": machine(), "versions": versions(), "commit": git_commit(), "results": results}
    write_json(path, plain(record))


def plain(value: Any) -> Any:
    """Convert results to JSON types: estimates to mappings, paths to text, NaN to None."""
    if isinstance(value, Estimate):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out text and numbers in aligned columns.

    Example:
        >>> print(table(["method", "AUPRC"], [["ours", 0.5], ["theirs", None]]))
        method  AUPRC
        ours    0.500
        theirs      -
    """
    cells = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *others = (text for text in row)
        padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out text as a table of Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def wrapped(text: str, indent: str = "") -> str:
    """Wrap prose at 120 columns, as all pages are."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put rendered text between two marker lines of a page, in place of what is there.

    Raises:
        InputError: The page lacks the markers.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise InputError(f"{page} lacks the lines {begin!r} and {end!r}, between which the table belongs")
    write_text(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def say(text: str) -> None:
    """Print progress to stderr, unbuffered."""
    print(text, file=sys.stderr, flush=True)


def cell(value: Any) -> str:
    """Write a value of a table: three decimals, an interval if there is one, a dash if nothing is defined."""
    if isinstance(value, Estimate):
        if not math.isfinite(value.mean):
            return "-"
        ends = f" [{value.ci_low:.3f}, {value.ci_high:.3f}]" if math.isfinite(value.ci_low) else ""
        return f"{value.mean:.3f}{ends}"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
