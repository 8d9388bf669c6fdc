"""What does the third dimension add? Slices of one or three orientations, and cubes, on the same scans.

    python -m benchmarks.quality.three_dimensions --volumetric RUN/model --json benchmarks/results/three_dimensions.json
    python -m benchmarks.quality.three_dimensions --model heads --limit 2 --override score.mahalanobis=0.1 \
      --json benchmarks/results/three_dimensions_distance.json

The packaged model `heads` in axial slices alone, in all three orientations, whose maps are averaged, and the same with
residuals that count less where the orientations disagree; and a model of method `volumetric` (`maediff train -c
volumetric -i LABEL_MAPS`). Scans: two MS patients (FLAIR, T2, T1) and synthetic scans of label maps that no training
saw, with exact truth. AUPRC of the map; how much it changes from voxel to voxel across axial slices, as a ratio to the
same within them (its total variation per mm; 1 is alike in all directions, more is flicker); the absolute residual of
healthy brain; seconds a scan and the peak memory of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, Benchmark, say, table
from benchmarks.quality.patients import MASKS_AS_GIVEN
from benchmarks.quality.scans import healthy_l1, scans, with_sign
from maediff.evaluation import voxel_metrics
from maediff.files import write_json
from maediff.inference.load import load_model
from maediff.provenance import peak_rss_mib
from maediff.typing import BoolArray, FloatMap
from maediff.working.hemispheres import axial_axes

BENCHMARK = Benchmark(
    __file__, __doc__, page="docs/measured.md", results=("three_dimensions.json", "three_dimensions_distance.json")
)
SETS = ("mslub", "heads")
LEAST = 0.1
"""Least deviation of the orientations in the Mahalanobis distance, working units (`score.mahalanobis`)."""
Row = dict[str, float]


def flicker(values: FloatMap, brain: BoolArray, affine: FloatMap, spacing_mm: Sequence[float]) -> float:
    """Divide the total variation of a map per mm across axial slices by that within them.

    Args:
        values: Map (X, Y, Z).
        brain: (X, Y, Z); pairs of neighbouring voxels within it count.
        affine: Voxel to RAS mm (4, 4).
        spacing_mm: Of the voxels.
    """
    across, *within = axial_axes(affine)

    def variation(axis: int) -> float:
        both = np.take(brain, range(1, brain.shape[axis]), axis) & np.take(brain, range(brain.shape[axis] - 1), axis)
        return float(np.abs(np.diff(values, axis=axis))[both].mean()) / spacing_mm[axis]

    return variation(across) / float(np.mean([variation(axis) for axis in within]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score each method in a process of its own."""
    methods = {
        "slices, axial": ["--model", "heads", "--override", "infer.orientations=[axial]"],
        "slices, three orientations": ["--model", "heads"],
        "the same, Mahalanobis distance": ["--model", "heads", "--override", f"score.mahalanobis={LEAST}"],
    }
    if options.volumetric is not None:
        methods["cubes"] = ["--model", str(options.volumetric)]
    if options.model is not None:
        found = _scored(options)
        if options.into is not None:
            write_json(options.into, found)
        return found
    results = {}
    with TemporaryDirectory() as folder:
        for name, arguments in methods.items():
            say(name)
            into = Path(folder) / "found.json"
            shared = ["--data", str(options.data), "--device", options.device, "--limit", str(options.limit)]
            command = [sys.executable, "-m", BENCHMARK.module, *shared, *arguments, "--into", str(into)]
            subprocess.run(command, check=True, cwd=ROOT)
            results[name] = json.loads(into.read_text(encoding="utf-8"))
    _show(results)
    return results


def _scored(options: argparse.Namespace) -> dict[str, Any]:
    """Score one model on all scans: means of each group, and the peak memory of this process."""
    loaded = load_model(options.model, options.device, tuple(options.overrides), accept=MASKS_AS_GIVEN)
    groups: dict[str, list[Row]] = defaultdict(list)
    for name in SETS:
        for scan in scans(name, options.data, limit=options.limit):
            predictor = with_sign(loaded, scan.contrast)
            start = time.perf_counter()
            ready = predictor.prepare(scan.volume, scan.brain)
            result = predictor.score(ready)
            seconds = time.perf_counter() - start
            row = {
                "auprc": voxel_metrics(result.anomaly, scan.brain, scan.label, None).auprc,
                "flicker": flicker(result.anomaly, scan.brain, scan.volume.affine, scan.volume.spacing_mm),
                "healthy_l1": healthy_l1(scan, ready.prepared.scale, result.reconstruction),
                "seconds": seconds,
            }
            groups[scan.group].append(row)
            say(f"{scan.group} {scan.name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    means = {
        group: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | {"scans": len(rows)}
        for group, rows in groups.items()
    }
    return {"groups": means, "peak_memory_mib": peak_rss_mib(), "threads": torch.get_num_threads()}


def _show(results: dict[str, Any]) -> None:
    first = next(iter(results.values()))
    for key in ("auprc", "flicker", "healthy_l1", "seconds"):
        header = [key, *first["groups"]]
        print(
            table(header, [[name, *(row[key] for row in found["groups"].values())] for name, found in results.items()])
        )
        print()
    print(table(["", "peak memory, MiB"], [[name, found["peak_memory_mib"]] for name, found in results.items()]))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--volumetric", metavar="MODEL", help="model of method volumetric; left out without one")
    parser.add_argument("--limit", type=int, default=1000, help="scans per kind (all)")
    parser.add_argument("--model", metavar="MODEL", help="score this one here, without the others")
    parser.add_argument("--override", dest="overrides", action="append", default=[], help="such as infer.draws=2")
    parser.add_argument("--into", type=Path, metavar="FILE", help="with --model: where the scores go")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
