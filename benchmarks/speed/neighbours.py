"""What other work on the machine costs: images per second of a training, seconds a scan, at rest and beside it.

python -m benchmarks.speed.neighbours [--config tiny] [--steps 60] [--neighbours 0 --neighbours 2] [--json FILE]

Each training is `maediff train` in a separate process on synthetic scans, and after it `maediff infer` scores one with
its model; once with the threads and the waiting policy that the commands choose by the load, and once with a thread for
each core that waits busily. A neighbour is a process that counts. Rounds take turns; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import maediff
from benchmarks.common import ROOT, Benchmark, table
from maediff.data.cases import find_cases
from maediff.files import read_json
from maediff.system import usable_cores

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("neighbours.json",))
WAYS = {"chosen": {}, "all cores": {"OMP_NUM_THREADS": str(usable_cores()), "OMP_WAIT_POLICY": "ACTIVE"}}
"""Environment of each way to train."""


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep some processes busy meanwhile."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def speeds_of(source: Path, out: Path, options: argparse.Namespace, extra: dict[str, str]) -> tuple[float, float]:
    """Train for a few steps and score a scan; return images and scans per second, as both runs recorded them."""
    steps = [f"train.max_steps={options.steps}", f"train.val_every={options.steps}"]
    changes = [word for step in steps for word in ("--set", step)]
    _maediff(["train", "-c", options.config, "-i", str(source), "-o", str(out), *changes], extra)
    scan = find_cases(source)[0].image
    _maediff(["infer", "-m", str(out / "model"), "-i", str(scan), "-o", str(out / "maps")], extra)
    sidecar = next((out / "maps").glob("*_anomaly.json"))
    return float(read_json(out / "run.json")["pace"]["images_per_second"]), 1 / float(read_json(sidecar)["seconds"])


def _maediff(words: Sequence[str], extra: dict[str, str]) -> None:
    unset = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | extra
    command = [sys.executable, "-m", "maediff", *words, "-d", "cpu"]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score beside each number of neighbours, print and return."""
    speeds: dict[tuple[int, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = maediff.synthesise(Path(folder) / "cohort", subjects=8, spacing_mm=2, healthy_only=True)
        for turn in range(options.runs):
            for count in options.neighbours or (0, 2):
                for way, extra in WAYS.items():
                    with neighbours(count):
                        out = Path(folder) / f"{turn}-{count}-{way.split()[0]}"
                        speeds.setdefault((count, way), []).append(speeds_of(source, out, options, extra))
    medians = {key: [statistics.median(values) for values in zip(*found, strict=True)] for key, found in speeds.items()}
    rest = min(count for count, _ in medians)
    rows = [
        {
            "neighbours": count,
            "threads": way,
            "images_per_second": images,
            "share_of_rest": images / medians[rest, way][0],
            "seconds_a_scan": 1 / scans,
            "share_of_rest_scans": scans / medians[rest, way][1],
        }
        for (count, way), (images, scans) in medians.items()
    ]
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    return {"config": options.config, "steps": options.steps, "rows": rows}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="tiny", help="preset to train (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each training (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--neighbours", type=int, action="append", help="busy processes; repeatable (0 and 2)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
