"""Cost per scan of cohorts that grow, of more workers, and a simulation of a million scans.

python -m benchmarks.speed.scaling [--counts 1 10 50 200] [--workers 1 2] [--json FILE]

Small synthetic scans are scored by `maediff infer`, each cohort in a separate process: start-up is paid once, so that
the cost per scan must fall to that of one scan and stay there. Workers are Dask's, on this machine.
`simulation` is no measurement: it hands a million tasks to M machines in a discrete-event model of the queue (a free
machine takes the next scan), with the scan times measured here at this machine's share, their spread, and the start-up.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Benchmark, say, table
from benchmarks.speed.timing import copies, load, random_predictor, whole_run
from maediff.config import load_config
from maediff.hardware import resolve_device
from maediff.model_folder import save_model

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("scaling.json",))
SHAPE, SPACING_MM = (24, 28, 12), 8.0
MILLION = 10**6
MACHINES = (1, 10, 100, 1000)


def simulate(seconds: Sequence[float], startup: float, scans: int, machines: int) -> float:
    """Simulate a cohort on machines that each take the next scan when free; returns hours until the last is done.

    Args:
        seconds: Measured times of a scan, drawn from with replacement.
        startup: Seconds before a machine takes its first scan.
        scans: How many scans.
        machines: How many machines.
    """
    times = np.random.default_rng(0).choice(np.asarray(seconds), scans)
    free = [startup] * machines
    for duration in times.tolist():
        heapq.heapreplace(free, free[0] + duration)
    return max(free) / 3600


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run, simulate, print and return."""
    device = resolve_device(options.device)
    predictor = random_predictor(load_config(options.preset), device)
    cohorts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = root / "model"
        save_model(model, predictor.network.state_dict(), predictor.config, None, "# Random weights\n")
        jobs = [(count, None) for count in options.counts] + [(max(options.counts), n) for n in options.workers]
        for count, workers in jobs:
            name = f"{count} scans" + (f", {workers} workers" if workers else "")
            cohort = copies(root / f"scans-{count}", count, SHAPE, SPACING_MM)
            found = whole_run(model, cohort, root / name.replace(" ", "-"), options.device, workers)
            cohorts[name] = found | {"scans": count, "seconds_per_scan": found["process_seconds"] / count}
            say(f"{name}: {found['process_seconds']:.1f} s")
    largest = cohorts[f"{max(options.counts)} scans"]
    times = largest["seconds"]
    startup = max(0.0, cohorts[f"{min(options.counts)} scans"]["process_seconds"] - min(options.counts) * times[0])
    hours = {str(machines): simulate(times, startup, MILLION, machines) for machines in MACHINES}
    shown = {name: {k: v for k, v in found.items() if k != "seconds"} for name, found in cohorts.items()}
    results = {
        "device": str(device),
        "preset": options.preset,
        "cohorts": shown,
        "median_seconds_of_a_scan": statistics.median(times),
        "simulation": {"what": "simulated, not measured", "scans": MILLION, "startup_s": startup, "hours": hours},
        **load(),
    }
    rows = [[name, found["process_seconds"], found["seconds_per_scan"]] for name, found in cohorts.items()]
    print(table(["cohort", "s", "s a scan"], rows), end="\n\n")
    print(table(["machines like this one", "hours for 1e6 such scans (simulated)"], list(hours.items())))
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--preset", default="quick", help="preset (%(default)s)")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=(1, 10, 50, 200), help="sizes of cohorts (%(default)s)"
    )
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 2), help="Dask workers (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
