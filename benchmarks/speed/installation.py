"""How many megabytes an installation takes, package by package, and which of them an extra alone asks for.

python -m benchmarks.speed.installation [--extra dicom …] [--json FILE]

Sizes are those of the files that this environment's packages list, compiled modules included, bytecode not. `needed` is
what the package itself brings: what it requires, and what that requires, on this platform.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.common import Benchmark, table

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("installation.json",))
PACKAGE = "maediff"
SHOWN = 12


def needed(name: str, extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """Find a package and all that it requires here, by name; what is not installed is left out.

    Args:
        name: Package.
        extras: Of that package.
    """
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        key = canonicalize_name(item[0])
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:
            continue
        for text in found[key].requires or ():
            wanted = Requirement(text)
            marker = wanted.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *item[1])):
                waiting.append((wanted.name, frozenset(wanted.extras)))
    return found


def size_mb(package: Distribution) -> float:
    """Add the sizes of a package's files, in MB; bytecode, which is made later, is left out."""
    files = (Path(str(package.locate_file(file))) for file in package.files or () if file.suffix != ".pyc")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all packages, and print the largest."""
    plain, all_of = needed(PACKAGE), needed(PACKAGE, options.extra)
    sizes = {name: size_mb(package) for name, package in all_of.items()}
    rows = sorted(sizes, key=lambda name: -sizes[name])
    print(
        table(
            ["package", "MB", "asked for by"], [[n, sizes[n], "" if n in plain else "an extra"] for n in rows[:SHOWN]]
        )
    )
    totals = {"needed": sum(sizes[name] for name in plain), "with_extras": sum(sizes.values())}
    print(", ".join(f"{name} {total:.0f} MB" for name, total in totals.items()))
    return totals | {"extras": options.extra, "packages": {name: sizes[name] for name in rows}, "plain": sorted(plain)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--extra", nargs="*", default=[], help="extras of the package to count too (none)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
