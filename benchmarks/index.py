"""Write the index of the benchmarks: what each asks, where its results are stored, and which page says what was found.

python -m benchmarks.index
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
INDEX = FOLDER / "README.md"
ROOMS = ("speed", "quality", "robustness", "release")
HEAD = """# Benchmarks

<!-- Written by `python -m benchmarks.index`. -->

The numbers in the README and in docs/ come from these commands, run from the root of the repository, but for a few that
are said to come from a script that is not kept. Each prints a table; `--json FILE` stores it with machine, versions and
commit, and `--help` says how to use it. Results that are kept are in `results/`. Real scans are not part of the
repository: `--data DIR` names the folder that holds them.

Scripts are never imported as libraries: what several of them need is in modules without a command line (`common.py`,
`speed/timing.py`, `quality/patients.py`, `quality/methods.py`, `robustness/small_jobs.py`, …).
"""


@dataclass(frozen=True)
class Entry:
    """A line of the index.

    Attributes:
        module: Name as `python -m` wants it.
        question: First line of the docstring.
        page: Page of the repository that says what was found.
        results: Stored results, below `benchmarks/results`.
    """

    module: str
    question: str
    page: str
    results: tuple[str, ...] = ()

    def line(self) -> str:
        """Render the line."""
        links = [f"[{name}](results/{name})" if _stored(name) else f"{name} (not stored yet)" for name in self.results]
        results = ", ".join(links) or "-"
        page = f"[{Path(self.page).name}](../{self.page})"
        return f"| `{self.module}` | {self.question} | {results} | {page} |"


def _stored(result: str) -> bool:
    return (FOLDER / "results" / result).exists()


def entries(room: str) -> Iterator[Entry]:
    """Read the scripts of a folder, by name; none is imported, so that this takes no time."""
    for path in sorted((FOLDER / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        question = (ast.get_docstring(tree) or "").split("\n")[0]
        parts = path.relative_to(FOLDER.parent).with_suffix("").parts
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BENCHMARK":
                assert isinstance(node.value, ast.Call)
                found = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.value.keywords}
                yield Entry(".".join(part for part in parts if part != "__main__"), question, **found)


def markdown() -> str:
    """Render the index."""
    parts = [HEAD]
    for room in ROOMS:
        title = ast.get_docstring(ast.parse((FOLDER / room / "__init__.py").read_text(encoding="utf-8")))
        lines = ["| `python -m …` | question | results | page |", "|---|---|---|---|"]
        lines += [entry.line() for entry in entries(room)]
        parts.append(f"## {room}\n\n{title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the index."""
    INDEX.write_text(markdown(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
