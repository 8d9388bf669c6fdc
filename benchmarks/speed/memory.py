"""Peak memory of inference against the size of a scan and the number of scans.

python -m benchmarks.speed.memory [--preset small] [--many 50] [--json FILE]

Each number is the peak resident memory of a separate process that does what `maediff infer` does: scans of 1 mm with
growing heads, up to 182 x 218 x 182, and cohorts of 5 and of `--many` small scans, whose peaks should be the same. The
network is that of the preset with random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark, say, table
from benchmarks.speed.timing import copies, load, random_predictor, whole_run, write_scan
from maediff.config import load_config
from maediff.hardware import resolve_device
from maediff.model_folder import save_model

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("memory.json",))
SIZES = ((91, 109, 91), (128, 154, 128), (182, 218, 182))
SMALL, SMALL_MM, FEW = (24, 28, 12), 8.0, 5
LIMIT_MIB = 2048


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run, print and return."""
    device = resolve_device(options.device)
    predictor = random_predictor(load_config(options.preset), device)
    by_size, by_count = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = root / "model"
        save_model(model, predictor.network.state_dict(), predictor.config, None, "# Random weights\n")
        for shape in SIZES:
            name = " x ".join(map(str, shape))
            scan = write_scan(root / "scan.nii.gz", shape, 1.0)
            by_size[name] = whole_run(model, scan, root / "out", options.device)
            say(f"{name}: {by_size[name]['peak_rss_mib']:.0f} MiB")
        for count in (FEW, options.many):
            cohort = copies(root / f"scans-{count}", count, SMALL, SMALL_MM)
            by_count[str(count)] = whole_run(model, cohort, root / f"out-{count}", options.device)
            say(f"{count} scans: {by_count[str(count)]['peak_rss_mib']:.0f} MiB")
    few, many = (found["peak_rss_mib"] for found in by_count.values())
    largest = by_size[" x ".join(map(str, SIZES[-1]))]["peak_rss_mib"]
    results = {
        "device": str(device),
        "preset": options.preset,
        "by_size": by_size,
        "by_number_of_scans": by_count,
        "peak_rss_mib": largest,
        "under_2_gib": largest < LIMIT_MIB,
        "growth_with_scans_mib": many - few,
        "torch_threads": torch.get_num_threads(),
        **load(),
    }
    rows = [[name, found["peak_rss_mib"], found["process_seconds"]] for name, found in {**by_size, **by_count}.items()]
    print(table(["scan, or number of small scans", "peak MiB", "s"], rows))
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--preset", default="small", help="preset (%(default)s, the one recommended for CPUs)")
    parser.add_argument("--many", type=int, default=50, help="scans of the larger cohort (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
