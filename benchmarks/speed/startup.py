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

from benchmarks.common import ROOT, described, run, table
from benchmarks.speed.timing import load

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = described("speed.startup", __doc__ or "")
    parser.add_argument("--runs", type=int, default=9, help="runs of each command, after one to warm up (%(default)s)")
    options = parser.parse_args(arguments)
    return run(lambda: measure(options), options.json)


if __name__ == "__main__":
    sys.exit(main())
