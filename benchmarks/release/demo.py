"""What `make demo` measures, kept with the facts of the machine.

python -m benchmarks.release.demo --output runs/demo [--seed N] --json benchmarks/results/demo.json

The same job as ``maediff demo``: seconds, peak memory and the table of methods on synthetic brains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, say, table
from maediff.demo import run_demo

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md")


def measure(output: Path, seed: int, quick: bool) -> Mapping[str, Any]:
    """Run the demo and print its AUPRC by method and lesion kind."""
    summary = run_demo(output, seed=seed, quick=quick, on_message=say)
    methods = summary["methods"]
    kinds = list(next(iter(methods.values())))
    rows = [[name, *(found[kind]["auprc"] for kind in kinds)] for name, found in methods.items()]
    seconds, training = summary["seconds"], summary["train_seconds"]
    print(table(["AUPRC", *kinds], rows))
    print(f"{seconds:.0f} s, {training:.0f} s of them training; at most {summary['peak_rss_mib']} MiB")
    return summary


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the brains and of the training (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="proves that it runs; its numbers mean nothing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: measure(options.output, options.seed, options.quick), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
