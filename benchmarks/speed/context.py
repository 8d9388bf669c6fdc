"""What it costs in AUPRC, and saves in time, to show the network less of a slice, or to hide several windows a pass.

python -m benchmarks.speed.context --model MODEL --cases CASES.csv [--split val] [--contexts slice brain 16 8]
    [--together 2] [--window P --stride S] [--json FILE]

Labelled scans are scored with each `infer.context`, and with each `infer.together`, in turn: mean AUPRC, its difference
from the whole slice and one window a pass (paired bootstrap over scans), and the seconds a scan. `--window` replaces
that of training, which `maediff infer` does not allow, for models whose slices hold no two of their windows. Take
validation scans: a setting must not be chosen on test scans.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Benchmark, say, table
from benchmarks.quality.patients import Patient
from benchmarks.speed.timing import load
from maediff.config import override
from maediff.data.cases import find_cases
from maediff.errors import InputError
from maediff.evaluation import bootstrap_ci, voxel_metrics
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("context_lgg.json", "together_lgg.json"))
BOOTSTRAP = 2000


def score(predictor: Predictor, patient: Patient) -> tuple[float, float]:
    """Return the AUPRC of a scan, and the seconds that it took."""
    result = predictor.predict(patient.case.image, patient.case.mask)
    return voxel_metrics(result.anomaly, patient.brain, patient.label, 0.0).auprc, result.seconds


def configured(options: argparse.Namespace, setting: str) -> Predictor:
    """Load the model with a setting, and with other windows than it was trained with if they are asked for."""
    predictor = load_model(options.model, options.device, (setting,))
    sides = {"window": options.window, "stride": options.stride}
    changes = [f"partition.{name}={side}" for name, side in sides.items() if side is not None]
    return replace(predictor, config=override(predictor.config, changes))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score, print and return."""
    cases = [case for case in find_cases(options.cases, split=options.split) if case.label]
    patients = [Patient(case) for case in cases[: options.scans]]
    if not patients:
        raise InputError(f"{options.cases} has no labelled scan of split {options.split!r}")
    names = ["slice", *(name for name in options.contexts if name != "slice")]
    settings = {name: f"infer.context={name}" for name in names}
    settings |= {f"{count} together": f"infer.together={count}" for count in options.together}
    predictors = {name: configured(options, setting) for name, setting in settings.items()}
    rows: list[dict[str, tuple[float, float]]] = []
    for number, patient in enumerate(patients, start=1):
        rows.append({name: score(predictor, patient) for name, predictor in predictors.items()})
        say(
            f"scan {number} of {len(patients)}: "
            + ", ".join(f"{n} {a:.3f}, {s:.0f} s" for n, (a, s) in rows[-1].items())
        )
    contexts = {
        name: {
            "auprc": bootstrap_ci([row[name][0] for row in rows], BOOTSTRAP, 0),
            "auprc_minus_slice": bootstrap_ci([row[name][0] - row["slice"][0] for row in rows], BOOTSTRAP, 0),
            "times_as_fast": float(np.median([row["slice"][1] / row[name][1] for row in rows])),
        }
        for name in predictors
    }
    config = predictors["slice"].config
    print(
        table(
            ["context", "AUPRC", "less that of the slice", "times as fast"],
            [[k, *v.values()] for k, v in contexts.items()],
        )
    )
    return {
        "model_hash": predictors["slice"].model_hash,
        "split": options.split,
        "scans": len(patients),
        "size": config.data.size,
        "spacing_mm": config.data.spacing_mm,
        "window": config.partition.window,
        "stride": config.partition.stride,
        "contexts": contexts,
        **load(),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--model", required=True, help="model folder, or phantom")
    parser.add_argument("--cases", type=Path, required=True, help="table of labelled scans")
    parser.add_argument("--split", help="only rows of this split")
    parser.add_argument("--scans", type=int, help="number of scans (all)")
    parser.add_argument(
        "--contexts", nargs="+", default=["slice", "brain", "16", "8"], help="what to try (%(default)s)"
    )
    parser.add_argument("--together", type=int, nargs="+", default=[], help="infer.together to try (none)")
    parser.add_argument("--window", type=int, help="side of the windows, pixels (that of training)")
    parser.add_argument("--stride", type=int, help="step of the windows, pixels (that of the model)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
