"""What can be changed without training anew, and what it is worth: stride, blending, draws, noise, timesteps, passes.

    python -m benchmarks.quality.ablation --model runs/table/lgg_flair/maediff/model \
        --cases runs/table/lgg_flair/cases.csv --json benchmarks/results/ablation.json

Mean AUPRC of labelled validation scans on the working grid, with the paired difference to the model as it is. Second
passes mask what the first one suspects: suspect pixels are replaced by their reconstruction, so that a lesion no longer
conditions its own reconstruction (the paper names this as future work); the map is that of the scan against the last
reconstruction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from benchmarks.common import Benchmark, say, table
from benchmarks.quality.methods import FloatMap
from benchmarks.quality.patients import Patient
from maediff.config import ScoreConfig, override
from maediff.data.cases import find_cases
from maediff.evaluation import bootstrap_ci, voxel_metrics
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.scoring import fixed_sign, postprocess, residual
from maediff.working import WorkingScan, prepare, prepare_label

BENCHMARK = Benchmark(__file__, __doc__, page="docs/benchmark-details.md", results=("ablation.json",))
RESAMPLES = 2000
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "stride half": ("partition.stride=12",),
    "stride double": ("partition.stride=48",),
    "uniform blending": ("infer.blend=uniform",),
    "4 draws": ("infer.draws=4",),
    "simplex noise": ("diffusion.noise=simplex",),
    "timesteps 30, 60, 100": ("diffusion.test_timesteps=[30, 60, 100]",),
    "timesteps 60, 200": ("diffusion.test_timesteps=[60, 200]",),
    "DDIM, 5 steps from 200": ("diffusion.test_timesteps=[200]", "diffusion.sampler=ddim", "diffusion.sampler_steps=5"),
}
SUSPECT_MM = 9.0
SUSPECTS = (0.05, 0.1, 0.2)
"""Filtered residuals, working units, above which the second pass replaces the scan by its reconstruction."""


def reconstruct(predictor: Predictor, prepared: WorkingScan, slices: FloatMap, key: tuple[object, ...]) -> FloatMap:
    """Make slices healthy that stand for those of a scan."""
    healthy = predictor.reconstruct(torch.from_numpy(slices), torch.from_numpy(prepared.mask), key).mean
    found: FloatMap = healthy.numpy()
    return found


def second_pass(
    predictor: Predictor, prepared: WorkingScan, first: FloatMap, threshold: float, key: tuple[object, ...]
) -> FloatMap:
    """Reconstruct once more, from the scan with its suspect pixels replaced."""
    score = ScoreConfig(median_mm=SUSPECT_MM)
    found = postprocess(residual(prepared.slices, first), prepared.mask, prepared.grid.spacing_mm, score)
    suspects = ndimage.binary_dilation(found > threshold, np.ones((1, 3, 3), bool))
    return reconstruct(predictor, prepared, np.where(suspects, first, prepared.slices), (*key, "second"))


def measure(options: argparse.Namespace) -> Mapping[str, Any]:
    """Score every variant on the same scans."""
    base = load_model(options.model, options.device)
    config = base.config
    score = config.score if options.score is None else override(config, options.score).score
    cases = [case for case in find_cases(options.cases, split="val") if case.label][: options.patients]
    found: dict[str, list[float]] = {}
    for number, case in enumerate(cases, start=1):
        patient = Patient(case)
        prepared = prepare(patient.volume, patient.brain, config.data)
        truth = prepare_label(patient.label, prepared.grid)

        def auprc(healthy: FloatMap, prepared: WorkingScan = prepared, truth: Any = truth) -> float:
            values = residual(prepared.slices, healthy, fixed_sign(score))
            return voxel_metrics(
                postprocess(values, prepared.mask, prepared.grid.spacing_mm, score), prepared.mask, truth, None
            ).auprc

        key = (0, case.stem)
        for name, overrides in VARIANTS.items():
            predictor = replace(base, config=override(config, [*options.set, *overrides]))
            healthy = reconstruct(predictor, prepared, prepared.slices, key)
            found.setdefault(name, []).append(auprc(healthy))
            if not overrides:
                for threshold in SUSPECTS:
                    again = second_pass(predictor, prepared, healthy, threshold, key)
                    found.setdefault(f"second pass, suspects above {threshold:g}", []).append(auprc(again))
        say(f"{number} of {len(cases)} scans")
    plain = found["as it is"]
    rows = {
        name: {
            "auprc": bootstrap_ci(values, RESAMPLES),
            "difference": bootstrap_ci(np.subtract(values, plain), RESAMPLES),
        }
        for name, values in found.items()
    }
    print(table(["variant", "auprc", "minus as it is"], [[name, *row.values()] for name, row in rows.items()]))
    return {"scans": len(cases), "score": score.model_dump(), "set": options.set, "rows": rows}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL")
    parser.add_argument("--cases", type=Path, required=True, metavar="CSV", help="table with a labelled split val")
    parser.add_argument("--patients", type=int, default=12, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="setting of all variants")
    parser.add_argument("--score", action="append", metavar="score.b=c", help="post-processing, not the model's")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
