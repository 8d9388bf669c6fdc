"""Do memory and open files grow over a long run? One process scores 200 scans, with previews.

python -m benchmarks.robustness.long_run [--scans 200] [--json FILE]

The model has the `quick` preset's network with random weights, the scans are synthetic brains of 8 mm with noise of
their own, half of them packed. Resident memory, open files and threads are read as each scan ends; told are those of
scans 5, 50 and the last, and the growth from the median of scans 5 to 24 to that of the last 20.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Benchmark, say, table
from benchmarks.robustness.small_jobs import SMALL
from maediff.config import load_config
from maediff.data.synthesis import synthesise
from maediff.jobs.infer import infer
from maediff.methods.build import build_network
from maediff.model_folder import save_model
from maediff.volume import read_nifti, write_like

BENCHMARK = Benchmark(__file__, __doc__, page="docs/robustness.md", results=("long_run.json",))
MIB = 2**20


def state() -> dict[str, float]:
    """Read what the process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "rss_mib": round(pages * 4096 / MIB, 1),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def make_scans(folder: Path, count: int) -> Path:
    """Write many scans of one synthetic brain, each with its own noise; returns their folder."""
    synthesise(folder / "cohort", subjects=2, spacing_mm=8, healthy_only=True)
    volume = read_nifti(next((folder / "cohort").glob("sub-*/anat/*.nii.gz")))
    brain = volume.data != 0
    rng = np.random.default_rng(0)
    for number in range(count):
        noisy = np.where(brain, np.maximum(volume.data + rng.normal(0, 10, brain.shape), 1), 0)
        write_like(folder / "scans" / f"scan-{number:04d}.nii{'.gz' if number % 2 else ''}", noisy, volume)
    return folder / "scans"


def watch(place: Path, count: int) -> list[dict[str, float]]:
    """Score scans and read the state of the process as each one ends."""
    scans = make_scans(place, count)
    config = load_config("quick", SMALL)
    torch.manual_seed(0)
    save_model(place / "model", build_network(config).state_dict(), config, None, "# Random\n")
    seen: list[dict[str, float]] = []
    infer(place / "model", scans, place / "out", device="cpu", preview=True, on_case=lambda _: seen.append(state()))
    return seen


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score the scans and tell what grew."""
    torch.set_num_threads(1)
    count = options.scans
    with tempfile.TemporaryDirectory() as place:
        seen = watch(Path(place), count)
    shown = sorted({min(5, count), min(50, count), count})
    print(table(["scan", *seen[0]], [[number, *seen[number - 1].values()] for number in shown]))
    early, late = seen[4:24] or seen, seen[-20:]
    growth = {
        name: round(statistics.median(s[name] for s in late) - statistics.median(s[name] for s in early), 1)
        for name in seen[0]
    }
    say(f"growth from scans 5 to 24 to the last 20: {growth}")
    return {"scans": count, "at_scan": {str(number): seen[number - 1] for number in shown}, "growth": growth}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--scans", type=int, default=200, help="how many (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
