"""The files below a folder, each once: linked folders are followed, hidden ones and own results are not searched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maediff.files import read_json

_HIDDEN = "__MACOSX"
_COMMANDS = frozenset({"prepare", "infer", "train"})


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that a search does not use, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Walk:
    """What :func:`walk` found.

    Attributes:
        files: Sorted by path; links whose target is missing (git-annex) are among them.
        left_out: Folders that cannot be read or hold results of MAEDiff, and second names of a listed file.
    """

    files: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]


def as_facts(left_out: Iterable[LeftOut]) -> list[dict[str, str | Path]]:
    """List what was left out as ``run.json`` holds it."""
    return [{"path": item.path, "reason": item.reason} for item in left_out]


def walk(folder: Path, exclude: Iterable[Path] = ()) -> Walk:
    """List the files below a folder.

    Folders and files whose names start with a dot are skipped. A folder that several links lead to is searched once,
    under its own name if that lies in the tree, so that loops end.

    Args:
        folder: Where to start.
        exclude: Folders not to search, such as where the results go.
    """
    return _Walker(frozenset(path.resolve() for path in exclude)).run(folder)


class _Walker:
    def __init__(self, exclude: frozenset[Path]) -> None:
        self.exclude = exclude
        self.files: list[Path] = []
        self.left_out: list[LeftOut] = []
        self.links: list[Path] = []
        self.seen: set[tuple[int, int]] = set()

    def run(self, folder: Path) -> Walk:
        self.visit(folder)
        while self.links:
            self.visit(self.links.pop(0))
        return Walk(tuple(self.unique()), tuple(self.left_out))

    def visit(self, folder: Path) -> None:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self.seen:
                return
            self.seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.left_out.append(LeftOut(folder, f"cannot be read: {error.strerror or error}"))
            return
        for entry in entries:
            if not entry.name.startswith(".") and entry.name != _HIDDEN:
                self.add(folder / entry.name)

    def add(self, path: Path) -> None:
        try:
            is_folder = path.is_dir()
        except OSError as error:
            self.left_out.append(LeftOut(path, f"cannot be read: {error.strerror or error}"))
            return
        if not is_folder:
            self.files.append(path)
        elif path.resolve() in self.exclude:
            return
        elif command := _results_of(path):
            self.left_out.append(LeftOut(path, f"results of maediff {command}"))
        elif path.is_symlink():
            self.links.append(path)  # a folder's own name first
        else:
            self.visit(path)

    def unique(self) -> Iterator[Path]:
        """Leave out links to files that are listed under their own names."""
        own = {path.resolve() for path in self.files if not path.is_symlink()}
        for path in sorted(self.files):
            if path.is_symlink() and path.resolve() in own:
                self.left_out.append(LeftOut(path, f"a link to {path.resolve().name}, which is listed itself"))
            else:
                yield path


def _results_of(folder: Path) -> str:
    """Name the command that wrote a folder; empty if it was none of ours."""
    command = str(read_json(folder / "run.json").get("command", ""))
    if command in _COMMANDS and "versions" in read_json(folder / "run.json"):
        return command
    if (folder / "prepare.tsv").is_file():
        return "prepare"
    return "restore" if (folder / "cases.tsv").is_file() and any(folder.glob("*_anomaly.json")) else ""
