"""How long the commands take that should answer at once: wall clock, and processor time of the process.

python -m benchmarks.speed.startup [--runs 9] [--json FILE]

Each run is a fresh process, and the commands take turns; medians. `python` alone is the floor that they share. The last
one runs `maediff infer` again on a folder whose scans are finished. With --limit S the exit code is 1 if one of
`doctor`, `info` or that run takes more than S seconds of processor time.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import maediff
from benchmarks.common import ROOT, Benchmark, table
from benchmarks.speed.timing import load
from maediff.errors import MAEDiffError

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("startup.json",))
MAEDIFF = [sys.executable, "-m", "maediff"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import maediff": [sys.executable, "-c", "import maediff"],
    "maediff --help": [*MAEDIFF, "--help"],
    "maediff infer --help": [*MAEDIFF, "infer", "--help"],
    "maediff config show -c tiny": [*MAEDIFF, "config", "show", "-c", "tiny"],
    "maediff doctor": [*MAEDIFF, "doctor", "-d", "cpu"],
    "maediff info phantom": [*MAEDIFF, "info", "phantom"],
    "import torch": [sys.executable, "-c", "import torch"],
}
AGAIN = "maediff infer, nothing to do"
HELD = ("maediff doctor", "maediff info phantom", AGAIN)
"""What --limit holds."""


class Times(NamedTuple):
    """What a command took, seconds."""

    wall: float
    processor: float


def timed(command: Sequence[str]) -> Times:
    """Time a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return Times(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def finished_run(folder: Path) -> list[str]:
    """Score a synthetic scan, and return the command that finds it finished."""
    table_of_scans = maediff.synthesise(folder / "cohort", subjects=2, spacing_mm=4, healthy_only=True)
    command = [*MAEDIFF, "infer", "-m", "phantom", "-i", str(table_of_scans), "-o", str(folder / "out"), "-d", "cpu"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return command


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return.

    Raises:
        MAEDiffError: A command that --limit holds takes longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = COMMANDS | {AGAIN: finished_run(Path(folder))}
        rounds = [{name: timed(command) for name, command in commands.items()} for _ in range(options.runs + 1)][1:]
    wall, processor = (
        {name: statistics.median(getattr(row[name], what) for row in rounds) for name in commands}
        for what in Times._fields
    )
    print(table(["command", "s", "s of processor"], [(name, wall[name], processor[name]) for name in commands]))
    slow = [f"{name} ({processor[name]:.2f} s)" for name in HELD if processor[name] > options.limit]
    if slow:
        raise MAEDiffError(f"more than {options.limit:g} s of processor time: {', '.join(slow)}")
    return {"seconds": wall, "processor_seconds": processor, "runs": options.runs, **load()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--runs", type=int, default=9, help="runs of each command, after one to warm up (%(default)s)")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds of processor time (none)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
