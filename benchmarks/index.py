"""Write the index of the benchmarks: what each asks, where its results are stored, and which page says what was found.

python -m benchmarks.index
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import benchmarks
from benchmarks.common import ROOT, Benchmark
from maediff.files import write_text

INDEX = ROOT / "benchmarks" / "README.md"
ROOMS = ("speed", "quality", "robustness", "release")
HEAD = """# Benchmarks

<!-- Written by `python -m benchmarks.index`. -->

Every number in the README and in docs/ comes from one of these commands, run from the root of the repository. Each
prints a table; `--json FILE` stores it with machine, versions and commit, and `--help` says how to use it. Results that
are kept are in `results/`. Real scans are not part of the repository: `--data DIR` names the folder that holds them.

Scripts are never imported as libraries: what several of them need is in modules without a command line (`common.py`,
`speed/timing.py`, `quality/patients.py`, `quality/methods.py`, `robustness/small_jobs.py`, …).
"""


def scripts() -> Iterator[str]:
    """Name the modules of this folder that can be run, by room and name."""
    for room in ROOMS:
        for path in sorted((ROOT / "benchmarks" / room).rglob("*.py")):
            if "\nBENCHMARK = " in path.read_text(encoding="utf-8"):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def markdown() -> str:
    """Render the index."""
    parts = [HEAD]
    for room in ROOMS:
        found = [import_module(name).BENCHMARK for name in scripts() if name.split(".")[1] == room]
        title = import_module(f"{benchmarks.__name__}.{room}").__doc__ or ""
        parts.append(
            f"## {room}\n\n{title.strip()}\n\n| `python -m …` | question | results | page |\n|---|---|---|---|\n"
        )
        parts[-1] += "\n".join(map(_line, found)) + "\n"
    return "\n".join(parts)


def _line(benchmark: Benchmark) -> str:
    results = ", ".join(f"[{name}](results/{name})" for name in benchmark.results) or "-"
    page = f"[{Path(benchmark.page).name}](../{benchmark.page})"
    return f"| `{benchmark.module}` | {benchmark.question} | {results} | {page} |"


def main() -> int:
    """Write the index."""
    write_text(INDEX, markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
