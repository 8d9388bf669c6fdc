"""Does a calibrated threshold keep its promise? False-positive rates on healthy scans that calibration never saw.

python -m benchmarks.calibration --output DIR [--model phantom] [--subjects 8] [--seed 987] [--json FILE]

Healthy synthetic scans of a seed of their own are scored; at each rate that the model's calibration records, the share
of their brain voxels above that rate's threshold is set beside the rate. The scans come from the same generator as
those that calibrated `phantom`, so this is the easiest case: another scanner or contrast breaks the promise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import maediff
from benchmarks._common import add_common, run, say, table
from maediff.data.cases import find_cases
from maediff.errors import ModelError


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score the scans; return promised and measured rates, and each scan's percentile among calibration scans."""
    cohort = maediff.synthesise(
        arguments.output / "data", subjects=arguments.subjects, seed=arguments.seed, healthy_only=True
    )
    predictor = maediff.load_model(arguments.model, arguments.device)
    if predictor.calibration is None:
        raise ModelError(f"{arguments.model} has no calibration, so it promises nothing; run `maediff calibrate` first")
    thresholds = {float(rate): value for rate, value in predictor.calibration.quantiles.items()}
    shares: dict[float, list[float]] = {rate: [] for rate in thresholds}
    volumes, percentiles = [], []
    for case in find_cases(cohort):
        result = predictor.predict(case.image, case.mask)
        inside = result.anomaly[result.brain_mask]
        for rate, threshold in thresholds.items():
            shares[rate].append(float(np.mean(inside > threshold)))
        volumes.append(result.brain_volume_ml)
        percentiles.append(result.score_percentile)
        say(f"{case.id}: {shares[predictor.calibration.false_positive_rate][-1]:.2%} of its brain voxels")
    rows = [_row(rate, thresholds[rate], shares[rate], volumes) for rate in thresholds]
    return {
        "model_hash": predictor.model_hash,
        "calibration_scans": predictor.calibration.n_scans,
        "test_scans": len(volumes),
        "seed": arguments.seed,
        "rates": rows,
        "score_percentiles": percentiles,
    }


def _row(rate: float, threshold: float, shares: Sequence[float], volumes_ml: Sequence[float]) -> dict[str, float]:
    ml = [share * volume for share, volume in zip(shares, volumes_ml, strict=True)]
    return {
        "promised": rate,
        "threshold": threshold,
        "measured": float(np.mean(shares)),
        "lowest_scan": min(shares),
        "highest_scan": max(shares),
        "promised_voxels_per_million": 1e6 * rate,
        "measured_voxels_per_million": 1e6 * float(np.mean(shares)),
        "promised_ml_per_scan": rate * float(np.mean(volumes_ml)),
        "measured_ml_per_scan": float(np.mean(ml)),
    }


def report(results: dict[str, Any]) -> dict[str, Any]:
    """Print the table of promised and measured rates; return the results."""
    header = ["threshold", "promised per million", "measured per million", "promised ml", "measured ml", "worst scan"]
    rows = [
        [
            f"{row['threshold']:.4f}",
            f"{row['promised_voxels_per_million']:.0f}",
            f"{row['measured_voxels_per_million']:.0f}",
            f"{row['promised_ml_per_scan']:.2f}",
            f"{row['measured_ml_per_scan']:.2f}",
            f"{row['highest_scan']:.2%}",
        ]
        for row in results["rates"]
    ]
    print(table(header, rows))
    return results


def parser() -> argparse.ArgumentParser:
    """Build the options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the scans go")
    options.add_argument("--model", default="phantom", help="a calibrated model (%(default)s)")
    options.add_argument("--subjects", type=int, default=8, help="healthy scans (%(default)s)")
    options.add_argument("--seed", type=int, default=987, help="of the scans; none that training saw (%(default)s)")
    add_common(options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parser().parse_args(arguments)
    return run(lambda: report(measure(options)), options.json)


if __name__ == "__main__":
    sys.exit(main())
