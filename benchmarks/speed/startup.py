"""How long `import maediff` and `maediff --help` take.

python -m benchmarks.speed.startup [--runs 9] [--json FILE]

Each run is a fresh process, and the three commands take turns; medians. `python` alone is the floor that they share.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import ROOT, Benchmark, table
from benchmarks.speed.timing import load

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("startup.json",))
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import maediff": [sys.executable, "-c", "import maediff"],
    "maediff --help": [sys.executable, "-m", "maediff", "--help"],
    "maediff infer --help": [sys.executable, "-m", "maediff", "infer", "--help"],
    "maediff config show -c tiny": [sys.executable, "-m", "maediff", "config", "show", "-c", "tiny"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: Sequence[str]) -> float:
    """Time a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return."""
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(options.runs + 1)][1:]
    medians = {name: statistics.median(row[name] for row in rounds) for name in COMMANDS}
    print(table(["command", "s"], list(medians.items())))
    return {"seconds": medians, "runs": options.runs, **load()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--runs", type=int, default=9, help="runs of each command, after one to warm up (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
