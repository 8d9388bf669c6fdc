"""A cohort on a local Dask cluster with a worker killed while it writes: is anything lost, doubled or different?

python -m benchmarks.robustness.cluster [--scans 40] [--workers 2] [--json FILE]

The same small synthetic scans are scored in one process, then on Dask workers. After a quarter of them, the worker that
is seen writing an output is killed with SIGKILL. Compared are the outcome of each scan, the bytes of all maps, and what
lies in the output folder. The network is the `quick` preset with random weights. Linux only: /proc tells who writes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark, say, table
from benchmarks.speed.timing import copies, load, random_predictor
from maediff.config import load_config
from maediff.inference.cohort import CaseOutcome
from maediff.jobs.infer import infer
from maediff.model_folder import save_model

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("cluster.json",))
SHAPE, SPACING_MM = (24, 28, 12), 8.0  # seconds a cohort: what is tested is not the network


class Killer(threading.Thread):
    """Kill the first process that is seen writing a hidden, unfinished file into a folder, once it is armed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.armed, self.over = threading.Event(), threading.Event()
        self.killed: str | None = None

    def run(self) -> None:
        """Watch until a process is killed, or all is over."""
        self.armed.wait()
        while self.killed is None and not self.over.is_set():
            for process, name in writers(self.folder):
                os.kill(process, signal.SIGKILL)
                self.killed = name
                say(f"killed the worker that was writing {name}")
                return
            time.sleep(0.005)


def writers(folder: Path) -> Iterator[tuple[int, str]]:
    """Name the other processes that hold an unfinished output in a folder open, and the output."""
    if not any(folder.glob(".*.nii.gz")):
        return
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = link.readlink()
        except OSError:
            continue
        process = int(link.parts[2])
        if target.parent == folder and target.name.startswith(".") and ".nii" in target.name and process != os.getpid():
            yield process, target.name


def differences(serial: Path, shared: Path) -> list[str]:
    """Name the maps that differ, or that one of two output folders lacks."""
    names = {path.name for folder in (serial, shared) for path in folder.glob("*.nii.gz")}
    paths = ((name, serial / name, shared / name) for name in sorted(names))
    return [name for name, a, b in paths if not (a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes())]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score, kill, compare, print and return."""
    torch.set_num_threads(1)
    config = load_config("quick", ["partition.stride=24"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        copies(root / "scans", options.scans, SHAPE, SPACING_MM)
        network = random_predictor(config, torch.device("cpu")).network
        save_model(root / "model", network.state_dict(), config, None, "# Random weights\n")
        start = time.perf_counter()
        serial = infer(root / "model", root / "scans", root / "serial", device="cpu")
        middle = time.perf_counter()
        say(f"serial: {middle - start:.0f} s")
        killer, told = Killer(root / "dask"), []
        killer.start()

        def on_case(outcome: CaseOutcome) -> None:
            told.append(outcome.case)
            say(f"{len(told)} of {options.scans}: {outcome.case} {outcome.status}")
            if 4 * len(told) >= options.scans:
                killer.armed.set()

        shared = infer(
            root / "model", root / "scans", root / "dask", device="cpu", workers=options.workers, on_case=on_case
        )
        end = time.perf_counter()
        killer.over.set()
        results = {
            "scans": options.scans,
            "workers": options.workers,
            "killed_while_writing": killer.killed,
            "done": shared.done,
            "failed": shared.failed,
            "told_more_than_once": sum(count > 1 for count in Counter(told).values()),
            "rows_in_cases_tsv": len((root / "dask" / "cases.tsv").read_text().splitlines()) - 1,
            "same_order_as_serial": [o.case for o in shared.cases] == [o.case for o in serial.cases],
            "maps": len(list((root / "serial").glob("*.nii.gz"))),
            "maps_that_differ": differences(root / "serial", root / "dask"),
            "unfinished_files_left": sorted(path.name for path in (root / "dask").glob(".*")),
            "seconds_serial": middle - start,
            "seconds_workers_start_and_kill_included": end - middle,
            **load(),
        }
    print(table(["measure", "value"], list(results.items())))
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--scans", type=int, default=40, help="scans (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="Dask workers (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
